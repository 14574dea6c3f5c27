//! The Unix socket: one listener for HTTP/1.1 and HTTP/2, OpenAI-compatible HTTP and gRPC.
//!
//! ```text
//! accept ── peer's uid ─┬─ allowed, a place is free ──▶ gate ─┬─ application/grpc ─▶ serve::grpc
//!                       │  or an idle one is given up         └─ anything else ───▶ serve::http, serve::openai
//!                       └─ else: one of a few spare places, every request is refused, closed after a second
//! ```
//! Nothing that a peer does, or leaves undone, holds more than one place: heads and bodies that do not arrive in time end
//! the connection or the request, and a connection on which it is the peer's turn makes room where all places are taken
//! ([`places`]). A connection that closes drops its handlers, and with them the tickets of its requests: that is how a
//! disconnect cancels.

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

pub use self::{
    bind::{BindError, Listener, bind},
    gate::Peer,
};
use self::{
    gate::{Caller, Gate},
    places::{Place, Places},
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
mod places;

/// Connections beyond `limits.connections`, and of refused peers, that are told why. More of refused peers are closed at
/// once; others wait until one of these ends, and behind them the kernel holds those that have not been accepted.
const SPARE_CONNECTIONS: usize = 64;
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
        read_timeout: shared.socket.read_timeout,
        metrics: Arc::clone(&shared.metrics),
    };
    let door = Door::new(shared.socket.allow_uids.clone(), shared.connections, gate);
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

/// Accepts, and decides who gets a place.
struct Door {
    allow: Option<BTreeSet<u32>>,
    connections: u32,
    slots: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    places: Places,
    gate: Arc<Gate>,
}

impl Door {
    fn new(allow: Option<BTreeSet<u32>>, connections: u32, gate: Gate) -> Self {
        let slots = Arc::new(Semaphore::new(connections as usize));
        let spare = Arc::new(Semaphore::new(SPARE_CONNECTIONS));
        Self { allow, connections, slots, spare, places: Places::default(), gate: Arc::new(gate) }
    }

    async fn run(mut self, listener: Listener, socket: UnixListener, closing: &CancellationToken) {
        // A JoinSet, so that every connection ends with this future.
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = closing.cancelled() => break,
                Some(ended) = tasks.join_next() => report(ended),
                accepted = socket.accept() => match accepted {
                    Ok((stream, _)) => {
                        if let Some((caller, slot)) = self.admit(&stream).await {
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

    /// Who is there, and a place to talk in; `None` closes the connection. Waits for a second at most.
    async fn admit(&mut self, stream: &UnixStream) -> Option<(Caller, OwnedSemaphorePermit)> {
        let peer = match stream.peer_cred() {
            Ok(credentials) => Peer { uid: credentials.uid() },
            Err(error) => {
                log::warn!(target: "temperd::socket", error:%; "connection without peer credentials closed");
                return None;
            }
        };
        let place = Arc::new(Place::new(peer.uid));
        let (refusal, slot) = if self.allow.as_ref().is_some_and(|allowed| !allowed.contains(&peer.uid)) {
            (not_allowed(peer.uid), Arc::clone(&self.spare).try_acquire_owned().ok())
        } else if let Some(slot) = self.slot().await {
            self.places.add(&place);
            return Some((Caller { peer, place, refusal: None }, slot));
        } else {
            let spare = timeout(SPARE_TIME, Arc::clone(&self.spare).acquire_owned()).await;
            (too_many(self.connections), spare.ok().and_then(Result::ok))
        };
        if slot.is_none() {
            log::warn!(target: "temperd::socket", uid = peer.uid, code = refusal.code.as_str(); "connection closed");
        }
        slot.map(|slot| (Caller { peer, place, refusal: Some(Arc::new(refusal)) }, slot))
    }

    /// One of the places: a free one, or that of a connection which can be spared, as soon as it has ended.
    async fn slot(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Some(slot);
        }
        if !self.places.free_one(Instant::now()) {
            return None;
        }
        timeout(SPARE_TIME, Arc::clone(&self.slots).acquire_owned()).await.ok()?.ok()
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
    let (place, head_timeout) = (Arc::clone(&caller.place), gate.read_timeout);
    // Who is refused leaves as soon as it knows why: others want to be told too.
    let closing = closing.child_token();
    let told = caller.refusal.is_some().then(|| closing.clone());
    let service = {
        let started = Arc::clone(&started);
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            started.store(true, Ordering::Relaxed);
            let (gate, caller, told) = (Arc::clone(&gate), caller.clone(), told.clone());
            async move {
                let response = gate.handle(&caller, request).await;
                if let Some(told) = told {
                    told.cancel();
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        })
    };
    let builder = builder(head_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper's own time-out starts once it knows the protocol; this one is for a peer that does not show which it is.
    let mut first = pin!(sleep_until(Instant::now() + head_timeout));
    let mut waits = true;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    log::debug!(target: "temperd::socket", error:%; "connection ended");
                }
                return;
            }
            () = place.lost() => {
                log::debug!(target: "temperd::socket", "an idle connection makes room");
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

/// A head that does not arrive in time closes the connection; so does being idle so long (HTTP/1.1).
fn builder(head_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS);
    builder
}

#[cfg(test)]
mod tests;
