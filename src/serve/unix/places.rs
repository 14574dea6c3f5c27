//! Whose turn it is on a connection, and which one gives up its place when all are taken.
//!
//! A connection is idle while it is its peer's turn: nothing is asked, a head or a body is still to come, or what is there
//! of an answer is not read. It is busy while it is ours. Idle connections cost a place and nothing else, so they keep it
//! only as long as nobody else wants one: who would have none gets that of the longest idle connection of the peer that
//! has most of them. What has been idle for less than [`GRACE`] is left alone: its request may be on its way.

use std::{
    cmp::Reverse,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a connection is idle before it can lose its place.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// A connection, as the door sees it.
#[derive(Debug)]
pub(super) struct Place {
    uid: u32,
    state: Mutex<State>,
    leave: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Requests that wait for us.
    ours: usize,
    /// When that was last none.
    idle_since: Instant,
}

impl Place {
    /// For a connection of this user, from now on.
    pub(super) fn new(uid: u32) -> Self {
        let state = Mutex::new(State { ours: 0, idle_since: Instant::now() });
        Self { uid, state, leave: CancellationToken::new() }
    }

    /// Since when it is the peer's turn; `None` while it is ours.
    fn idle_since(&self) -> Option<Instant> {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.ours == 0).then_some(state.idle_since)
    }

    /// Ready once the connection has to end, since another one needs its place.
    pub(super) async fn lost(&self) {
        self.leave.cancelled().await;
    }
}

/// One request's part in whose turn it is; the peer's once it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    place: Arc<Place>,
    ours: bool,
}

impl Turn {
    /// It is ours.
    pub(super) fn ours(place: &Arc<Place>) -> Self {
        let mut turn = Self { place: Arc::clone(place), ours: false };
        turn.set(true);
        turn
    }

    fn set(&mut self, ours: bool) {
        if std::mem::replace(&mut self.ours, ours) == ours {
            return;
        }
        let mut state = self.place.state.lock().unwrap_or_else(PoisonError::into_inner);
        if ours {
            state.ours += 1;
        } else {
            state.ours -= 1;
            state.idle_since = Instant::now();
        }
    }

    /// Goes on with the body of the answer: it is the peer's turn while a piece of it waits to be taken.
    pub(super) fn with_body(self, body: Body) -> Body {
        Body::new(Watched { body, turn: self })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A body that says whose turn it is.
struct Watched {
    body: Body,
    turn: Turn,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.turn.set(true);
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        this.turn.set(false);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// All connections that have a place. They leave it by themselves when they end.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Weak<Place>>);

impl Places {
    /// One more.
    pub(super) fn add(&mut self, place: &Arc<Place>) {
        // Those that have ended are swept out before the list has to grow.
        if self.0.len() == self.0.capacity() {
            self.0.retain(|place| place.strong_count() > 0);
        }
        self.0.push(Arc::downgrade(place));
    }

    /// Has one end for the sake of another; `false` where none can be spared.
    pub(super) fn free_one(&mut self, now: Instant) -> bool {
        self.0.retain(|place| place.strong_count() > 0);
        let here = self.0.iter().filter_map(Weak::upgrade).filter(|place| !place.leave.is_cancelled());
        let idle: Vec<_> = here.filter_map(|place| Some((place.uid, place.idle_since()?, place))).collect();
        let longest = spared(idle.iter().map(|(uid, since, _)| (*uid, *since)), now).and_then(|at| idle.get(at));
        longest.inspect(|(_, _, place)| place.leave.cancel()).is_some()
    }
}

/// Which one can be spared, of idle connections by their users and since when.
fn spared(idle: impl Iterator<Item = (u32, Instant)> + Clone, now: Instant) -> Option<usize> {
    let mut of_user: HashMap<u32, usize> = HashMap::new();
    for (uid, _) in idle.clone() {
        *of_user.entry(uid).or_default() += 1;
    }
    let long = idle.enumerate().filter(|(_, (_, since))| now.saturating_duration_since(*since) >= GRACE);
    long.max_by_key(|(_, (uid, since))| (of_user.get(uid).copied(), Reverse(*since))).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full, StreamBody};

    use super::*;

    #[test]
    fn the_longest_idle_one_of_who_has_most_is_spared() {
        let start = Instant::now();
        let spared = |idle: &[(u32, u64)]| {
            let at = |second| start + Duration::from_secs(second);
            spared(idle.iter().map(|(uid, since)| (*uid, at(*since))), at(100))
        };
        assert_eq!(spared(&[]), None);
        assert_eq!(spared(&[(1, 100), (1, 99)]), Some(1));
        assert_eq!(spared(&[(1, 100)]), None, "its request may be on its way");
        assert_eq!(spared(&[(1, 3), (2, 50), (2, 40), (2, 60), (3, 1)]), Some(2), "others have fewer, however long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_lost_while_it_is_the_peers_turn_only() {
        let (mut places, place) = (Places::default(), Arc::new(Place::new(1)));
        places.add(&place);
        let turn = Turn::ours(&place);
        tokio::time::advance(GRACE * 100).await;
        assert!(!places.free_one(Instant::now()), "a request is at work");

        let (pieces, receiver) = tokio::sync::mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut body = turn.with_body(Body::new(StreamBody::new(stream)));
        let wait = tokio::time::timeout(GRACE * 100, body.frame()).await;
        assert!(wait.is_err() && !places.free_one(Instant::now()), "the peer waits for a piece");

        pieces.send(Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(!places.free_one(Instant::now()), "it has had no time to take the next one");
        tokio::time::advance(GRACE).await;
        assert!(places.free_one(Instant::now()));
        place.lost().await;
        assert!(!places.free_one(Instant::now()), "one makes room for one");
    }

    #[tokio::test]
    async fn a_watched_body_is_what_it_was() {
        let place = Arc::new(Place::new(1));
        let body = Turn::ours(&place).with_body(Body::new(Full::new(Bytes::from_static(b"hello"))));
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert!(place.idle_since().is_some());
    }
}
