//! The transport alone, with routes made for the test, over real sockets.

use std::{path::PathBuf, time::Duration};

use axum::{Router, body::Body, response::Response, routing::get};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::*;

/// For a head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A served socket that ends with the test.
struct Server {
    path: PathBuf,
    closing: CancellationToken,
    task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Server {
    fn new(http: Router, allow: Option<BTreeSet<u32>>, connections: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = bind(&config::Socket {
            path: path.clone(),
            mode: 0o600,
            group: None,
            allow_uids: None,
            gateways: BTreeSet::new(),
            raw_prompt: true,
            read_timeout: HEAD_TIMEOUT,
        })
        .unwrap();
        let socket = UnixListener::from_std(listener.handle().unwrap()).unwrap();
        let grpc = Router::new().fallback(async || "grpc");
        let metrics = Arc::new(Metrics::default());
        let door =
            Door::new(allow, connections, Gate { http, grpc, payload_bytes: 100, read_timeout: HEAD_TIMEOUT, metrics });
        let closing = CancellationToken::new();
        let task = tokio::spawn({
            let closing = closing.clone();
            async move { door.run(listener, socket, &closing).await }
        });
        Self { path, closing, task, _folder: folder }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// One request on a connection of its own, until the server closes it.
    async fn talk(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reports when a handler, or the body that it returned, is dropped.
struct Alarm(mpsc::Sender<()>);

impl Drop for Alarm {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), event).await.expect("nothing happened for 10 s")
}

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

fn hello() -> Router {
    Router::new().route("/", get(async || "hello")).route("/", axum::routing::post(async |body: Bytes| body))
}

#[tokio::test]
async fn both_http_versions_share_the_listener() {
    let server = Server::new(hello(), None, 8);
    let answer = server.talk(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");

    let io = TokioIo::new(server.connect().await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = |content_type: &str| {
        hyper::Request::post("http://x/").header("content-type", content_type).body(Empty::<Bytes>::new()).unwrap()
    };
    for (content_type, expected) in [("application/grpc", "grpc"), ("application/json", "")] {
        let answer = client.send_request(ask(content_type)).await.unwrap();
        assert_eq!(answer.version(), hyper::Version::HTTP_2);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), expected);
    }
    connection.abort();
}

#[tokio::test]
async fn a_peer_that_is_not_allowed_is_told_so_in_its_own_form() {
    let uid = rustix::process::getuid().as_raw();
    let server = Server::new(hello(), Some(BTreeSet::from([uid.wrapping_add(1)])), 8);
    let answer = server.talk(GET).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(r#""code":"forbidden""#), "{answer}");

    let io = TokioIo::new(server.connect().await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = hyper::Request::post("http://x/").header("content-type", "application/grpc");
    let answer = client.send_request(ask.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "7");
    assert_eq!(answer.headers()["temperd-code"], "forbidden");
    connection.abort();

    assert!(Server::new(hello(), Some(BTreeSet::from([uid])), 8).talk(GET).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so_and_slots_come_back() {
    let (entered, mut enters) = mpsc::channel(1);
    let slow = get(async move || {
        entered.send(()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let server = Server::new(hello().route("/slow", slow), None, 1);
    let mut first = server.connect().await;
    first.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    soon(enters.recv()).await.unwrap();
    // It does not ask for the end of the connection, which comes all the same.
    let answer = server.talk("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 1"), "{answer}");
    drop(first);
    soon(async { while !server.talk(GET).await.starts_with("HTTP/1.1 200") {} }).await;
}

#[tokio::test]
async fn a_connection_on_which_it_is_the_peers_turn_makes_room_and_one_that_waits_for_us_does_not() {
    let big = get(async || vec![b'x'; 8 * 1024 * 1024]);
    let (entered, mut enters) = mpsc::channel(1);
    let slow = get(async move || {
        entered.send(()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let server = Server::new(hello().route("/big", big).route("/slow", slow), None, 1);
    // Nothing said, half of a head, half of a body, an answer that is not read, one that has been read.
    let beginnings = [
        "",
        "GET / HT",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx",
        "GET /big HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    for beginning in beginnings {
        let mut idle = server.connect().await;
        idle.write_all(beginning.as_bytes()).await.unwrap();
        soon(async {
            while !server.talk(GET).await.starts_with("HTTP/1.1 200") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        // A reset is as good as an end.
        let _ = soon(idle.read_to_end(&mut Vec::new())).await;
    }
    // The place of the last one is free a moment after its end.
    let _busy = soon(async {
        loop {
            let mut busy = server.connect().await;
            busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            tokio::select! {
                _ = enters.recv() => break busy,
                _ = busy.read_u8() => {}
            }
        }
    })
    .await;
    tokio::time::sleep(places::GRACE * 2).await;
    assert!(server.talk(GET).await.starts_with("HTTP/1.1 429"), "who waits for us is not sent away");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_a_handler_sees_it() {
    let server = Server::new(hello(), None, 8);
    let post = |n: usize| {
        format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {n}\r\n\r\n{}", "x".repeat(n))
    };
    assert!(server.talk(&post(100)).await.starts_with("HTTP/1.1 200"));
    for n in [101, 1_000_000] {
        let answer = server.talk(&post(n)).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("payload_too_large"), "{answer}");
    }
}

#[tokio::test]
async fn closing_the_connection_drops_a_handler_at_work_and_a_body_on_its_way() {
    let (alarm, mut rings) = mpsc::channel(4);
    let (entered, mut enters) = mpsc::channel(4);
    let at_work = {
        let (alarm, entered) = (alarm.clone(), entered.clone());
        get(async move || {
            let _alarm = Alarm(alarm);
            entered.send(()).await.unwrap();
            std::future::pending::<()>().await;
        })
    };
    let on_its_way = get(async move || {
        let alarm = Alarm(alarm);
        entered.send(()).await.unwrap();
        let endless = futures_util::stream::poll_fn(move |_| {
            let _ = &alarm;
            std::task::Poll::<Option<Result<Bytes, std::io::Error>>>::Pending
        });
        Response::new(Body::from_stream(endless))
    });
    let server = Server::new(Router::new().route("/work", at_work).route("/way", on_its_way), None, 8);
    for path in ["/work", "/way"] {
        let mut stream = server.connect().await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        soon(enters.recv()).await.unwrap();
        drop(stream);
        soon(rings.recv()).await.unwrap();

        let io = TokioIo::new(server.connect().await);
        let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let ask = hyper::Request::get(format!("http://x{path}")).body(Full::<Bytes>::default()).unwrap();
        let answer = tokio::spawn(async move { client.send_request(ask).await });
        soon(enters.recv()).await.unwrap();
        connection.abort();
        answer.abort();
        soon(rings.recv()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_or_half_of_something_is_closed() {
    let server = Server::new(hello(), None, 8);
    for beginning in ["", "P", "PRI * HT", "GET / HT"] {
        let mut stream = server.connect().await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let since = Instant::now();
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(since.elapsed() >= HEAD_TIMEOUT, "{beginning:?} closed after {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn shutdown_lets_a_request_finish_and_closes_what_is_idle() {
    let (entered, mut enters) = mpsc::channel(1);
    let (release, released) = tokio::sync::watch::channel(false);
    let slow = get(async move || {
        entered.send(()).await.unwrap();
        released.clone().wait_for(|released| *released).await.unwrap();
        "done"
    });
    let mut server = Server::new(hello().route("/slow", slow), None, 8);
    let mut idle = server.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    soon(enters.recv()).await.unwrap();

    server.closing.cancel();
    soon(idle.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(!server.path.exists());
    assert!(!server.task.is_finished());
    release.send(true).unwrap();
    let mut answer = String::new();
    soon(busy.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("done"), "{answer}");
    soon(&mut server.task).await.unwrap();
}
