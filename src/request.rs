//! What a request is, from whichever way in: checked once, then passed on as a [`Request`].
//!
//! Everything here is pure. [`queue`] orders what waits, [`dedupe`] recognises repeats, [`seen`] also those of requests
//! to an earlier daemon, [`check`] turns the wire's messages into checked requests.

use std::{fmt, time::Duration};

use zeroize::Zeroize;

use crate::{constrain::Constraint, wire::v1};

pub mod check;
mod constraint;
pub mod dedupe;
pub mod error;
pub mod queue;
pub mod seen;

pub use error::{ErrorCode, RequestError};

/// Who asks: the unit of shares, cancels and, later, sessions. On the socket `uid:1000` or, for a gateway's user,
/// `uid:1000/alice`; over MQTT `mqtt:<client segment>` or `mqtt:anonymous`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(String);

impl Client {
    /// A peer of the Unix socket.
    #[must_use]
    pub fn uid(uid: u32) -> Self {
        Self(format!("uid:{uid}"))
    }

    /// A user behind a peer that the configuration names as a gateway.
    #[must_use]
    pub fn gateway_user(uid: u32, user: &str) -> Self {
        Self(format!("uid:{uid}/{user}"))
    }

    /// A device; `None` is one without a client segment in its topic.
    #[must_use]
    pub fn mqtt(segment: Option<&str>) -> Self {
        Self(segment.map_or_else(|| Self::ANONYMOUS.into(), |segment| format!("mqtt:{segment}")))
    }

    /// All devices that do not name themselves: several that know nothing of each other.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.0 == Self::ANONYMOUS
    }

    /// No topic segment holds a slash.
    const ANONYMOUS: &str = "mqtt:anonymous/";
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which door a request came through; a label of logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WayIn {
    /// OpenAI-compatible HTTP on the socket.
    Http,
    /// gRPC on the socket.
    Grpc,
    /// MQTT.
    Mqtt,
}

impl WayIn {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Mqtt => "mqtt",
        }
    }
}

/// The role of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the operator.
    System,
    /// The one who asks.
    User,
    /// Earlier answers.
    Assistant,
}

impl Role {
    /// As templates and the wire write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation. Its text is overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.content.zeroize();
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turn({}, {} bytes)", self.role.as_str(), self.content.len())
    }
}

/// What the model is to read.
#[derive(Clone, PartialEq, Eq)]
pub enum Input {
    /// A conversation, written out by the model's own template; control tokens in its texts stay text.
    Chat(Vec<Turn>),
    /// A prompt whose control tokens are parsed.
    Raw(String),
    /// Texts whose vectors are wanted; control tokens in them stay text.
    Texts(Vec<String>),
}

impl Input {
    /// Bytes of text, for admission while no engine can tokenise.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Chat(turns) => turns.iter().map(|turn| turn.content.len()).sum(),
            Self::Raw(prompt) => prompt.len(),
            Self::Texts(texts) => texts.iter().map(String::len).sum(),
        }
    }

    /// Whether there is no text at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        match self {
            Self::Chat(_) => {}
            Self::Raw(prompt) => prompt.zeroize(),
            Self::Texts(texts) => texts.zeroize(),
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat(turns) => write!(f, "Chat({} turns)", turns.len()),
            Self::Raw(prompt) => write!(f, "Raw({} bytes)", prompt.len()),
            Self::Texts(texts) => write!(f, "Texts({} texts)", texts.len()),
        }
    }
}

/// How tokens are drawn. Every field is finite and within the range that `inference.proto` gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus; 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: i32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repeat_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// `None`: one is drawn at admission.
    pub seed: Option<u32>,
    /// Token id → value added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
}

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The client's own, or made up; unique only together with the client.
    pub id: String,
    /// Who asks.
    pub client: Client,
    /// The door it came through.
    pub way_in: WayIn,
    /// What the model reads.
    pub input: Input,
    /// The adapter that is to be applied, by its name; `None`: the model as it is.
    pub adapter: Option<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// `None`: the configured default.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// What the answer must obey.
    pub constraint: Option<Constraint>,
    /// `Some(n)`: log probabilities, with the n best alternatives.
    pub logprobs: Option<u32>,
    /// Whether chunks are wanted.
    pub stream: bool,
    /// -1, 0 or 1; higher goes first.
    pub priority: i32,
    /// From arrival; `None`: the configured default.
    pub deadline: Option<Duration>,
    /// Longest reply in bytes; enforced by the way in that knows the encoding.
    pub max_reply_bytes: Option<u32>,
}

/// How an accepted request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered.
    Completed,
    /// Ended by a fault or by shutdown.
    Failed,
    /// Ended by its client.
    Cancelled,
    /// Ended by its deadline.
    Expired,
    /// Never accepted.
    Refused,
}

impl Outcome {
    /// As the wire and the metrics write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Refused => "refused",
        }
    }
}

/// The final of a request that was not accepted.
#[must_use]
pub fn refusal(id: &str, node: &str, error: &RequestError) -> v1::Final {
    v1::Final {
        id: id.into(),
        node: node.into(),
        outcome: Outcome::Refused.as_str().into(),
        error: Some(error.to_wire()),
        retry_after_ms: error.retry_after_ms,
        ..v1::Final::default()
    }
}

impl From<v1::Final> for v1::EmbedReply {
    /// The outcome of a request for embeddings, without them.
    fn from(last: v1::Final) -> Self {
        Self {
            id: last.id,
            embeddings: Vec::new(),
            node: last.node,
            outcome: last.outcome,
            usage: last.usage,
            timings: last.timings,
            error: last.error,
            retry_after_ms: last.retry_after_ms,
            redecoded: last.redecoded,
        }
    }
}
