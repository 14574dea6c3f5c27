//! Keeps a connection to the broker: makes one, passes its events on, waits after its end, makes the next.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::time::Sleep;

use super::{
    backoff::{self, Backoff},
    connection::{Connection, Event, Full, Lost, Settings},
    counts::Counts,
    message::{Message, Qos},
};

/// Short-lived connections in a row that look like two clients who throw each other out.
const SUSPICIOUS: u32 = 2;

/// A link to the broker that outlives its connections.
pub struct Link {
    settings: Settings,
    backoff: Backoff,
    counts: Counts,
    state: State,
    /// Connections in a row that came up and were closed without a word soon after.
    short_lived: u32,
    /// The last will as configured; that of the next connection may be lesser.
    will: Option<Message>,
    /// The last complaint, so that a broker that is away for a day does not fill the log.
    complained: Option<String>,
}

enum State {
    Waiting(Pin<Box<Sleep>>),
    Opening(BoxFuture<'static, Result<Connection, Lost>>),
    /// `up` is when it was subscribed.
    Open {
        connection: Box<Connection>,
        up: Option<Instant>,
    },
    /// We said goodbye.
    Left,
}

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Something on the present connection.
    Connection(Event),
    /// The connection is gone; the next try begins after a wait.
    Down,
}

impl Link {
    /// A link that connects as soon as it is asked for events.
    #[must_use]
    pub fn new(settings: Settings, counts: Counts) -> Self {
        let state = State::Opening(Box::pin(Connection::open(settings.clone())));
        let will = settings.will.clone();
        Self { settings, will, backoff: Backoff::default(), counts, state, short_lived: 0, complained: None }
    }

    /// The next event; never ends but by [`Event::Left`]. Cancel-safe.
    pub async fn next(&mut self) -> LinkEvent {
        loop {
            match &mut self.state {
                State::Waiting(sleep) => {
                    sleep.as_mut().await;
                    self.state = State::Opening(Box::pin(Connection::open(self.settings.clone())));
                }
                State::Opening(opening) => match opening.await {
                    Ok(connection) => self.state = State::Open { connection: Box::new(connection), up: None },
                    Err(lost) => return self.down(&lost),
                },
                State::Open { connection, up } => match connection.next().await {
                    Ok(event) => {
                        match &event {
                            Event::Up(allowed) => {
                                *up = Some(Instant::now());
                                if allowed.retain && allowed.qos == Qos::AtLeastOnce {
                                    self.settings.will.clone_from(&self.will);
                                }
                                self.complained = None;
                                self.counts.connections.inc();
                                log::info!(target: "temperd::mqtt", broker = self.settings.host.as_str(), port = self.settings.port, client_id = self.settings.client_id.as_str(); "connected");
                            }
                            Event::Left => self.state = State::Left,
                            _ => {}
                        }
                        return LinkEvent::Connection(event);
                    }
                    Err(lost) => return self.down(&lost),
                },
                State::Left => std::future::pending().await,
            }
        }
    }

    /// Hands a message to the connection.
    ///
    /// # Errors
    /// No room, or no connection that is up.
    pub fn publish(&self, message: &Message) -> Result<(), Full> {
        self.connection().ok_or(Full)?.publish(message)
    }

    /// Acknowledges a delivery of the present connection.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn acknowledge(&self, packet: u16) -> Result<(), Full> {
        self.connection().ok_or(Full)?.acknowledge(packet)
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn leave(&self) -> Result<(), Full> {
        self.connection().ok_or(Full)?.leave()
    }

    /// Takes the subscriptions of the present connection back.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn unsubscribe(&self) -> Result<(), Full> {
        let connection = self.connection().ok_or(Full)?;
        self.settings.subscriptions.iter().flatten().try_for_each(|(filter, _)| connection.unsubscribe(filter))
    }

    /// Whether messages can go out.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.connection().is_some()
    }

    /// Gives the connection up because a message has been without its PUBACK for too long.
    pub fn give_up(&mut self, silent: Duration) -> LinkEvent {
        self.down(&Lost::NoReceipt(silent))
    }

    /// Makes the connection anew, so that the broker delivers again what it has no PUBACK for.
    pub fn renew(&mut self) -> LinkEvent {
        self.down(&Lost::Renewed)
    }

    fn connection(&self) -> Option<&Connection> {
        match &self.state {
            State::Open { connection, up: Some(_) } => Some(connection),
            _ => None,
        }
    }

    fn down(&mut self, lost: &Lost) -> LinkEvent {
        let lived = match &self.state {
            State::Open { up: Some(since), .. } => Some(since.elapsed()),
            _ => None,
        };
        match (lost, &mut self.settings.will) {
            (Lost::WillRetained, Some(will)) => will.retain = false,
            (Lost::WillQos, Some(will)) => will.qos = Qos::AtMostOnce,
            _ => {}
        }
        let taken_over = matches!(lost, Lost::TakenOver(_));
        self.short_lived = match (lost, lived) {
            (Lost::ClosedSilently, Some(lived)) if lived < backoff::GOOD => self.short_lived + 1,
            _ => 0,
        };
        // mosquitto 2.0.11 closes a connection whose session is taken over without saying so.
        let suspected = self.short_lived >= SUSPICIOUS;
        let wait = self.backoff.after(lived, taken_over, fastrand::f64());
        self.counts.losses.inc();
        if taken_over || suspected {
            self.counts.takeovers.inc();
        }
        let mut reason = lost.to_string();
        if suspected {
            reason = format!(
                "{reason} soon after it came up, again: another client may use the client id {}; give one of them another \
                 mqtt.node",
                self.settings.client_id
            );
        }
        let level = if self.complained.as_ref() == Some(&reason) { log::Level::Debug } else { log::Level::Warn };
        log::log!(
            target: "temperd::mqtt", level,
            broker = self.settings.host.as_str(), port = self.settings.port,
            client_id = self.settings.client_id.as_str(), reason = reason.as_str(),
            retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            "no connection to the broker"
        );
        self.complained = Some(reason);
        self.state = State::Waiting(Box::pin(tokio::time::sleep(wait)));
        LinkEvent::Down
    }
}
