//! What a request can be told: a code, a sentence, and the numbers behind it.

use std::fmt;

use crate::wire::v1;

/// The error codes of the interface; SPEC.md lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the wire's")]
pub enum ErrorCode {
    InvalidRequest,
    ContextLengthExceeded,
    PayloadTooLarge,
    QueueFull,
    ShareExceeded,
    ModelUnavailable,
    UnknownModel,
    Draining,
    Expired,
    Cancelled,
    IdConflict,
    AlreadyAnswered,
    TopicNotAllowed,
    Forbidden,
    Unauthorized,
    Poison,
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::InvalidRequest,
        Self::ContextLengthExceeded,
        Self::PayloadTooLarge,
        Self::QueueFull,
        Self::ShareExceeded,
        Self::ModelUnavailable,
        Self::UnknownModel,
        Self::Draining,
        Self::Expired,
        Self::Cancelled,
        Self::IdConflict,
        Self::AlreadyAnswered,
        Self::TopicNotAllowed,
        Self::Forbidden,
        Self::Unauthorized,
        Self::Poison,
        Self::Internal,
    ];

    /// Reads what [`Self::as_str`] writes.
    #[must_use]
    pub fn from_wire(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == code)
    }

    /// As the wire writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::PayloadTooLarge => "payload_too_large",
            Self::QueueFull => "queue_full",
            Self::ShareExceeded => "share_exceeded",
            Self::ModelUnavailable => "model_unavailable",
            Self::UnknownModel => "unknown_model",
            Self::Draining => "draining",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::IdConflict => "id_conflict",
            Self::AlreadyAnswered => "already_answered",
            Self::TopicNotAllowed => "topic_not_allowed",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::Poison => "poison",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that carries it.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLengthExceeded | Self::TopicNotAllowed => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::UnknownModel => 404,
            Self::IdConflict | Self::AlreadyAnswered => 409,
            Self::PayloadTooLarge => 413,
            Self::QueueFull | Self::ShareExceeded => 429,
            // nginx's "client closed request": nobody reads it, logs do.
            Self::Cancelled => 499,
            Self::Poison | Self::Internal => 500,
            Self::ModelUnavailable | Self::Draining => 503,
            Self::Expired => 504,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a request was refused or failed. The message names the thing, the limit and the way out, and never holds text
/// of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RequestError {
    /// The code.
    pub code: ErrorCode,
    /// A sentence.
    pub message: String,
    /// The field at fault; OpenAI's `param`.
    pub param: Option<String>,
    /// The limit that was met.
    pub limit: Option<u32>,
    /// What was asked for instead.
    pub actual: Option<u32>,
    /// When another try may help.
    pub retry_after_ms: Option<u32>,
}

impl RequestError {
    /// An error without numbers.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, limit: None, actual: None, retry_after_ms: None }
    }

    /// `invalid_request` about one field; the message begins with its name.
    #[must_use]
    pub fn invalid(param: &str, message: impl fmt::Display) -> Self {
        let mut error = Self::new(ErrorCode::InvalidRequest, format!("{param}: {message}"));
        error.param = Some(param.into());
        error
    }

    /// Adds both numbers.
    #[must_use]
    pub fn with_numbers(mut self, limit: usize, actual: usize) -> Self {
        self.limit = Some(u32::try_from(limit).unwrap_or(u32::MAX));
        self.actual = Some(u32::try_from(actual).unwrap_or(u32::MAX));
        self
    }

    /// Adds a hint when to come again.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The wire's form.
    #[must_use]
    pub fn to_wire(&self) -> v1::Error {
        v1::Error {
            code: self.code.as_str().into(),
            message: self.message.clone(),
            limit: self.limit,
            actual: self.actual,
        }
    }
}
