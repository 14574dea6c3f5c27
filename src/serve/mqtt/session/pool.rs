//! The box as one of a pool: a link of its own, on which the broker gives it a share of the pool's requests. They are
//! answered over the node's own link, as all others.
//!
//! The session of this link ends with its connection. So the broker hands a box that is away nothing, and what a box had
//! that dies is lost with mosquitto; other brokers may give it to the next. Hence a client asks again, and a request to a
//! pool must say how long it is worth that (message expiry) and where its answer is wanted.

use std::time::Instant;

use super::Session;
use crate::serve::mqtt::{
    acks::{Acks, Line},
    answers::Answers,
    connection::{Event, Settings},
    counts::Counts,
    link::{Link, LinkEvent},
};

/// Where the box is in a pool.
pub(super) struct Pool {
    link: Option<Link>,
    pub(super) acks: Acks,
    /// No more requests are taken: others in the pool go on.
    retired: bool,
}

impl Pool {
    /// `None`: in none.
    pub(super) fn new(settings: Option<Settings>, counts: &Counts) -> Self {
        let link = settings.map(|settings| Link::new(settings, counts.clone()));
        Self { link, acks: Acks::new(Line::Pool), retired: false }
    }

    /// The next event; none in no pool. Cancel-safe.
    pub(super) async fn next(&mut self) -> LinkEvent {
        match &mut self.link {
            Some(link) => link.next().await,
            None => std::future::pending().await,
        }
    }

    /// Acknowledges what is answered.
    pub(super) fn release(&mut self) {
        if let Some(link) = &self.link {
            self.acks.release(|packet| link.acknowledge(packet).is_ok());
        }
    }

    /// Takes no more requests. What has come is still answered and acknowledged.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        match &self.link {
            Some(link) if link.unsubscribe().is_ok() => {}
            // Not connected: it need not be any more.
            _ => self.link = None,
        }
    }

    /// Ends it in good order.
    pub(super) fn leave(&mut self) {
        if let Some(link) = &self.link
            && link.leave().is_err()
        {
            self.link = None;
        }
    }
}

impl<A: Answers> Session<A> {
    pub(super) fn pool_event(&mut self, event: LinkEvent, now: Instant) {
        match event {
            LinkEvent::Down => {
                self.pool.acks.reset();
                if self.pool.retired {
                    self.pool.link = None;
                }
            }
            LinkEvent::Connection(Event::Incoming(message)) => self.arrive(message, Line::Pool, now),
            LinkEvent::Connection(Event::Left) => self.pool.link = None,
            // Nothing is published here.
            LinkEvent::Connection(Event::Up(_) | Event::Sent(_) | Event::Receipt(..) | Event::Progress) => {}
        }
    }
}
