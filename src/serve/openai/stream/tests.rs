use super::*;

fn writer(shape: Shape, logprobs: bool, include_usage: bool) -> Writer {
    let head = Head { id: "q1".into(), created: 17, model: "m".into(), logprobs };
    Writer::new(shape, head, include_usage)
}

fn delta(text: &str) -> v1::Chunk {
    let logprobs = vec![v1::TokenLogprob {
        token: text.into(),
        logprob: -0.5,
        bytes: text.as_bytes().to_vec().into(),
        top_logprobs: Vec::new(),
    }];
    v1::Chunk { delta: text.into(), logprobs, ..v1::Chunk::default() }
}

fn completed() -> v1::Final {
    v1::Final {
        outcome: "completed".into(),
        finish_reason: Some("stop".into()),
        usage: Some(v1::Usage { prompt_tokens: 5, completion_tokens: 2, cached_tokens: 0 }),
        ..v1::Final::default()
    }
}

fn data(text: impl Into<String>) -> Line {
    Line::Data(text.into())
}

fn chat(choice: &str, usage: &str) -> Line {
    data(format!(
        r#"{{"id":"q1","object":"chat.completion.chunk","created":17,"model":"m","choices":[{choice}]{usage}}}"#
    ))
}

#[test]
fn a_chat_stream() {
    let mut writer = writer(Shape::Chat, false, false);
    let role = r#"{"index":0,"delta":{"role":"assistant","content":"Pa"},"logprobs":null,"finish_reason":null}"#;
    assert_eq!(writer.chunk(&delta("Pa")), [chat(role, "")]);
    let piece = r#"{"index":0,"delta":{"content":"ris"},"logprobs":null,"finish_reason":null}"#;
    assert_eq!(writer.chunk(&delta("ris")), [chat(piece, "")]);
    let end = r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#;
    assert_eq!(writer.last(&completed()), [chat(end, ""), data("[DONE]")]);
}

#[test]
fn usage_comes_last_and_is_null_before() {
    let mut writer = writer(Shape::Chat, false, true);
    let role = r#"{"index":0,"delta":{"role":"assistant","content":"Pa"},"logprobs":null,"finish_reason":null}"#;
    assert_eq!(writer.chunk(&delta("Pa")), [chat(role, r#","usage":null"#)]);
    let end = r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#;
    let usage = r#","usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":0}}"#;
    assert_eq!(writer.last(&completed()), [chat(end, r#","usage":null"#), chat("", usage), data("[DONE]")]);
}

#[test]
fn an_empty_answer_has_its_role_too() {
    let end = r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":"stop"}"#;
    assert_eq!(writer(Shape::Chat, false, false).last(&completed()), [chat(end, ""), data("[DONE]")]);
}

#[test]
fn waiting_is_a_comment() {
    let mut writer = writer(Shape::Chat, false, false);
    let queued = v1::Chunk { ahead: Some(2), ..v1::Chunk::default() };
    assert_eq!(writer.chunk(&queued), [Line::Comment("ahead 2".into())]);
    assert_eq!(writer.chunk(&v1::Chunk::default()), []);
}

#[test]
fn logprobs_go_with_their_piece() {
    let mut chat_writer = writer(Shape::Chat, true, false);
    let role = r#"{"index":0,"delta":{"role":"assistant","content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}],"refusal":null},"finish_reason":null}"#;
    assert_eq!(chat_writer.chunk(&delta("a")), [chat(role, "")]);

    let mut text_writer = writer(Shape::Text, true, false);
    let piece = |text: &str, offset: usize| {
        data(format!(
            r#"{{"id":"q1","object":"text_completion","created":17,"model":"m","choices":[{{"index":0,"text":"{text}","logprobs":{{"tokens":["{text}"],"token_logprobs":[-0.5],"top_logprobs":null,"text_offset":[{offset}]}},"finish_reason":null}}]}}"#
        ))
    };
    assert_eq!(text_writer.chunk(&delta("水")), [piece("水", 0)]);
    assert_eq!(text_writer.chunk(&delta("b")), [piece("b", 1)]);
    let end = r#"{"id":"q1","object":"text_completion","created":17,"model":"m","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}"#;
    assert_eq!(text_writer.last(&completed()), [data(end), data("[DONE]")]);
}

#[test]
fn a_failure_ends_the_stream_without_done() {
    let mut writer = writer(Shape::Chat, false, true);
    writer.chunk(&delta("Pa"));
    let last = v1::Final { outcome: "expired".into(), ..v1::Final::default() };
    let error =
        r#"{"error":{"message":"the request ended as expired","type":"server_error","param":null,"code":"expired"}}"#;
    assert_eq!(writer.last(&last), [data(error)]);
}
