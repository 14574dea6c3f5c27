//! What a request brings → the events of OpenAI's stream. [`Writer`] is pure; [`response`] runs it.
//!
//! A completed stream ends in `data: [DONE]`. One that fails ends in `data: {"error": …}` without it: OpenAI's clients
//! raise that error. While the request is queued, comments (`: ahead 2`) say how many are before it.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{self, KeepAlive, Sse},
};
use futures_util::stream;
use serde::Serialize;

use super::{
    answer::{self, Envelope, Head, Shape, TextChoice, Usage},
    logprobs::{Logprobs, TextLogprobs},
};
use crate::{
    dispatch::{Event, Ticket},
    request::RequestError,
    serve::{grpc, http::error::ErrorBody},
    wire::v1,
};

/// Silence after which a comment shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// `: text`
    Comment(String),
    /// `data: text`
    Data(String),
}

/// Writes one stream.
#[derive(Debug)]
pub struct Writer {
    shape: Shape,
    head: Head,
    include_usage: bool,
    begun: bool,
    /// Characters so far, where log probabilities count them.
    offset: usize,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Writer {
    /// At the beginning of a stream.
    #[must_use]
    pub fn new(shape: Shape, head: Head, include_usage: bool) -> Self {
        Self { shape, head, include_usage, begun: false, offset: 0 }
    }

    /// A piece of the answer, or of the wait for it.
    pub fn chunk(&mut self, chunk: &v1::Chunk) -> Vec<Line> {
        let mut lines = Vec::new();
        if let Some(ahead) = chunk.ahead {
            lines.push(Line::Comment(format!("ahead {ahead}")));
        }
        if !chunk.delta.is_empty() || !chunk.logprobs.is_empty() {
            lines.push(self.piece(Some(&chunk.delta), &chunk.logprobs, None));
        }
        lines
    }

    /// The end.
    pub fn last(&mut self, last: &v1::Final) -> Vec<Line> {
        if let Some(error) = answer::failure(last) {
            return self.failed(&error);
        }
        let mut lines = vec![self.piece(None, &[], Some(answer::finish_reason(last)))];
        if self.include_usage {
            lines.push(self.envelope::<ChatChoice<'_>>(&[], answer::usage(last)));
        }
        lines.push(Line::Data("[DONE]".into()));
        lines
    }

    /// The end, without an answer.
    pub fn failed(&mut self, error: &RequestError) -> Vec<Line> {
        vec![data(&ErrorBody::from(error))]
    }

    fn piece(&mut self, delta: Option<&str>, tokens: &[v1::TokenLogprob], finish_reason: Option<&'static str>) -> Line {
        let first = !std::mem::replace(&mut self.begun, true);
        let logprobs = self.head.logprobs && !tokens.is_empty();
        match self.shape {
            Shape::Chat => {
                let role = first.then_some("assistant");
                // An answer without any text has its role, and an empty content, in its only chunk.
                let content = delta.or(first.then_some(""));
                let logprobs = logprobs.then(|| Logprobs::from(tokens));
                let choice = ChatChoice { index: 0, delta: Delta { role, content }, logprobs, finish_reason };
                self.envelope(&[choice], None)
            }
            Shape::Text => {
                let logprobs = logprobs.then(|| TextLogprobs::new(tokens, &mut self.offset));
                let choice = TextChoice { index: 0, text: delta.unwrap_or_default(), logprobs, finish_reason };
                self.envelope(&[choice], None)
            }
        }
    }

    fn envelope<C: Serialize>(&self, choices: &[C], usage: Option<Usage>) -> Line {
        data(&Envelope {
            id: &self.head.id,
            object: match self.shape {
                Shape::Chat => "chat.completion.chunk",
                Shape::Text => "text_completion",
            },
            created: self.head.created,
            model: &self.head.model,
            choices,
            usage: self.include_usage.then_some(usage),
            timings: None,
        })
    }
}

fn data(value: &impl Serialize) -> Line {
    Line::Data(serde_json::to_string(value).expect("these types have string keys and no failing serialisers"))
}

/// Streams an accepted request. Each event leaves at once; dropping the response drops the ticket, which cancels.
pub fn response(ticket: Ticket, writer: Writer) -> Response {
    let state = (Some(ticket), writer, VecDeque::new());
    let events = stream::unfold(state, |(mut ticket, mut writer, mut lines)| async move {
        while lines.is_empty() {
            match ticket.as_mut()?.next().await {
                Some(Event::Chunk(chunk)) => lines.extend(writer.chunk(&chunk)),
                Some(Event::Final(last)) => {
                    ticket = None;
                    lines.extend(writer.last(&last));
                }
                Some(Event::Embedded(_)) | None => {
                    ticket = None;
                    lines.extend(writer.failed(&grpc::lost()));
                }
            }
        }
        let event = match lines.pop_front()? {
            Line::Comment(text) => sse::Event::default().comment(text),
            Line::Data(text) => sse::Event::default().data(text),
        };
        Some((Ok::<_, Infallible>(event), (ticket, writer, lines)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

#[cfg(test)]
mod tests;
