//! OpenAI's JSON → the request of the schema. Fields that the schema lacks are taken at their neutral value.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::{Fields, Neutral};
use crate::{
    request::{Client, RequestError},
    wire::v1,
};

/// Bytes of `user`.
const USER_BYTES: usize = 128;
/// The most alternatives that legacy `logprobs` takes; OpenAI's own limit.
const LEGACY_LOGPROBS: i32 = 5;

/// A request, and what of it the schema has no place for.
#[derive(Debug)]
pub struct Asked<T> {
    /// The request.
    pub request: T,
    /// The model that is asked.
    pub model: String,
    /// Whom a gateway asks for.
    pub user: Option<String>,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
}

impl<T> Asked<T> {
    /// Whose request it is: `user` counts only where the peer speaks for others.
    pub fn client(&self, uid: u32, is_gateway: bool) -> Client {
        match &self.user {
            Some(user) if is_gateway => Client::gateway_user(uid, user),
            _ => Client::uid(uid),
        }
    }
}

const LATER: &str = "is not available yet; leave the field out";
const NEVER: &str = "is not supported; leave the field out";

/// Fields of both endpoints.
const COMMON: [Neutral; 13] = [
    Neutral { name: "n", is: |v| *v == 1, otherwise: "must be 1" },
    Neutral { name: "metadata", is: is_empty, otherwise: NEVER },
    Neutral { name: "store", is: |v| *v == false, otherwise: "must be false: answers are not stored" },
    Neutral { name: "service_tier", is: |v| one_of(v, &["auto", "default"]), otherwise: "must be auto or default" },
    // Hints to a hosted service, without an effect on the answer.
    Neutral { name: "safety_identifier", is: Value::is_string, otherwise: "must be a string" },
    Neutral { name: "prompt_cache_key", is: Value::is_string, otherwise: "must be a string" },
    Neutral { name: "prompt_cache_options", is: Value::is_object, otherwise: "must be an object" },
    Neutral { name: "prompt_cache_retention", is: Value::is_string, otherwise: "must be a string" },
    // Fields of our own schema that are not served here, or not yet.
    Neutral { name: "profile", is: |_| false, otherwise: LATER },
    Neutral { name: "session", is: |_| false, otherwise: LATER },
    Neutral { name: "overflow", is: |_| false, otherwise: LATER },
    Neutral { name: "extract", is: |_| false, otherwise: LATER },
    Neutral { name: "max_reply_bytes", is: |_| false, otherwise: "holds for MQTT only; use `max_tokens` here" },
];

/// Fields of chat completions alone.
const CHAT: [Neutral; 12] = [
    Neutral { name: "tools", is: is_empty, otherwise: LATER },
    Neutral { name: "tool_choice", is: |v| one_of(v, &["none", "auto"]), otherwise: LATER },
    // Without tools there is nothing that could run in parallel.
    Neutral { name: "parallel_tool_calls", is: Value::is_boolean, otherwise: "must be a boolean" },
    Neutral { name: "functions", is: is_empty, otherwise: LATER },
    Neutral { name: "function_call", is: |v| one_of(v, &["none", "auto"]), otherwise: LATER },
    Neutral { name: "modalities", is: |v| *v == serde_json::json!(["text"]), otherwise: "must be [\"text\"]" },
    Neutral { name: "audio", is: |_| false, otherwise: NEVER },
    Neutral { name: "prediction", is: |_| false, otherwise: NEVER },
    Neutral { name: "reasoning_effort", is: |v| one_of(v, &["none"]), otherwise: "must be none" },
    Neutral { name: "verbosity", is: |v| one_of(v, &["medium"]), otherwise: "must be medium" },
    Neutral { name: "web_search_options", is: |_| false, otherwise: NEVER },
    Neutral { name: "moderation", is: |_| false, otherwise: NEVER },
];

/// Fields of completions alone.
const COMPLETION: [Neutral; 3] = [
    Neutral { name: "best_of", is: |v| *v == 1, otherwise: "must be 1" },
    Neutral { name: "echo", is: |v| *v == false, otherwise: "must be false" },
    Neutral { name: "suffix", is: |v| *v == "", otherwise: NEVER },
];

/// Fields of one message that are taken empty: what OpenAI's clients send back of an earlier answer.
const MESSAGE: [Neutral; 6] = [
    Neutral { name: "tool_calls", is: is_empty, otherwise: LATER },
    Neutral { name: "tool_call_id", is: |_| false, otherwise: LATER },
    Neutral { name: "function_call", is: |_| false, otherwise: LATER },
    Neutral { name: "refusal", is: |_| false, otherwise: NEVER },
    Neutral { name: "annotations", is: is_empty, otherwise: NEVER },
    Neutral { name: "audio", is: |_| false, otherwise: NEVER },
];

/// Fields of one part of a content; another hint to a hosted service.
const PART: [Neutral; 1] =
    [Neutral { name: "prompt_cache_breakpoint", is: Value::is_object, otherwise: "must be an object" }];

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn one_of(value: &Value, words: &[&str]) -> bool {
    value.as_str().is_some_and(|value| words.contains(&value))
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or an array of strings")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or an array of parts")]
enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// Padding against observers of the network; there is no network here.
    include_obfuscation: Option<bool>,
}

/// Reads the body of `/v1/chat/completions`. `context` is the highest `max_tokens`.
pub fn chat(body: &[u8], context: u32) -> Result<Asked<v1::ChatRequest>, RequestError> {
    let mut fields = Fields::parse(body)?;
    let messages: Vec<Map<String, Value>> = fields.require("messages")?;
    let messages = messages.into_iter().enumerate().map(message).collect::<Result<_, _>>()?;
    let logprobs = fields.take("logprobs")?;
    let top_logprobs = fields.take("top_logprobs")?;
    // The newer name of `max_tokens`, which OpenAI's completions never had.
    let completion_tokens = tokens(&mut fields, "max_completion_tokens", context)?;
    fields.neutral(&CHAT)?;
    let Asked { request, model, user, include_usage } = common(fields, context)?;
    let max_tokens = match (request.max_tokens, completion_tokens) {
        (Some(old), Some(new)) if old != new => {
            return Err(RequestError::invalid("max_completion_tokens", "differs from `max_tokens`; send one of them"));
        }
        (old, new) => new.or(old),
    };
    let request = v1::ChatRequest {
        id: request.id,
        adapter: request.adapter,
        messages,
        max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        repeat_penalty: request.repeat_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        seed: request.seed,
        stop: request.stop,
        logit_bias: request.logit_bias,
        logprobs,
        top_logprobs,
        stream: request.stream,
        priority: request.priority,
        deadline_ms: request.deadline_ms,
        response_format: request.response_format,
        grammar: request.grammar,
        ..v1::ChatRequest::default()
    };
    Ok(Asked { request, model, user, include_usage })
}

/// Reads the body of `/v1/completions`.
pub fn completion(body: &[u8], context: u32) -> Result<Asked<v1::CompleteRequest>, RequestError> {
    let mut fields = Fields::parse(body)?;
    let prompt = match fields.require("prompt")? {
        Texts::One(prompt) => prompt,
        Texts::Many(prompts) => match <[String; 1]>::try_from(prompts) {
            Ok([prompt]) => prompt,
            Err(_) => return Err(RequestError::invalid("prompt", "must be one text, or an array of one")),
        },
    };
    let logprobs: Option<i32> = fields.take("logprobs")?;
    if let Some(n) = logprobs.filter(|n| !(0..=LEGACY_LOGPROBS).contains(n)) {
        return Err(RequestError::invalid("logprobs", format_args!("is {n}, must be 0 to {LEGACY_LOGPROBS}")));
    }
    fields.neutral(&COMPLETION)?;
    let mut asked = common(fields, context)?;
    asked.request.prompt = prompt;
    asked.request.logprobs = logprobs.map(|_| true);
    asked.request.top_logprobs = logprobs;
    Ok(asked)
}

/// The fields of both endpoints, in the form of the smaller request; ends the reading.
fn common(mut fields: Fields, context: u32) -> Result<Asked<v1::CompleteRequest>, RequestError> {
    let model = fields.require("model")?;
    let user = user(&mut fields)?;
    let stream = fields.take("stream")?;
    let options: Option<StreamOptions> = fields.take("stream_options")?;
    if options.is_some() && stream != Some(true) {
        return Err(RequestError::invalid("stream_options", "needs `stream` to be true"));
    }
    let options = options.unwrap_or_default();
    if options.include_obfuscation == Some(true) {
        return Err(RequestError::invalid("stream_options.include_obfuscation", "must be false"));
    }
    let stop = match fields.take("stop")? {
        None => Vec::new(),
        Some(Texts::One(text)) => vec![text],
        Some(Texts::Many(texts)) => texts,
    };
    let request = v1::CompleteRequest {
        id: fields.take("id")?.unwrap_or_default(),
        adapter: fields.take("adapter")?,
        max_tokens: tokens(&mut fields, "max_tokens", context)?,
        temperature: fields.take("temperature")?,
        top_p: fields.take("top_p")?,
        top_k: fields.take("top_k")?,
        min_p: fields.take("min_p")?,
        repeat_penalty: fields.take("repeat_penalty")?,
        presence_penalty: fields.take("presence_penalty")?,
        frequency_penalty: fields.take("frequency_penalty")?,
        seed: fields.take("seed")?.map(seed),
        stop,
        logit_bias: fields.take("logit_bias")?.unwrap_or_default(),
        stream,
        priority: fields.take("priority")?,
        deadline_ms: fields.take("deadline_ms")?,
        response_format: response_format(&mut fields)?,
        // As in llama-server, OpenAI has none.
        grammar: fields.take("grammar")?,
        ..v1::CompleteRequest::default()
    };
    fields.neutral(&COMMON)?;
    fields.finish()?;
    Ok(Asked { request, model, user, include_usage: options.include_usage.unwrap_or(false) })
}

/// OpenAI's form of it, with the schema as a value. `strict` asks for what is done anyway; name and description are for
/// models that are told of the schema.
fn response_format(fields: &mut Fields) -> Result<Option<v1::ResponseFormat>, RequestError> {
    let Some(map) = fields.take("response_format")? else { return Ok(None) };
    let mut format = Fields::new("response_format.".into(), map);
    let kind: String = format.require("type")?;
    let mut schema = None;
    if kind == "json_schema" {
        let mut inner = Fields::new("response_format.json_schema.".into(), format.require("json_schema")?);
        schema = Some(inner.require::<Value>("schema")?.to_string());
        inner.take::<String>("name")?;
        inner.take::<String>("description")?;
        inner.take::<bool>("strict")?;
        inner.finish()?;
    }
    format.finish()?;
    Ok(Some(v1::ResponseFormat { r#type: kind, schema }))
}

/// Whom a gateway asks for.
pub(super) fn user(fields: &mut Fields) -> Result<Option<String>, RequestError> {
    let user: Option<String> = fields.take("user")?;
    if user.as_deref().is_some_and(|user| !(1..=USER_BYTES).contains(&user.len()) || user.contains(char::is_control)) {
        let message = format_args!("must have 1 to {USER_BYTES} bytes and no control characters");
        return Err(RequestError::invalid("user", message));
    }
    Ok(user)
}

/// An answer's length under either of its names; the error carries the one that was used.
fn tokens(fields: &mut Fields, name: &str, context: u32) -> Result<Option<i32>, RequestError> {
    let Some(n) = fields.take::<i64>(name)? else { return Ok(None) };
    match i32::try_from(n) {
        Ok(tokens) if n >= 1 && n <= i64::from(context) => Ok(Some(tokens)),
        _ => {
            let message = format_args!("is {n}, must be 1 to {context} (the context)");
            let mut error = RequestError::invalid(name, message);
            error.limit = Some(context);
            error.actual = u32::try_from(n).ok();
            Err(error)
        }
    }
}

/// OpenAI's seeds have 64 bits, ours 32: both halves are combined, so that every seed up to 2³² - 1 stays as it is.
fn seed(seed: i64) -> u32 {
    let [a, b, c, d, e, f, g, h] = seed.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h])
}

fn message((index, map): (usize, Map<String, Value>)) -> Result<v1::Message, RequestError> {
    let mut fields = Fields::new(format!("messages[{index}]."), map);
    let mut role: String = fields.require("role")?;
    // OpenAI's newer name.
    if role == "developer" {
        role = "system".into();
    }
    fields.neutral(&MESSAGE)?;
    let name = fields.take("name")?;
    let content = match fields.require("content")? {
        Content::Text(text) => text,
        Content::Parts(parts) => {
            let at = fields.name("content");
            let parts = parts.into_iter().enumerate().map(|(index, part)| text_part(format!("{at}[{index}]."), part));
            parts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
    };
    fields.finish()?;
    Ok(v1::Message { role, content, name, ..v1::Message::default() })
}

/// The text of one part; parts are joined with line ends, as other servers of this interface do it.
fn text_part(at: String, part: Map<String, Value>) -> Result<String, RequestError> {
    let mut fields = Fields::new(at, part);
    let kind: String = fields.require("type")?;
    if kind != "text" {
        return Err(RequestError::invalid(&fields.name("type"), "must be text"));
    }
    let text = fields.require("text")?;
    fields.neutral(&PART)?;
    fields.finish()?;
    Ok(text)
}

#[cfg(test)]
mod tests;
