//! A TCP proxy on loopback that fails as networks do, switched while it runs. It has a thread of its own, so that a test
//! that blocks does not hold it up, and ends with the test. Included by tests with `#[path]`.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{oneshot, watch},
    time::sleep,
};

/// One of the two ways through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected.
    ToServer,
    /// To whoever connected.
    ToClient,
}

/// How bytes go one way, on all connections, present and to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// At once.
    Open,
    /// Each piece that is read waits so long.
    Delay(Duration),
    /// Swallowed: the sender sees no error, the receiver nothing, not even an end. A connection that lost something by
    /// it is reset when this is over.
    BlackHole,
    /// Not even read, so that the sender's buffers fill. Nothing is lost: it goes on when this is over.
    Unread,
    /// In writes of so many bytes, with a pause after each.
    Slices(usize, Duration),
    /// So many bytes more; with the last of them the connection is cut, and the way is open to the next.
    CutAfter(usize),
}

/// How a connection ends, on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Closed.
    Cut,
    /// With RST.
    Reset,
}

/// The proxy.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: u16,
    to_server: watch::Sender<Flow>,
    to_client: watch::Sender<Flow>,
    /// What becomes of the connections that are there when it is sent.
    end: watch::Sender<End>,
    refuses: AtomicBool,
    accepted: AtomicUsize,
}

impl Proxy {
    /// Starts one in front of a port on loopback; whether somebody listens there is asked anew for each connection.
    pub fn start(server: u16) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket of our own");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            server,
            to_server: watch::Sender::new(Flow::Open),
            to_client: watch::Sender::new(Flow::Open),
            end: watch::Sender::new(End::Cut),
            refuses: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let thread = thread::spawn({
            let shared = shared.clone();
            // The runtime goes with this thread, and all connections with the runtime.
            move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = accept(listener, shared) => {}
                    }
                });
            }
        });
        Self { port, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where to connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on bytes go this way like this.
    pub fn set(&self, way: Way, flow: Flow) {
        self.shared.flow(way).send_replace(flow);
    }

    /// As [`Self::set`], both ways.
    pub fn set_both(&self, flow: Flow) {
        self.set(Way::ToServer, flow);
        self.set(Way::ToClient, flow);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.shared.end.send_replace(End::Cut);
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.shared.end.send_replace(End::Reset);
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Connections so far, without those that were refused.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn flow(&self, way: Way) -> &watch::Sender<Flow> {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if !shared.refuses.load(Ordering::Relaxed) {
            shared.accepted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(connection(client, shared.clone()));
        }
    }
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>) {
    let mut end = shared.end.subscribe();
    // Nobody there: the client's connection is closed.
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", shared.server)).await else { return };
    let _slower = (client.set_nodelay(true), server.set_nodelay(true));
    let how = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let both = async {
            tokio::try_join!(
                pump(from_client, to_server, &shared.to_server),
                pump(from_server, to_client, &shared.to_client)
            )
        };
        tokio::select! {
            _ = end.changed() => *end.borrow(),
            ended = both => ended.err().unwrap_or(End::Cut),
        }
    };
    if how == End::Reset {
        let _gone = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Passes bytes one way until their end, which is passed on too; an error is how the whole connection ends.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, flow: &watch::Sender<Flow>) -> Result<(), End> {
    let broken = |_: io::Error| End::Reset;
    let mut changes = flow.subscribe();
    let mut now = *changes.borrow_and_update();
    let (mut passed, mut swallowed) = (0, false);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            _ = changes.changed() => {
                now = *changes.borrow_and_update();
                passed = 0;
                if swallowed && now != Flow::BlackHole {
                    return Err(End::Reset);
                }
                continue;
            }
            read = from.read(&mut buffer), if now != Flow::Unread => read.map_err(broken)?,
        };
        let piece = &buffer[..read];
        match now {
            Flow::BlackHole if piece.is_empty() => {
                let _changed = changes.wait_for(|flow| *flow != Flow::BlackHole).await;
                return Err(End::Reset);
            }
            _ if piece.is_empty() => return to.shutdown().await.map_err(broken),
            Flow::BlackHole => swallowed = true,
            Flow::Open | Flow::Unread => to.write_all(piece).await.map_err(broken)?,
            Flow::Delay(time) => {
                sleep(time).await;
                to.write_all(piece).await.map_err(broken)?;
            }
            Flow::Slices(size, pause) => {
                for slice in piece.chunks(size.max(1)) {
                    to.write_all(slice).await.map_err(broken)?;
                    sleep(pause).await;
                }
            }
            Flow::CutAfter(bytes) => {
                let rest = bytes.saturating_sub(passed).min(read);
                to.write_all(&piece[..rest]).await.map_err(broken)?;
                passed += rest;
                if passed == bytes {
                    flow.send_replace(Flow::Open);
                    return Err(End::Cut);
                }
            }
        }
    }
}
