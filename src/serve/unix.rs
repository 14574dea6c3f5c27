//! The Unix socket: one listener for HTTP/1.1 and HTTP/2, OpenAI-compatible HTTP and gRPC.
//!
//! ```text
//! accept ── peer's uid ─┬─ allowed, a slot is free ──▶ gate ─┬─ application/grpc ─▶ serve::grpc
//!                       │                                    └─ anything else ───▶ serve::http, serve::openai
//!                       └─ else: one of a few spare slots, every request is refused, closed after a second
//! ```
//! Nothing that a peer does, or leaves undone, holds more than one slot: heads and bodies that do not arrive in time end
//! the connection or the request. A connection that closes drops its handlers, and with them the tickets of its
//! requests: that is how a disconnect cancels.

use std::{
    collections::BTreeSet,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::gate::{Caller, Gate};
pub use self::{
    bind::{BindError, Listener, bind},
    gate::Peer,
};
use crate::{
    config,
    dispatch::Dispatcher,
    keeper,
    request::{ErrorCode, RequestError, WayIn, check::Bounds},
    serve::{grpc, http},
    status::StatusBoard,
    telemetry::metrics::Metrics,
};

mod bind;
mod gate;

/// A connection whose request's head does not arrive in this time is closed; so is one that has been idle so long
/// (HTTP/1.1).
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections beyond `limits.connections`, and of refused peers, that are told why. More are closed at once.
const SPARE_CONNECTIONS: usize = 16;
/// How long such a connection lives.
const SPARE_TIME: Duration = Duration::from_secs(1);
/// Bytes of an HTTP/1.1 head.
const HEAD_BYTES: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 64;
/// Pause after a failed accept, which otherwise would fail again at once (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the socket needs of the rest of the daemon.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Takes the requests.
    pub dispatcher: Dispatcher,
    /// Takes an operator's pins.
    pub keeper: keeper::Handle,
    /// For `/v1/status`, readiness, health and the model's name.
    pub status: StatusBoard,
    /// Counts what never reaches the dispatcher; rendered by `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Bounds of requests.
    pub bounds: Bounds,
    /// Who may connect, who speaks for others, whether raw prompts are taken.
    pub socket: config::Socket,
    /// `limits.connections`.
    pub connections: u32,
    /// When the daemon started: `created` of the model.
    pub started: SystemTime,
}

/// Serves until `shutdown` is ready; then closes the listener, removes its file, and lets connections finish the
/// requests they have. Ends once they have ended. The caller bounds that time: dropping this future ends them at once.
///
/// # Errors
/// The listener cannot be registered with the runtime; nothing has been served then.
pub async fn serve(listener: Listener, shared: Shared, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let socket = UnixListener::from_std(listener.handle()?)?;
    let (health, follow) = grpc::health::service(&shared.status);
    let shared = Arc::new(shared);
    let gate = Gate {
        http: http::routes(&shared),
        grpc: grpc::routes(&shared, health),
        payload_bytes: shared.bounds.payload_bytes,
        metrics: Arc::clone(&shared.metrics),
    };
    let door = Door { allow: shared.socket.allow_uids.clone(), connections: shared.connections, gate: Arc::new(gate) };
    let closing = CancellationToken::new();
    let signal = async {
        shutdown.await;
        closing.cancel();
    };
    tokio::join!(door.run(listener, socket, &closing), follow.run(&closing), signal);
    Ok(())
}

/// Counts and logs a request that never reaches the dispatcher, which does so for those it refuses itself.
pub(super) fn refused(metrics: &Metrics, way_in: WayIn, peer: Peer, error: &RequestError) {
    metrics.refused(way_in, error.code);
    let (way_in, code, param) = (way_in.as_str(), error.code.as_str(), error.param.as_deref().unwrap_or_default());
    log::info!(target: "temperd::socket", way_in, uid = peer.uid, code, param; "request refused");
}

/// Accepts, and decides who gets a slot.
struct Door {
    allow: Option<BTreeSet<u32>>,
    connections: u32,
    gate: Arc<Gate>,
}

impl Door {
    async fn run(&self, listener: Listener, socket: UnixListener, closing: &CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.connections as usize));
        let spare = Arc::new(Semaphore::new(SPARE_CONNECTIONS));
        // A JoinSet, so that every connection ends with this future.
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = closing.cancelled() => break,
                Some(ended) = tasks.join_next() => report(ended),
                accepted = socket.accept() => match accepted {
                    Ok((stream, _)) => {
                        if let Some((caller, slot)) = self.admit(&stream, &slots, &spare) {
                            let lifetime = caller.refusal.is_some().then_some(SPARE_TIME);
                            let talk = talk(stream, caller, Arc::clone(&self.gate), closing.clone());
                            tasks.spawn(hold(talk, lifetime, slot));
                        }
                    }
                    Err(error) => {
                        log::warn!(target: "temperd::socket", error:%; "accept failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(socket);
        drop(listener);
        while let Some(ended) = tasks.join_next().await {
            report(ended);
        }
    }

    /// Who is there, and a slot to talk in; `None` closes the connection.
    fn admit(
        &self,
        stream: &UnixStream,
        slots: &Arc<Semaphore>,
        spare: &Arc<Semaphore>,
    ) -> Option<(Caller, OwnedSemaphorePermit)> {
        let peer = match stream.peer_cred() {
            Ok(credentials) => Peer { uid: credentials.uid() },
            Err(error) => {
                log::warn!(target: "temperd::socket", error:%; "connection without peer credentials closed");
                return None;
            }
        };
        let refusal = if self.allow.as_ref().is_some_and(|allowed| !allowed.contains(&peer.uid)) {
            not_allowed(peer.uid)
        } else if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            return Some((Caller { peer, refusal: None }, slot));
        } else {
            too_many(self.connections)
        };
        let slot = Arc::clone(spare).try_acquire_owned().ok();
        if slot.is_none() {
            log::warn!(target: "temperd::socket", uid = peer.uid, code = refusal.code.as_str(); "connection closed");
        }
        slot.map(|slot| (Caller { peer, refusal: Some(Arc::new(refusal)) }, slot))
    }
}

fn not_allowed(uid: u32) -> RequestError {
    let message = format!("uid {uid} may not use this socket; its operator allows uids in `socket.allow_uids`");
    RequestError::new(ErrorCode::Forbidden, message)
}

fn too_many(limit: u32) -> RequestError {
    let message = format!("all {limit} connections are in use; close some, or raise `limits.connections`");
    let mut error = RequestError::new(ErrorCode::QueueFull, message).retry_after(1000);
    error.limit = Some(limit);
    error
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        log::error!(target: "temperd::socket", "a connection's task panicked");
    }
}

/// Keeps the slot for as long as the connection lives.
async fn hold(talk: impl Future<Output = ()>, lifetime: Option<Duration>, slot: OwnedSemaphorePermit) {
    match lifetime {
        None => talk.await,
        Some(lifetime) => drop(timeout(lifetime, talk).await),
    }
    drop(slot);
}

/// Speaks HTTP on one connection until it ends.
async fn talk(stream: UnixStream, caller: Caller, gate: Arc<Gate>, closing: CancellationToken) {
    let started = Arc::new(AtomicBool::new(false));
    let service = {
        let started = Arc::clone(&started);
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            started.store(true, Ordering::Relaxed);
            let (gate, caller) = (Arc::clone(&gate), caller.clone());
            async move { Ok::<_, std::convert::Infallible>(gate.handle(&caller, request).await) }
        })
    };
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper's own time-out starts once it knows the protocol; this one is for a peer that does not show which it is.
    let mut first = pin!(sleep_until(Instant::now() + HEAD_TIMEOUT));
    let mut waits = true;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    log::debug!(target: "temperd::socket", error:%; "connection ended");
                }
                return;
            }
            () = closing.cancelled(), if waits => {
                waits = false;
                connection.as_mut().graceful_shutdown();
            }
            () = first.as_mut(), if waits && !started.load(Ordering::Relaxed) => {
                waits = false;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS);
    builder
}

#[cfg(test)]
mod tests;
