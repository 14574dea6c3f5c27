//! What becomes of a request while it is with the dispatcher, one step at a time.

use crate::{
    dispatch::{
        self,
        gate::{Knock, Leave},
    },
    request::{ErrorCode, RequestError},
    serve::mqtt::{acks::Delivery, answers::Pending, reply::ReplyTo},
    wire::v1,
};

/// What a running future brings.
pub enum Step<T> {
    /// A piece of an answer, and the ticket for the rest.
    Chunk(u64, Accepted<T>, v1::Chunk),
    /// Its turn to run has come.
    Turn(u64, Accepted<T>, Leave),
    /// The one outcome.
    Final(u64, Box<v1::Final>),
    /// The one outcome of a request for embeddings.
    Embedded(u64, Box<v1::EmbedReply>),
    /// Not accepted; the dispatcher has counted and logged it.
    Refused(u64, RequestError),
    /// What became of a cancel: whether there was such a request.
    Cancelled(ReplyTo, String, bool),
    /// What these deliveries brought is answered, and safe on disk.
    Settled(Vec<Delivery>),
    /// That a request has its outcome is safe on disk.
    Noted(u64),
}

/// An accepted request.
pub struct Accepted<T> {
    pub(super) ticket: T,
    /// That its turn to run has come.
    pub(super) knock: Knock,
}

/// Waits for the next event of an accepted request.
pub(super) async fn advance<T: Pending>(job: u64, mut accepted: Accepted<T>) -> Step<T> {
    let event = tokio::select! {
        leave = accepted.knock.heard() => return Step::Turn(job, accepted, leave),
        event = accepted.ticket.next() => event,
    };
    match event {
        Some(dispatch::Event::Chunk(chunk)) => Step::Chunk(job, accepted, chunk),
        Some(dispatch::Event::Final(last)) => Step::Final(job, last),
        Some(dispatch::Event::Embedded(reply)) => Step::Embedded(job, reply),
        None => Step::Refused(job, RequestError::new(ErrorCode::Internal, "the request ended without an outcome")),
    }
}
