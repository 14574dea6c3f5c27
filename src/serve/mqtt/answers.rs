//! What MQTT needs of the dispatcher, as traits: so that everything between broker and dispatcher can be tested with a
//! real broker and answers that a test decides.

use std::future::Future;

use crate::{
    dispatch::{Dispatcher, Event, Ticket, gate::Gate},
    request::{Client, Request, RequestError},
};

/// Takes requests.
pub trait Answers: Clone + Send + Sync + 'static {
    /// An accepted request.
    type Ticket: Pending;

    /// See [`Dispatcher::submit_behind`].
    fn submit(&self, gate: Gate, request: Request) -> impl Future<Output = Result<Self::Ticket, RequestError>> + Send;

    /// See [`Dispatcher::cancel`].
    fn cancel(&self, client: &Client, id: &str) -> impl Future<Output = bool> + Send;
}

/// An accepted request, up to its final.
pub trait Pending: Send + 'static {
    /// See [`Ticket::next`].
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

impl Answers for Dispatcher {
    type Ticket = Ticket;

    async fn submit(&self, gate: Gate, request: Request) -> Result<Ticket, RequestError> {
        Self::submit_behind(self, gate, request).await
    }

    async fn cancel(&self, client: &Client, id: &str) -> bool {
        Self::cancel(self, client, id).await
    }
}

impl Pending for Ticket {
    async fn next(&mut self) -> Option<Event> {
        Self::next(self).await
    }
}
