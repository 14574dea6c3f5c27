//! What a request brought → OpenAI's JSON, as a whole.

use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::logprobs::{Logprobs, TextLogprobs};
use crate::{
    request::{ErrorCode, RequestError},
    wire::v1,
};

/// Which endpoint's form an answer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// What stands in every answer and every chunk.
#[derive(Debug, Clone)]
pub struct Head {
    /// Our id of the request; OpenAI's clients treat it as opaque.
    pub id: String,
    /// Unix time in seconds.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Whether log probabilities were asked for.
    pub logprobs: bool,
}

/// An answer or a chunk.
#[derive(Serialize)]
pub(super) struct Envelope<'a, C> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: &'a [C],
    /// Absent, `null` or there: a stream with `include_usage` has all three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// An addition of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

#[derive(Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Serialize)]
pub(super) struct Timings {
    queued_ms: u32,
    ttft_ms: Option<u32>,
    total_ms: u32,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
pub(super) struct TextChoice<'a> {
    pub index: u32,
    pub text: &'a str,
    pub logprobs: Option<TextLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
}

pub(super) fn usage(last: &v1::Final) -> Option<Usage> {
    let usage = last.usage.as_ref()?;
    Some(Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
    })
}

fn timings(last: &v1::Final) -> Option<Timings> {
    let timings = last.timings.as_ref()?;
    Some(Timings { queued_ms: timings.queued_ms, ttft_ms: timings.ttft_ms, total_ms: timings.total_ms })
}

/// OpenAI's words for ours.
pub(super) fn finish_reason(last: &v1::Final) -> &'static str {
    match last.finish_reason.as_deref() {
        Some("length" | "reply_bytes") => "length",
        Some("tool_calls") => "tool_calls",
        Some("content_filter") => "content_filter",
        _ => "stop",
    }
}

/// The error of a request that was accepted and not completed.
pub fn failure(last: &v1::Final) -> Option<RequestError> {
    failure_of(&last.outcome, last.error.as_ref(), last.retry_after_ms)
}

/// The same of an outcome in whatever message.
pub fn failure_of(outcome: &str, error: Option<&v1::Error>, retry_after_ms: Option<u32>) -> Option<RequestError> {
    let by_outcome = match outcome {
        "completed" => return None,
        "expired" => ErrorCode::Expired,
        "cancelled" => ErrorCode::Cancelled,
        _ => ErrorCode::Internal,
    };
    let mut error = match error {
        None => RequestError::new(by_outcome, format!("the request ended as {outcome}")),
        Some(error) => RequestError {
            limit: error.limit,
            actual: error.actual,
            ..RequestError::new(ErrorCode::from_wire(&error.code).unwrap_or(by_outcome), error.message.clone())
        },
    };
    error.retry_after_ms = retry_after_ms;
    Some(error)
}

/// The body of a plain answer.
#[must_use]
pub fn body(shape: Shape, head: &Head, last: &v1::Final) -> Vec<u8> {
    let text = last.message.as_ref().map_or("", |message| message.content.as_str());
    let finish_reason = finish_reason(last);
    match shape {
        Shape::Chat => {
            let choice = ChatChoice {
                index: 0,
                message: Message { role: "assistant", content: text, refusal: None },
                logprobs: head.logprobs.then(|| Logprobs::from(&last.logprobs[..])),
                finish_reason,
            };
            write(&envelope("chat.completion", head, &[choice], last))
        }
        Shape::Text => {
            let choice = TextChoice {
                index: 0,
                text,
                logprobs: head.logprobs.then(|| TextLogprobs::new(&last.logprobs, &mut 0)),
                finish_reason: Some(finish_reason),
            };
            write(&envelope("text_completion", head, &[choice], last))
        }
    }
}

fn envelope<'a, C>(object: &'static str, head: &'a Head, choices: &'a [C], last: &v1::Final) -> Envelope<'a, C> {
    Envelope {
        id: &head.id,
        object,
        created: head.created,
        model: &head.model,
        choices,
        usage: usage(last).map(Some),
        timings: timings(last),
    }
}

pub(super) fn write(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have string keys and no failing serialisers")
}

/// The same as a response.
#[must_use]
pub fn response(shape: Shape, head: &Head, last: &v1::Final) -> Response {
    ([(axum::http::header::CONTENT_TYPE, "application/json")], body(shape, head, last)).into_response()
}

#[cfg(test)]
mod tests;
