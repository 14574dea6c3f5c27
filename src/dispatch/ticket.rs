//! An accepted request, seen from its way in.

use tokio::sync::{mpsc, oneshot};

use crate::wire::v1;

/// Pieces of an answer that a slow reader may leave unread; further ones are joined to the last.
const CHUNKS: usize = 32;

/// An accepted request. Dropping it before the final cancels the request.
#[derive(Debug)]
pub struct Ticket {
    id: String,
    chunks: mpsc::Receiver<v1::Chunk>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Open(oneshot::Receiver<Last>),
    /// The outcome is here; chunks that came before it go first.
    Ending(Last),
    Ended,
}

/// What an accepted request brings.
#[derive(Debug)]
pub enum Event {
    /// A piece of the answer; only where the request asked for a stream.
    Chunk(v1::Chunk),
    /// The one outcome, with the whole answer. Nothing comes after it.
    Final(Box<v1::Final>),
    /// The one outcome of a request for embeddings. Nothing comes after it.
    Embedded(Box<v1::EmbedReply>),
}

#[derive(Debug)]
struct Last {
    unsent: Option<v1::Chunk>,
    outcome: Event,
}

/// The owner's end of a ticket.
#[derive(Debug)]
pub(super) struct Outlet {
    chunks: mpsc::Sender<v1::Chunk>,
    last: oneshot::Sender<Last>,
    /// What did not fit into the channel.
    unsent: Option<v1::Chunk>,
    next_seq: u32,
}

/// Both ends for the request of that id.
pub(super) fn pair(id: &str) -> (Outlet, Ticket) {
    let (chunks, chunks_out) = mpsc::channel(CHUNKS);
    let (last, last_out) = oneshot::channel();
    let ticket = Ticket { id: id.into(), chunks: chunks_out, phase: Phase::Open(last_out) };
    (Outlet { chunks, last, unsent: None, next_seq: 0 }, ticket)
}

impl Outlet {
    /// Sends a piece, or joins it to the one that still waits for room. Numbers are given when a piece leaves.
    pub(super) fn send(&mut self, mut piece: v1::Chunk) {
        if let Some(unsent) = self.unsent.take() {
            piece = join(unsent, piece);
        }
        piece.seq = self.next_seq;
        match self.chunks.try_send(piece) {
            Ok(()) => self.next_seq += 1,
            Err(mpsc::error::TrySendError::Full(piece) | mpsc::error::TrySendError::Closed(piece)) => {
                self.unsent = Some(piece);
            }
        }
    }

    /// Sends the outcome; a piece that still waits goes before it.
    pub(super) fn finish(mut self, outcome: Event) {
        if let Some(unsent) = &mut self.unsent {
            unsent.seq = self.next_seq;
        }
        let _ticket_dropped = self.last.send(Last { unsent: self.unsent, outcome });
    }

    /// Resolves once the ticket was dropped.
    pub(super) fn dropped(&self) -> impl Future<Output = ()> + Send + 'static {
        let chunks = self.chunks.clone();
        async move { chunks.closed().await }
    }
}

fn join(mut before: v1::Chunk, after: v1::Chunk) -> v1::Chunk {
    before.delta.push_str(&after.delta);
    before.logprobs.extend(after.logprobs);
    // Once text flows, nothing is ahead any more.
    before.ahead = if before.delta.is_empty() { after.ahead } else { None };
    before
}

impl Ticket {
    /// The request's id, made up where the client gave none.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next piece; `None` after the final. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        if let Phase::Open(last) = &mut self.phase {
            let last = tokio::select! {
                biased;
                Some(chunk) = self.chunks.recv() => return Some(Event::Chunk(chunk)),
                last = last => last,
            };
            // The owner outlives every ticket; where its task died all the same, the request has failed.
            let last = last.unwrap_or_else(|_| Last { unsent: None, outcome: Event::Final(Box::new(lost(&self.id))) });
            self.phase = Phase::Ending(last);
        }
        if let Ok(chunk) = self.chunks.try_recv() {
            return Some(Event::Chunk(chunk));
        }
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Ending(Last { unsent: Some(chunk), outcome }) => {
                self.phase = Phase::Ending(Last { unsent: None, outcome });
                Some(Event::Chunk(chunk))
            }
            Phase::Ending(Last { unsent: None, outcome }) => Some(outcome),
            Phase::Open(_) | Phase::Ended => None,
        }
    }

    /// Waits for the final alone.
    pub async fn outcome(mut self) -> v1::Final {
        loop {
            match self.next().await {
                Some(Event::Final(outcome)) => return *outcome,
                Some(Event::Chunk(_)) => {}
                Some(Event::Embedded(_)) | None => return lost(&self.id),
            }
        }
    }

    /// Waits for the outcome of a request for embeddings.
    pub async fn embedded(mut self) -> v1::EmbedReply {
        loop {
            match self.next().await {
                Some(Event::Embedded(reply)) => return *reply,
                Some(Event::Final(last)) => return (*last).into(),
                Some(Event::Chunk(_)) => {}
                None => return lost(&self.id).into(),
            }
        }
    }
}

fn lost(id: &str) -> v1::Final {
    v1::Final {
        id: id.into(),
        outcome: "failed".into(),
        error: Some(v1::Error {
            code: "internal".into(),
            message: "the request was lost inside the daemon".into(),
            ..v1::Error::default()
        }),
        ..v1::Final::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(delta: &str) -> v1::Chunk {
        v1::Chunk { delta: delta.into(), ..v1::Chunk::default() }
    }

    #[tokio::test]
    async fn a_slow_reader_loses_nothing() {
        let (mut outlet, mut ticket) = pair("a");
        let words: Vec<String> = (0..100).map(|n| format!("{n} ")).collect();
        for word in &words {
            outlet.send(piece(word));
        }
        outlet.finish(Event::Final(Box::default()));
        let mut text = String::new();
        let mut seqs = Vec::new();
        while let Some(event) = ticket.next().await {
            match event {
                Event::Chunk(chunk) => {
                    text.push_str(&chunk.delta);
                    seqs.push(chunk.seq);
                }
                Event::Final(_) | Event::Embedded(_) => break,
            }
        }
        assert_eq!(text, words.concat());
        assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
        assert!(ticket.next().await.is_none());
    }

    #[tokio::test]
    async fn dropping_the_ticket_is_seen() {
        let (outlet, ticket) = pair("a");
        let dropped = outlet.dropped();
        drop(ticket);
        dropped.await;
    }
}
