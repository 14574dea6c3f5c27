use super::*;

fn head(logprobs: bool) -> Head {
    Head { id: "q1".into(), created: 1_700_000_000, model: "m".into(), logprobs }
}

fn completed() -> v1::Final {
    v1::Final {
        id: "q1".into(),
        outcome: "completed".into(),
        finish_reason: Some("stop".into()),
        message: Some(v1::Message { role: "assistant".into(), content: "Paris".into(), ..v1::Message::default() }),
        usage: Some(v1::Usage { prompt_tokens: 5, completion_tokens: 2, cached_tokens: 4 }),
        timings: Some(v1::Timings { queued_ms: 1, ttft_ms: Some(2), total_ms: 3 }),
        logprobs: vec![v1::TokenLogprob {
            token: "Paris".into(),
            logprob: -0.5,
            bytes: "Paris".into(),
            top_logprobs: Vec::new(),
        }],
        ..v1::Final::default()
    }
}

fn text(shape: Shape, head: &Head, last: &v1::Final) -> String {
    String::from_utf8(body(shape, head, last)).unwrap()
}

const TAIL: &str = r#""usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":4}},"timings":{"queued_ms":1,"ttft_ms":2,"total_ms":3}}"#;

#[test]
fn a_chat_completion() {
    let begin = r#"{"id":"q1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Paris","refusal":null},"#;
    assert_eq!(
        text(Shape::Chat, &head(false), &completed()),
        format!(r#"{begin}"logprobs":null,"finish_reason":"stop"}}],{TAIL}"#)
    );
    assert_eq!(
        text(Shape::Chat, &head(true), &completed()),
        format!(
            r#"{begin}"logprobs":{{"content":[{{"token":"Paris","logprob":-0.5,"bytes":[80,97,114,105,115],"top_logprobs":[]}}],"refusal":null}},"finish_reason":"stop"}}],{TAIL}"#
        )
    );
}

#[test]
fn a_completion() {
    let begin = r#"{"id":"q1","object":"text_completion","created":1700000000,"model":"m","choices":[{"index":0,"text":"Paris","#;
    let mut last = completed();
    last.finish_reason = Some("length".into());
    assert_eq!(
        text(Shape::Text, &head(false), &last),
        format!(r#"{begin}"logprobs":null,"finish_reason":"length"}}],{TAIL}"#)
    );
    assert_eq!(
        text(Shape::Text, &head(true), &last),
        format!(
            r#"{begin}"logprobs":{{"tokens":["Paris"],"token_logprobs":[-0.5],"top_logprobs":null,"text_offset":[0]}},"finish_reason":"length"}}],{TAIL}"#
        )
    );
}

#[test]
fn finish_reasons_are_openais_words() {
    let words = [
        ("stop", "stop"),
        ("length", "length"),
        ("reply_bytes", "length"),
        ("loop", "stop"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
    ];
    for (ours, theirs) in words {
        assert_eq!(finish_reason(&v1::Final { finish_reason: Some(ours.into()), ..v1::Final::default() }), theirs);
    }
}

#[test]
fn other_outcomes_are_errors() {
    assert_eq!(failure(&completed()), None);
    let ended = |outcome: &str, code: Option<&str>| {
        let error =
            code.map(|code| v1::Error { code: code.into(), message: "why".into(), limit: Some(1), actual: Some(2) });
        let last = v1::Final { outcome: outcome.into(), error, retry_after_ms: Some(9), ..v1::Final::default() };
        failure(&last).unwrap()
    };
    assert_eq!(ended("expired", None).code, ErrorCode::Expired);
    assert_eq!(ended("cancelled", None).code, ErrorCode::Cancelled);
    assert_eq!(ended("failed", None).code, ErrorCode::Internal);
    assert_eq!(ended("failed", Some("not known here")).code, ErrorCode::Internal);
    let error = ended("failed", Some("draining"));
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Draining, "why"));
    assert_eq!((error.limit, error.actual, error.retry_after_ms), (Some(1), Some(2), Some(9)));
}
