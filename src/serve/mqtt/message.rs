//! Messages as the rest of this module sees them, without any type of the MQTT library.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;

/// Quality of service. QoS 2 is not used: the library breaks it on resume, and answers are idempotent anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Qos {
    /// 0
    AtMostOnce,
    /// 1
    AtLeastOnce,
}

/// A message to publish.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: String,
    /// The body.
    pub payload: Bytes,
    /// How sure.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// MIME type of the body.
    pub content_type: &'static str,
    /// Whether the body is UTF-8 text.
    pub utf8: bool,
    /// The requester's own mark, returned unchanged.
    pub correlation: Option<Bytes>,
    /// User properties.
    pub user: Vec<(&'static str, String)>,
    /// When it is of no use any more.
    pub expires: Option<Instant>,
}

impl Message {
    /// The rest of its life in whole seconds, rounded up; `Some(0)` when it is over.
    #[must_use]
    pub fn seconds_left(&self, now: Instant) -> Option<u32> {
        let left = self.expires?.saturating_duration_since(now);
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Some(u32::try_from(seconds).unwrap_or(u32::MAX))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes, {:?})", self.topic, self.payload.len(), self.qos)
    }
}

/// What the outbox has to know of a message.
pub trait Letter {
    /// When it is of no use any more.
    fn expires(&self) -> Option<Instant>;

    /// Whether both go to one topic.
    fn is_beside(&self, other: &Self) -> bool;

    /// Bytes that it takes while it is kept.
    fn bytes(&self) -> usize;
}

impl Letter for Message {
    fn expires(&self) -> Option<Instant> {
        self.expires
    }

    fn is_beside(&self, other: &Self) -> bool {
        self.topic == other.topic
    }

    fn bytes(&self) -> usize {
        self.payload.len() + self.topic.len()
    }
}

/// A message that the broker delivered.
#[derive(Clone, PartialEq, Eq)]
pub struct Incoming {
    /// The topic it was published to.
    pub topic: String,
    /// The body.
    pub payload: Bytes,
    /// What to acknowledge; `None` at QoS 0.
    pub packet: Option<u16>,
    /// The broker sent it before, on an earlier connection.
    pub again: bool,
    /// It was kept by the broker from before we subscribed.
    pub retained: bool,
    /// MIME type, where one is given.
    pub content_type: Option<String>,
    /// Where the answer is wanted.
    pub response_topic: Option<String>,
    /// The requester's own mark.
    pub correlation: Option<Bytes>,
    /// What remains of its life.
    pub expiry: Option<Duration>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming({}, {} bytes)", self.topic, self.payload.len())
    }
}

/// What the broker says to a message of QoS 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It has it, whether or not somebody subscribes.
    Taken,
    /// Not now, since it has too much to do: no fault of the message.
    Busy(&'static str),
    /// Not with the rights that we have; an operator may still grant them.
    Forbidden(&'static str),
    /// Never.
    Never(&'static str),
}

/// What the broker's CONNACK allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allowed {
    /// Messages of QoS 1 without their PUBACK.
    pub window: u64,
    /// Bytes of one packet.
    pub packet_bytes: Option<u32>,
    /// The highest quality of service. At 0 the broker confirms nothing.
    pub qos: Qos,
    /// Whether it keeps messages for later subscribers.
    pub retain: bool,
}
