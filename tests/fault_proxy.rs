//! The faults of the proxy are what they say: tests that stand on it would otherwise hold for nothing.

#[path = "support/proxy.rs"]
mod proxy;

use std::{io::ErrorKind, time::Duration};

use proxy::{Flow, Proxy, Way};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough to see that nothing comes.
const NOTHING: Duration = Duration::from_millis(100);

/// Both ends of a connection through a proxy.
async fn connected() -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = Proxy::start(listener.local_addr().expect("bound").port());
    let (client, server) = tokio::join!(TcpStream::connect(("127.0.0.1", proxy.port())), listener.accept());
    (proxy, client.expect("connected"), server.expect("accepted").0)
}

async fn receives(stream: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    timeout(PATIENCE, stream.read_exact(&mut got)).await.expect("in time").expect("open");
    assert_eq!(got, bytes);
}

async fn end(stream: &mut TcpStream) -> Result<Vec<u8>, ErrorKind> {
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends");
    read.map(|_| rest).map_err(|error| error.kind())
}

async fn hears_nothing(stream: &mut TcpStream) {
    assert!(timeout(NOTHING, stream.read_u8()).await.is_err(), "something came, or the end");
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways_whole_or_in_slices_or_late() {
    let (proxy, mut client, mut server) = connected().await;
    for flow in [Flow::Open, Flow::Slices(1, Duration::ZERO), Flow::Delay(Duration::from_millis(5))] {
        proxy.set_both(flow);
        client.write_all(b"question").await.expect("open");
        receives(&mut server, b"question").await;
        server.write_all(b"answer").await.expect("open");
        receives(&mut client, b"answer").await;
    }
    client.shutdown().await.expect("open");
    assert_eq!(end(&mut server).await, Ok(vec![]));
    server.write_all(b"bye").await.expect("half open");
    drop(server);
    assert_eq!(end(&mut client).await, Ok(b"bye".to_vec()));
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn a_cut_closes_a_reset_resets_and_refusal_lasts_until_it_is_taken_back() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.cut();
    assert_eq!((end(&mut client).await, end(&mut server).await), (Ok(vec![]), Ok(vec![])));
    let (proxy, mut client, mut server) = connected().await;
    proxy.reset();
    let reset = Err(ErrorKind::ConnectionReset);
    assert_eq!((end(&mut client).await, end(&mut server).await), (reset.clone(), reset));
    proxy.refuse(true);
    let mut refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("taken, and closed");
    assert_eq!(end(&mut refused).await, Ok(vec![]));
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn a_cut_after_some_bytes_falls_between_them_once() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Way::ToClient, Flow::CutAfter(5));
    server.write_all(b"ans").await.expect("open");
    receives(&mut client, b"ans").await;
    server.write_all(b"wers").await.expect("open");
    assert_eq!(end(&mut client).await, Ok(b"we".to_vec()));
    assert_eq!(end(&mut server).await, Ok(vec![]));
    let _next = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("connected");
}

#[tokio::test]
async fn a_black_hole_swallows_without_a_word_and_what_it_tore_is_reset() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Way::ToServer, Flow::BlackHole);
    client.write_all(b"lost").await.expect("nobody says so");
    hears_nothing(&mut server).await;
    server.write_all(b"heard").await.expect("open");
    receives(&mut client, b"heard").await;
    proxy.set(Way::ToServer, Flow::Open);
    assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_peer_that_does_not_read_fills_the_senders_buffers_and_loses_nothing() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Way::ToServer, Flow::Unread);
    let piece = vec![7; 1024 * 1024];
    let mut sent = 0;
    while let Ok(written) = timeout(NOTHING, client.write(&piece)).await {
        sent += written.expect("open");
    }
    hears_nothing(&mut server).await;
    proxy.set(Way::ToServer, Flow::Open);
    receives(&mut server, &vec![7; sent]).await;
}
