//! From an outcome to the message that carries it, in the form in which it was asked for, cut to the length that the
//! device can take. Pure.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    codec::Format,
    message::{Message, Qos},
    topics,
};
use crate::{
    request::{Outcome, RequestError, refusal},
    wire::{self, v1},
};

/// How long an answer lives at the least, also where its request's life is over: the word that a request has expired
/// shall still reach a device that waits for it.
const LEAST_LIFE: Duration = Duration::from_secs(10);
/// What is said of an answer that was cut to `max_reply_bytes`.
const CUT: &str = "reply_bytes";

/// Where and how one request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// The topic; allowed.
    pub topic: String,
    /// How the request was written.
    pub format: Format,
    /// The requester's mark.
    pub correlation: Option<Bytes>,
    /// When the request is of no use any more.
    pub expires: Option<Instant>,
    /// Longest payload of the final.
    pub max_bytes: Option<u32>,
    /// Embeddings were asked for: every outcome is an `EmbedReply`.
    pub embeds: bool,
}

impl ReplyTo {
    /// The one outcome, with the whole answer.
    #[must_use]
    pub fn last(&self, mut last: v1::Final, now: Instant) -> Message {
        if self.embeds {
            return self.embedded(last.into(), now);
        }
        let payload = encode_final(self.format, &mut last, self.max_bytes.map(|max| max as usize));
        let mut user = vec![("outcome", last.outcome)];
        push_clean(&mut user, "id", last.id);
        if let Some(reason) = last.finish_reason {
            push_clean(&mut user, "finish_reason", reason);
        }
        if let Some(error) = last.error {
            push_clean(&mut user, "code", error.code);
        }
        push_redecoded(&mut user, last.redecoded);
        self.message(payload, user, now)
    }

    /// The one outcome of a request for embeddings; text has no form for vectors, so it is a line of JSON.
    #[must_use]
    pub fn embedded(&self, reply: v1::EmbedReply, now: Instant) -> Message {
        let payload = encode(self.format, &reply);
        let mut user = vec![("outcome", reply.outcome)];
        push_clean(&mut user, "id", reply.id);
        if let Some(error) = reply.error {
            push_clean(&mut user, "code", error.code);
        }
        push_redecoded(&mut user, reply.redecoded);
        self.message(payload, user, now)
    }

    /// A refusal.
    #[must_use]
    pub fn refused(&self, id: &str, node: &str, error: &RequestError, now: Instant) -> Message {
        self.last(refusal(id, node, error), now)
    }

    /// A piece of an answer. At QoS 0: the final carries the whole, so a lost piece costs nothing.
    #[must_use]
    pub fn chunk(&self, chunk: v1::Chunk, now: Instant) -> Message {
        let payload = match self.format {
            Format::Text => chunk.delta.clone().into_bytes(),
            format => encode(format, &chunk),
        };
        let mut user = vec![("seq", chunk.seq.to_string())];
        push_clean(&mut user, "id", chunk.id);
        Message { qos: Qos::AtMostOnce, ..self.message(payload, user, now) }
    }

    /// The status.
    #[must_use]
    pub fn status(&self, status: &v1::Status, now: Instant) -> Message {
        let payload = match self.format {
            Format::Text if status.ready => b"ready".to_vec(),
            Format::Text => format!("not ready: {}", status.reasons.join(", ")).into_bytes(),
            format => encode(format, status),
        };
        self.message(payload, Vec::new(), now)
    }

    /// What became of a cancel.
    #[must_use]
    pub fn cancel(&self, id: String, found: bool, now: Instant) -> Message {
        let result = if found { Outcome::Cancelled.as_str() } else { "unknown" };
        let reply = v1::CancelReply { id, result: result.into() };
        let payload = match self.format {
            Format::Text => result.as_bytes().to_vec(),
            format => encode(format, &reply),
        };
        let mut user = Vec::new();
        push_clean(&mut user, "id", reply.id);
        self.message(payload, user, now)
    }

    fn message(&self, payload: Vec<u8>, user: Vec<(&'static str, String)>, now: Instant) -> Message {
        Message {
            topic: self.topic.clone(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            content_type: self.format.content_type(),
            utf8: self.format.is_utf8(),
            correlation: self.correlation.clone(),
            user,
            expires: self.lives_until(now),
        }
    }

    /// When an answer that is given now is of no use any more: with its request, but not at once.
    #[must_use]
    pub fn lives_until(&self, now: Instant) -> Option<Instant> {
        self.expires.map(|at| at.max(now + LEAST_LIFE))
    }
}

/// Adds a user property, unless the broker would close the connection over its text.
fn push_clean(user: &mut Vec<(&'static str, String)>, name: &'static str, value: String) {
    if !value.is_empty() && topics::is_clean(&value) {
        user.push((name, value));
    }
}

fn push_redecoded(user: &mut Vec<(&'static str, String)>, redecoded: Option<bool>) {
    if redecoded == Some(true) {
        user.push(("redecoded", "true".into()));
    }
}

/// Writes any message of the schema; text has no general form and is written as JSON.
pub fn encode<M: prost::Message + serde::Serialize>(format: Format, message: &M) -> Vec<u8> {
    match format {
        Format::Protobuf => message.encode_to_vec(),
        Format::Json | Format::Text => wire::to_json(message),
    }
}

/// Bytes of an answer that has no text, no numbers and was cut.
#[must_use]
pub fn least_bytes(format: Format, id: &str, node: &str) -> usize {
    let mut last = v1::Final {
        id: id.into(),
        node: node.into(),
        outcome: Outcome::Completed.as_str().into(),
        finish_reason: Some(CUT.into()),
        message: Some(v1::Message { role: "assistant".into(), ..v1::Message::default() }),
        ..v1::Final::default()
    };
    written(format, &mut last).len()
}

/// Writes a final so that it has at most `max` bytes. What goes first: log probabilities, then text from its end, then,
/// where even an empty text is too long, usage and timings. Whatever is left out, the final says so.
fn encode_final(format: Format, last: &mut v1::Final, max: Option<usize>) -> Vec<u8> {
    let whole = written(format, last);
    let Some(max) = max.filter(|max| whole.len() > *max) else { return whole };
    last.logprobs.clear();
    if last.error.is_none() {
        last.finish_reason = Some(CUT.into());
    }
    for numbers in [true, false] {
        if !numbers {
            last.usage = None;
            last.timings = None;
        }
        let text = std::mem::take(text_of(last));
        let mut fitting = |length: usize| {
            text_of(last).replace_range(.., text.get(..length).unwrap_or_default());
            let payload = written(format, last);
            (payload.len() <= max).then_some(payload)
        };
        if let Some(most) = longest(&text, |length| fitting(length).is_some()) {
            let end = cut(&text, most);
            if let Some(payload) = fitting(end) {
                return payload;
            }
        }
        *text_of(last) = text;
    }
    text_of(last).clear();
    written(format, last)
}

/// The text that may be cut: the answer's or the error's.
fn text_of(last: &mut v1::Final) -> &mut String {
    match &mut last.error {
        Some(error) => &mut error.message,
        None => &mut last.message.get_or_insert_default().content,
    }
}

fn written(format: Format, last: &mut v1::Final) -> Vec<u8> {
    match (format, &last.error) {
        (Format::Text, Some(error)) => format!("error: {}: {}", error.code, error.message).into_bytes(),
        (Format::Text, None) if last.message.is_none() => format!("error: {}", last.outcome).into_bytes(),
        (Format::Text, None) => text_of(last).as_bytes().to_vec(),
        _ => encode(format, last),
    }
}

/// The greatest length of a prefix of whole characters that `fits`; `None` where not even the empty one does. `fits`
/// must hold for every shorter prefix of one that fits.
fn longest(text: &str, mut fits: impl FnMut(usize) -> bool) -> Option<usize> {
    if fits(text.len()) {
        return Some(text.len());
    }
    if !fits(0) {
        return None;
    }
    let (mut good, mut bad) = (0, text.len());
    loop {
        let mut middle = good + (bad - good) / 2;
        while !text.is_char_boundary(middle) {
            middle -= 1;
        }
        if middle == good {
            // The character that begins in the middle is the only one left to try.
            middle = good + text.get(good..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
            if middle >= bad {
                return Some(good);
            }
        }
        if fits(middle) { good = middle } else { bad = middle }
    }
}

/// Where to cut a text of which `most` bytes fit: after the last sentence, unless that leaves less than a quarter of
/// what fits; else after the last word; else there.
fn cut(text: &str, most: usize) -> usize {
    let Some(head) = text.get(..most).filter(|head| head.len() < text.len()) else { return text.len().min(most) };
    let next_is_space = |at: usize| text.get(at..).and_then(|rest| rest.chars().next()).is_none_or(char::is_whitespace);
    let sentence = head.char_indices().rev().find_map(|(at, c)| {
        let end = at + c.len_utf8();
        let ends = match c {
            '。' | '！' | '？' | '\n' => true,
            '.' | '!' | '?' | '…' => next_is_space(end),
            _ => false,
        };
        ends.then_some(end)
    });
    if let Some(end) = sentence.filter(|end| *end >= most / 4) {
        return head.get(..end).map_or(end, |kept| kept.trim_end().len());
    }
    if next_is_space(most) {
        return head.trim_end().len();
    }
    match head.rfind(char::is_whitespace).map(|at| head.get(..at).map_or(at, |kept| kept.trim_end().len())) {
        Some(end) if end > 0 => end,
        _ => most,
    }
}

#[cfg(test)]
#[path = "reply/tests.rs"]
mod tests;
