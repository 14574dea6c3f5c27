//! From the wire's messages to a checked [`Request`]: every field in range, every later feature named as such.

use std::time::Duration;

use super::{Client, Input, Request, RequestError, Role, Sampling, Turn, WayIn, constraint::constraint};
use crate::wire::v1;

/// Bytes of a client's own request id.
const ID_BYTES: usize = 128;
/// Messages of one conversation.
const MESSAGES: usize = 1024;
/// Stop texts of one request, and bytes of each.
const STOPS: usize = 16;
const STOP_BYTES: usize = 256;
/// Entries of `logit_bias`.
const BIASES: usize = 1024;
/// Alternatives per token; OpenAI's own limit.
const TOP_LOGPROBS: i32 = 20;
/// Texts of one request for embeddings.
const INPUTS: usize = 256;
/// Shortest `max_reply_bytes` that can hold a reply without its text.
const REPLY_BYTES: u32 = 256;

/// What the configuration contributes to the check.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Tokens that prompt and answer share; the highest `max_tokens`.
    pub context: u32,
    /// Bytes of one payload.
    pub payload_bytes: usize,
}

/// Checks a conversation.
///
/// # Errors
/// `invalid_request` naming the field, or `payload_too_large`.
pub fn chat(request: v1::ChatRequest, client: Client, way_in: WayIn, bounds: &Bounds) -> Result<Request, RequestError> {
    if request.messages.is_empty() {
        return Err(RequestError::invalid("messages", "must hold at least one message"));
    }
    if request.messages.len() > MESSAGES {
        return Err(RequestError::invalid("messages", format_args!("at most {MESSAGES} are taken"))
            .with_numbers(MESSAGES, request.messages.len()));
    }
    let mut fields = request;
    let messages = std::mem::take(&mut fields.messages);
    let turns = messages.into_iter().enumerate().map(turn).collect::<Result<Vec<_>, _>>()?;
    checked(fields, Input::Chat(turns), client, way_in, bounds)
}

/// Checks a raw prompt.
///
/// # Errors
/// As [`chat`].
pub fn complete(
    request: v1::CompleteRequest,
    client: Client,
    way_in: WayIn,
    bounds: &Bounds,
) -> Result<Request, RequestError> {
    let (prompt, fields) = common_fields(request);
    if prompt.is_empty() {
        return Err(RequestError::invalid("prompt", "must not be empty"));
    }
    checked(fields, Input::Raw(prompt), client, way_in, bounds)
}

/// Checks a request for embeddings.
///
/// # Errors
/// As [`chat`].
pub fn embed(
    request: v1::EmbedRequest,
    client: Client,
    way_in: WayIn,
    bounds: &Bounds,
) -> Result<Request, RequestError> {
    if request.input.is_empty() {
        return Err(RequestError::invalid("input", "must hold at least one text"));
    }
    if request.input.len() > INPUTS {
        return Err(RequestError::invalid("input", format_args!("at most {INPUTS} texts are taken"))
            .with_numbers(INPUTS, request.input.len()));
    }
    if let Some(index) = request.input.iter().position(String::is_empty) {
        return Err(RequestError::invalid(&format!("input[{index}]"), "must not be empty"));
    }
    let fields = v1::ChatRequest {
        id: request.id,
        priority: request.priority,
        deadline_ms: request.deadline_ms,
        ..v1::ChatRequest::default()
    };
    checked(fields, Input::Texts(request.input), client, way_in, bounds)
}

/// The fields that both requests share, in the form of the larger one.
fn common_fields(request: v1::CompleteRequest) -> (String, v1::ChatRequest) {
    let fields = v1::ChatRequest {
        id: request.id,
        messages: Vec::new(),
        profile: request.profile,
        session: request.session,
        adapter: request.adapter,
        max_tokens: request.max_tokens,
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
        logprobs: request.logprobs,
        top_logprobs: request.top_logprobs,
        stream: request.stream,
        priority: request.priority,
        deadline_ms: request.deadline_ms,
        response_format: request.response_format,
        grammar: request.grammar,
        tools: request.tools,
        tool_choice: request.tool_choice,
        max_reply_bytes: request.max_reply_bytes,
        overflow: request.overflow,
        extract: request.extract,
    };
    (request.prompt, fields)
}

fn turn((index, message): (usize, v1::Message)) -> Result<Turn, RequestError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let role = match message.role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => return Err(later(&at("role"), "the role `tool`")),
        _ => return Err(RequestError::invalid(&at("role"), "must be system, user or assistant")),
    };
    if !message.tool_calls.is_empty() {
        return Err(later(&at("tool_calls"), "tools"));
    }
    if message.tool_call_id.is_some() {
        return Err(later(&at("tool_call_id"), "tools"));
    }
    if message.name.is_some() {
        return Err(later(&at("name"), "the name of a speaker"));
    }
    if message.content.is_empty() {
        return Err(RequestError::invalid(&at("content"), "must not be empty"));
    }
    Ok(Turn { role, content: message.content })
}

fn checked(
    fields: v1::ChatRequest,
    input: Input,
    client: Client,
    way_in: WayIn,
    bounds: &Bounds,
) -> Result<Request, RequestError> {
    not_yet(&fields)?;
    if fields.id.len() > ID_BYTES || fields.id.chars().any(char::is_control) {
        return Err(RequestError::invalid("id", format_args!("at most {ID_BYTES} bytes without control characters"))
            .with_numbers(ID_BYTES, fields.id.len()));
    }
    if input.len() > bounds.payload_bytes {
        return Err(RequestError::new(
            super::ErrorCode::PayloadTooLarge,
            format!("the text has {} bytes, the limit is {}", input.len(), bounds.payload_bytes),
        )
        .with_numbers(bounds.payload_bytes, input.len()));
    }
    let max_tokens = fields.max_tokens.map(|n| max_tokens(n, bounds.context)).transpose()?;
    let logprobs = logprobs(fields.logprobs, fields.top_logprobs)?;
    let stop = stops(fields.stop)?;
    let priority = fields.priority.unwrap_or(0);
    if !(-1..=1).contains(&priority) {
        return Err(RequestError::invalid("priority", "must be -1, 0 or 1"));
    }
    if fields.deadline_ms == Some(0) {
        return Err(RequestError::invalid("deadline_ms", "must be at least 1"));
    }
    if let Some(bytes) = fields.max_reply_bytes.filter(|bytes| *bytes < REPLY_BYTES) {
        return Err(RequestError::invalid("max_reply_bytes", format_args!("must be at least {REPLY_BYTES}"))
            .with_numbers(REPLY_BYTES as usize, bytes as usize));
    }
    let sampling = Sampling {
        temperature: in_range("temperature", fields.temperature, 0.8, 0.0..=5.0)?,
        top_p: positive("top_p", in_range("top_p", fields.top_p, 0.95, 0.0..=1.0)?)?,
        top_k: top_k(fields.top_k)?,
        min_p: in_range("min_p", fields.min_p, 0.05, 0.0..=1.0)?,
        repeat_penalty: positive(
            "repeat_penalty",
            in_range("repeat_penalty", fields.repeat_penalty, 1.0, 0.0..=10.0)?,
        )?,
        presence_penalty: in_range("presence_penalty", fields.presence_penalty, 0.0, -2.0..=2.0)?,
        frequency_penalty: in_range("frequency_penalty", fields.frequency_penalty, 0.0, -2.0..=2.0)?,
        seed: fields.seed,
        logit_bias: logit_bias(fields.logit_bias)?,
    };
    Ok(Request {
        id: fields.id,
        client,
        way_in,
        input,
        adapter: fields.adapter,
        sampling,
        max_tokens,
        stop,
        constraint: constraint(fields.response_format, fields.grammar)?,
        logprobs,
        stream: fields.stream.unwrap_or(false),
        priority,
        deadline: fields.deadline_ms.map(|ms| Duration::from_millis(ms.into())),
        max_reply_bytes: fields.max_reply_bytes,
    })
}

/// Fields of the schema that a later version serves.
fn not_yet(fields: &v1::ChatRequest) -> Result<(), RequestError> {
    let set = [
        ("profile", fields.profile.is_some()),
        ("session", fields.session.is_some()),
        ("tools", !fields.tools.is_empty()),
        ("tool_choice", fields.tool_choice.is_some()),
        ("overflow", fields.overflow.is_some()),
        ("extract", fields.extract.is_some()),
    ];
    match set.into_iter().find(|(_, present)| *present) {
        Some((name, _)) => Err(later(name, name)),
        None => Ok(()),
    }
}

fn later(param: &str, what: &str) -> RequestError {
    RequestError::invalid(param, format_args!("{what} is not available yet; leave the field out"))
}

fn max_tokens(n: i32, context: u32) -> Result<u32, RequestError> {
    match u32::try_from(n) {
        Ok(n) if n >= 1 && n <= context => Ok(n),
        _ => {
            let mut error =
                RequestError::invalid("max_tokens", format_args!("is {n}, must be 1 to {context} (the context)"));
            error.limit = Some(context);
            error.actual = u32::try_from(n).ok();
            Err(error)
        }
    }
}

fn top_k(value: Option<i32>) -> Result<i32, RequestError> {
    match value {
        None => Ok(40),
        Some(k) if k >= 0 => Ok(k),
        Some(k) => Err(RequestError::invalid("top_k", format_args!("is {k}, must be 0 (off) or more"))),
    }
}

fn in_range(
    name: &str,
    value: Option<f32>,
    default: f32,
    range: std::ops::RangeInclusive<f32>,
) -> Result<f32, RequestError> {
    let value = value.unwrap_or(default);
    // A NaN is in no range.
    if range.contains(&value) {
        return Ok(value);
    }
    Err(RequestError::invalid(
        name,
        format_args!("is {value}, must be a number from {} to {}", range.start(), range.end()),
    ))
}

fn positive(name: &str, value: f32) -> Result<f32, RequestError> {
    if value > 0.0 {
        return Ok(value);
    }
    Err(RequestError::invalid(name, "must be over 0"))
}

fn logprobs(wanted: Option<bool>, top: Option<i32>) -> Result<Option<u32>, RequestError> {
    match (wanted.unwrap_or(false), top) {
        (true, None) => Ok(Some(0)),
        (true, Some(n)) => match u32::try_from(n) {
            Ok(count) if n <= TOP_LOGPROBS => Ok(Some(count)),
            _ => Err(RequestError::invalid("top_logprobs", format_args!("is {n}, must be 0 to {TOP_LOGPROBS}"))),
        },
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(RequestError::invalid("top_logprobs", "needs `logprobs` to be true")),
    }
}

fn stops(stop: Vec<String>) -> Result<Vec<String>, RequestError> {
    if stop.len() > STOPS {
        return Err(RequestError::invalid("stop", format_args!("at most {STOPS} texts are taken"))
            .with_numbers(STOPS, stop.len()));
    }
    if let Some(bad) = stop.iter().find(|text| text.is_empty() || text.len() > STOP_BYTES) {
        return Err(RequestError::invalid("stop", format_args!("each text must have 1 to {STOP_BYTES} bytes"))
            .with_numbers(STOP_BYTES, bad.len()));
    }
    Ok(stop)
}

fn logit_bias(map: std::collections::HashMap<u32, f32>) -> Result<Vec<(u32, f32)>, RequestError> {
    if map.len() > BIASES {
        return Err(RequestError::invalid("logit_bias", format_args!("at most {BIASES} entries are taken"))
            .with_numbers(BIASES, map.len()));
    }
    if map.values().any(|value| !(-100.0..=100.0).contains(value)) {
        return Err(RequestError::invalid("logit_bias", "each value must be a number from -100 to 100"));
    }
    let mut bias: Vec<_> = map.into_iter().collect();
    bias.sort_by_key(|(token, _)| *token);
    Ok(bias)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::ErrorCode;

    const BOUNDS: Bounds = Bounds { context: 2048, payload_bytes: 4096 };

    fn message(role: &str, content: &str) -> v1::Message {
        v1::Message { role: role.into(), content: content.into(), ..v1::Message::default() }
    }

    fn plain() -> v1::ChatRequest {
        v1::ChatRequest { messages: vec![message("user", "Why?")], ..v1::ChatRequest::default() }
    }

    fn checked(request: v1::ChatRequest) -> Result<Request, RequestError> {
        chat(request, Client::uid(1), WayIn::Grpc, &BOUNDS)
    }

    /// The error of a request that is fine but for one change.
    fn error(change: impl FnOnce(&mut v1::ChatRequest)) -> RequestError {
        let mut request = plain();
        change(&mut request);
        checked(request).unwrap_err()
    }

    fn param(change: impl FnOnce(&mut v1::ChatRequest)) -> String {
        let error = error(change);
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        let param = error.param.unwrap();
        assert!(error.message.starts_with(&format!("{param}: ")), "{}", error.message);
        param
    }

    #[test]
    fn a_question_is_enough() {
        let request = checked(plain()).unwrap();
        assert_eq!(request.input, Input::Chat(vec![Turn { role: Role::User, content: "Why?".into() }]));
        assert_eq!((request.max_tokens, request.deadline, request.logprobs), (None, None, None));
        assert_eq!((request.priority, request.stream), (0, false));
    }

    #[test]
    fn every_field_arrives() {
        let request = v1::ChatRequest {
            id: "a-1".into(),
            adapter: Some("support".into()),
            messages: vec![message("system", "S"), message("user", "U"), message("assistant", "A")],
            max_tokens: Some(2048),
            temperature: Some(0.0),
            top_p: Some(1.0),
            top_k: Some(0),
            min_p: Some(0.0),
            repeat_penalty: Some(1.5),
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(2.0),
            seed: Some(7),
            stop: vec!["</s>".into()],
            logit_bias: [(9, -100.0), (3, 100.0)].into(),
            logprobs: Some(true),
            top_logprobs: Some(20),
            stream: Some(true),
            priority: Some(-1),
            deadline_ms: Some(1),
            max_reply_bytes: Some(REPLY_BYTES),
            ..v1::ChatRequest::default()
        };
        let got = checked(request).unwrap();
        assert_eq!((got.id.as_str(), got.max_tokens, got.logprobs), ("a-1", Some(2048), Some(20)));
        assert_eq!((got.stream, got.priority, got.deadline), (true, -1, Some(Duration::from_millis(1))));
        assert_eq!(got.adapter.as_deref(), Some("support"));
        assert_eq!((got.stop, got.max_reply_bytes), (vec!["</s>".into()], Some(REPLY_BYTES)));
        let expected = Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repeat_penalty: 1.5,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            seed: Some(7),
            logit_bias: vec![(3, 100.0), (9, -100.0)],
        };
        assert_eq!(got.sampling, expected);
    }

    #[test]
    fn a_raw_prompt_keeps_all_its_fields() {
        let request = v1::CompleteRequest {
            id: "c".into(),
            prompt: "[INST] Why? [/INST]".into(),
            max_tokens: Some(3),
            temperature: Some(0.5),
            stop: vec!["</s>".into()],
            stream: Some(true),
            seed: Some(1),
            ..v1::CompleteRequest::default()
        };
        let got = complete(request, Client::uid(1), WayIn::Http, &BOUNDS).unwrap();
        assert_eq!(got.input, Input::Raw("[INST] Why? [/INST]".into()));
        assert_eq!((got.id.as_str(), got.max_tokens, got.sampling.seed), ("c", Some(3), Some(1)));
        assert_eq!((got.sampling.temperature, got.stop.len(), got.stream), (0.5, 1, true));
        let empty = complete(v1::CompleteRequest::default(), Client::uid(1), WayIn::Http, &BOUNDS);
        assert_eq!(empty.unwrap_err().param.as_deref(), Some("prompt"));
    }

    #[test]
    fn messages_that_are_no_conversation() {
        assert_eq!(param(|r| r.messages.clear()), "messages");
        assert_eq!(param(|r| r.messages = vec![message("user", "x"); MESSAGES + 1]), "messages");
        assert_eq!(param(|r| r.messages.push(message("robot", "x"))), "messages[1].role");
        assert_eq!(param(|r| r.messages.push(message("", "x"))), "messages[1].role");
        assert_eq!(param(|r| r.messages.push(message("tool", "x"))), "messages[1].role");
        assert_eq!(param(|r| r.messages.push(message("user", ""))), "messages[1].content");
        assert_eq!(param(|r| r.messages[0].tool_calls.push(v1::ToolCall::default())), "messages[0].tool_calls");
        assert_eq!(param(|r| r.messages[0].tool_call_id = Some("x".into())), "messages[0].tool_call_id");
        assert_eq!(param(|r| r.messages[0].name = Some("x".into())), "messages[0].name");
    }

    #[test]
    fn fields_of_later_versions_are_named() {
        type Change = fn(&mut v1::ChatRequest);
        let changes: [(&str, Change); 6] = [
            ("profile", |r| r.profile = Some(String::new())),
            ("session", |r| r.session = Some(String::new())),
            ("tools", |r| r.tools.push(v1::Tool::default())),
            ("tool_choice", |r| r.tool_choice = Some(String::new())),
            ("overflow", |r| r.overflow = Some(String::new())),
            ("extract", |r| r.extract = Some(String::new())),
        ];
        for (field, change) in changes {
            let error = error(change);
            assert_eq!(error.param.as_deref(), Some(field));
            assert!(error.message.contains("not available yet"), "{}", error.message);
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for n in [0, -1, 2049, i32::MIN, i32::MAX] {
            assert_eq!(param(|r| r.max_tokens = Some(n)), "max_tokens", "{n}");
        }
        assert_eq!((error(|r| r.max_tokens = Some(3000))).limit, Some(2048));
        assert_eq!((error(|r| r.max_tokens = Some(3000))).actual, Some(3000));
        for t in [f32::NAN, f32::INFINITY, -0.1, 5.1] {
            assert_eq!(param(|r| r.temperature = Some(t)), "temperature", "{t}");
        }
        for p in [0.0, -0.0, 1.1, f32::NAN] {
            assert_eq!(param(|r| r.top_p = Some(p)), "top_p", "{p}");
        }
        assert_eq!(param(|r| r.top_k = Some(-1)), "top_k");
        assert_eq!(param(|r| r.min_p = Some(1.1)), "min_p");
        assert_eq!(param(|r| r.repeat_penalty = Some(0.0)), "repeat_penalty");
        assert_eq!(param(|r| r.presence_penalty = Some(2.1)), "presence_penalty");
        assert_eq!(param(|r| r.frequency_penalty = Some(f32::NAN)), "frequency_penalty");
        assert_eq!(param(|r| r.priority = Some(2)), "priority");
        assert_eq!(param(|r| r.deadline_ms = Some(0)), "deadline_ms");
        assert_eq!(param(|r| r.max_reply_bytes = Some(REPLY_BYTES - 1)), "max_reply_bytes");
    }

    #[test]
    fn lists_and_texts_out_of_bounds_are_named() {
        assert_eq!(param(|r| r.id = "x".repeat(ID_BYTES + 1)), "id");
        assert_eq!(param(|r| r.id = "a\nb".into()), "id");
        assert_eq!(param(|r| r.stop = vec!["x".into(); STOPS + 1]), "stop");
        assert_eq!(param(|r| r.stop = vec![String::new()]), "stop");
        assert_eq!(param(|r| r.stop = vec!["x".repeat(STOP_BYTES + 1)]), "stop");
        assert_eq!(param(|r| r.logit_bias = [(1, f32::NAN)].into()), "logit_bias");
        assert_eq!(param(|r| r.logit_bias = [(1, 100.5)].into()), "logit_bias");
        let too_many = u32::try_from(BIASES).unwrap() + 1;
        assert_eq!(param(|r| r.logit_bias = (0..too_many).map(|token| (token, 0.0)).collect()), "logit_bias");
    }

    #[test]
    fn alternatives_need_log_probabilities() {
        assert_eq!(param(|r| r.top_logprobs = Some(1)), "top_logprobs");
        for n in [-1, TOP_LOGPROBS + 1] {
            let both = |r: &mut v1::ChatRequest| (r.logprobs, r.top_logprobs) = (Some(true), Some(n));
            assert_eq!(param(both), "top_logprobs", "{n}");
        }
        let with = |logprobs, top_logprobs| checked(v1::ChatRequest { logprobs, top_logprobs, ..plain() });
        assert_eq!(with(Some(true), None).unwrap().logprobs, Some(0));
        assert_eq!(with(Some(false), Some(0)).unwrap().logprobs, None);
    }

    #[test]
    fn texts_for_embeddings_are_bounded_and_not_empty() {
        let ask = |input: Vec<String>| {
            let request = v1::EmbedRequest { input, ..v1::EmbedRequest::default() };
            super::embed(request, Client::uid(1), WayIn::Http, &BOUNDS)
        };
        let param = |input| ask(input).expect_err("refused").param.expect("a field");
        assert_eq!(ask(vec!["x".into(); INPUTS]).expect("as many as may be").input.len(), INPUTS);
        assert_eq!(param(vec![]), "input");
        assert_eq!(param(vec!["x".into(); INPUTS + 1]), "input");
        assert_eq!(param(vec!["x".into(), String::new()]), "input[1]");
        let half = "x".repeat(BOUNDS.payload_bytes / 2);
        let error = ask(vec![half.clone(), format!("{half}x")]).expect_err("too large");
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::PayloadTooLarge, Some(4096), Some(4097)));
    }

    #[test]
    fn all_texts_together_are_bounded() {
        let half = "x".repeat(BOUNDS.payload_bytes / 2);
        let at = |extra: &str| {
            checked(v1::ChatRequest {
                messages: vec![message("system", &half), message("user", &format!("{half}{extra}"))],
                ..v1::ChatRequest::default()
            })
        };
        at("").unwrap();
        let error = at("x").unwrap_err();
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::PayloadTooLarge, Some(4096), Some(4097)));
    }

    proptest! {
        /// Whatever comes in: no panic, no text of the question in an error, and what is accepted is in range.
        #[test]
        fn what_is_accepted_is_in_range(
            max_tokens in any::<Option<i32>>(),
            floats in prop::collection::vec(prop_oneof![any::<Option<f32>>(), prop::option::of(-3.0..12.0_f32)], 6),
            top_k in any::<Option<i32>>(),
            bias in any::<(u32, f32)>(),
            role in "user|system|assistant|other",
        ) {
            let request = v1::ChatRequest {
                messages: vec![message(&role, "sesame")],
                max_tokens,
                temperature: floats[0],
                top_p: floats[1],
                min_p: floats[2],
                repeat_penalty: floats[3],
                presence_penalty: floats[4],
                frequency_penalty: floats[5],
                top_k,
                logit_bias: [bias].into(),
                ..v1::ChatRequest::default()
            };
            match checked(request) {
                Err(error) => prop_assert!(!error.to_string().contains("sesame")),
                Ok(request) => {
                    let s = request.sampling;
                    prop_assert!(request.max_tokens.is_none_or(|n| (1..=BOUNDS.context).contains(&n)));
                    prop_assert!((0.0..=5.0).contains(&s.temperature) && s.top_p > 0.0 && s.top_p <= 1.0);
                    prop_assert!((0.0..=1.0).contains(&s.min_p) && s.repeat_penalty > 0.0 && s.repeat_penalty <= 10.0);
                    prop_assert!((-2.0..=2.0).contains(&s.presence_penalty));
                    prop_assert!((-2.0..=2.0).contains(&s.frequency_penalty));
                    prop_assert!(s.top_k >= 0 && s.logit_bias.iter().all(|(_, value)| value.abs() <= 100.0));
                }
            }
        }
    }
}
