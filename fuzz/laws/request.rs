//! What holds for every request that is taken, and for every reason why one is not.

use temperd::request::{ErrorCode, Request, RequestError, check::Bounds};

/// The bounds under which requests are read here.
pub const BOUNDS: Bounds = Bounds { context: 2048, payload_bytes: 4096 };
/// The longest sentence of an error. What it repeats of a client's is bounded.
const SENTENCE: usize = 512;
/// A text of a client's that is so long is recognised in an error, and no word of ours.
const TEXT: usize = 24;

/// What is taken is within all limits.
pub fn taken(request: &Request) {
    assert!(request.input.len() <= BOUNDS.payload_bytes, "too much text");
    assert!(request.id.len() <= 128 && !request.id.chars().any(char::is_control), "a bad id");
    assert!(request.max_tokens.is_none_or(|n| (1..=BOUNDS.context).contains(&n)), "max_tokens");
    assert!(request.stop.len() <= 16 && request.stop.iter().all(|text| (1..=256).contains(&text.len())), "stop");
    assert!(request.logprobs.is_none_or(|n| n <= 20), "logprobs");
    assert!((-1..=1).contains(&request.priority), "priority");
    assert!(request.deadline.is_none_or(|deadline| !deadline.is_zero()), "deadline");
    let s = &request.sampling;
    assert!((0.0..=5.0).contains(&s.temperature) && s.top_p > 0.0 && s.top_p <= 1.0 && s.top_k >= 0, "sampling");
    assert!((0.0..=1.0).contains(&s.min_p) && s.repeat_penalty > 0.0 && s.repeat_penalty <= 10.0, "sampling");
    assert!((-2.0..=2.0).contains(&s.presence_penalty) && (-2.0..=2.0).contains(&s.frequency_penalty), "penalties");
    assert!(s.logit_bias.len() <= 1024 && s.logit_bias.iter().all(|(_, value)| value.abs() <= 100.0), "logit_bias");
    assert!(s.logit_bias.is_sorted_by(|a, b| a.0 < b.0), "a token twice in logit_bias");
}

/// An error says what is wrong, with the numbers, in one bounded line, and does not repeat what the client said.
pub fn refused(error: &RequestError, payload: &[u8]) {
    let RequestError { code, message, param, limit, actual, .. } = error;
    assert!((400..500).contains(&code.http_status()), "a client's fault is no {code}");
    assert!(!message.is_empty() && message.len() <= SENTENCE, "a message of {} bytes", message.len());
    assert!(!message.chars().any(char::is_control), "control characters in {message:?}");
    if *code == ErrorCode::PayloadTooLarge {
        assert!(
            limit < actual && message.contains(&limit.unwrap_or(0).to_string()),
            "{message} of {limit:?}, {actual:?}"
        );
    }
    if let Some(param) = param {
        assert!(message.starts_with(&format!("{param}: ")), "{message} of {param}");
    }
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(payload) {
        let mut texts = Vec::new();
        texts_of(&value, &mut texts);
        let repeated = texts.iter().find(|text| text.len() >= TEXT && message.contains(**text));
        assert!(repeated.is_none(), "{message:?} repeats what was sent");
    }
}

/// All texts in a value but for the names of fields, of which an error may repeat one.
fn texts_of<'a>(value: &'a serde_json::Value, texts: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::String(text) => texts.push(text),
        serde_json::Value::Array(values) => values.iter().for_each(|value| texts_of(value, texts)),
        serde_json::Value::Object(map) => map.values().for_each(|value| texts_of(value, texts)),
        _ => {}
    }
}
