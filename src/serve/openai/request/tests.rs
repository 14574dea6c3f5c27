use serde_json::json;

use super::*;
use crate::request::{ErrorCode, Input, WayIn, check};

const CONTEXT: u32 = 8192;

/// A chat request with further fields.
fn ask(more: Value) -> Result<Asked<v1::ChatRequest>, RequestError> {
    with(json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}), more)
}

fn with(mut body: Value, more: Value) -> Result<Asked<v1::ChatRequest>, RequestError> {
    body.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
    chat(body.to_string().as_bytes(), CONTEXT)
}

fn ask_text(more: Value) -> Result<Asked<v1::CompleteRequest>, RequestError> {
    let mut body = json!({"model": "m", "prompt": "[INST] Hello [/INST]"});
    body.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
    completion(body.to_string().as_bytes(), CONTEXT)
}

fn param<T>(result: Result<Asked<T>, RequestError>) -> String {
    let error = result.err().expect("the request was taken");
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    error.param.expect("the error names no field")
}

#[test]
fn every_field_we_have_is_carried_over() {
    let asked = ask(json!({
        "id": "q1", "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125,
        "repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1.5, "seed": 42, "stop": ["a", "b"],
        "logit_bias": {"5": -100, "7": 2.5}, "logprobs": true, "top_logprobs": 2, "stream": true, "priority": -1,
        "deadline_ms": 500, "user": "alice", "stream_options": {"include_usage": true}
    }))
    .unwrap();
    let expected = v1::ChatRequest {
        id: "q1".into(),
        messages: vec![v1::Message { role: "user".into(), content: "Hello".into(), ..v1::Message::default() }],
        max_tokens: Some(7),
        temperature: Some(0.5),
        top_p: Some(0.25),
        top_k: Some(3),
        min_p: Some(0.125),
        repeat_penalty: Some(1.5),
        presence_penalty: Some(1.0),
        frequency_penalty: Some(-1.5),
        seed: Some(42),
        stop: vec!["a".into(), "b".into()],
        logit_bias: [(5, -100.0), (7, 2.5)].into(),
        logprobs: Some(true),
        top_logprobs: Some(2),
        stream: Some(true),
        priority: Some(-1),
        deadline_ms: Some(500),
        ..v1::ChatRequest::default()
    };
    assert_eq!(asked.request, expected);
    assert_eq!((asked.model.as_str(), asked.user.as_deref(), asked.include_usage), ("m", Some("alice"), true));
    assert_eq!(asked.client(1, false), Client::uid(1));
    assert_eq!(asked.client(1, true), Client::gateway_user(1, "alice"));
}

#[test]
fn null_equals_absent_for_every_field() {
    let plain = ask(json!({})).unwrap().request;
    let names = [
        "id",
        "max_completion_tokens",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream",
        "priority",
        "deadline_ms",
        "user",
        "stream_options",
        "never_heard_of",
    ];
    let neutral = COMMON.iter().chain(&CHAT).map(|neutral| neutral.name);
    for name in names.into_iter().chain(neutral) {
        assert_eq!(ask(json!({name: null})).unwrap().request, plain, "{name}");
    }
    assert_eq!(param(ask(json!({"model": null}))), "model");
    assert_eq!(param(ask(json!({"messages": null}))), "messages");
}

#[test]
fn neutral_values_are_taken_and_others_name_the_field() {
    let cases: [(&str, &[Value], &[Value]); 25] = [
        ("n", &[json!(1)], &[json!(2), json!("1")]),
        ("metadata", &[json!({})], &[json!({"a": "b"})]),
        ("store", &[json!(false)], &[json!(true)]),
        ("service_tier", &[json!("auto"), json!("default")], &[json!("flex")]),
        ("safety_identifier", &[json!("x")], &[json!(1)]),
        ("prompt_cache_key", &[json!("x")], &[json!(1)]),
        ("prompt_cache_options", &[json!({"mode": "implicit"})], &[json!("implicit")]),
        ("prompt_cache_retention", &[json!("24h")], &[json!(1)]),
        ("tools", &[json!([])], &[json!([{"type": "function"}])]),
        ("tool_choice", &[json!("none"), json!("auto")], &[json!("required"), json!({})]),
        ("parallel_tool_calls", &[json!(true), json!(false)], &[json!(1)]),
        ("functions", &[json!([])], &[json!([{}])]),
        ("function_call", &[json!("none"), json!("auto")], &[json!({"name": "f"})]),
        ("modalities", &[json!(["text"])], &[json!(["text", "audio"])]),
        ("audio", &[], &[json!({})]),
        ("prediction", &[], &[json!({})]),
        ("reasoning_effort", &[json!("none")], &[json!("low")]),
        ("verbosity", &[json!("medium")], &[json!("high")]),
        ("web_search_options", &[], &[json!({})]),
        ("moderation", &[], &[json!({})]),
        ("profile", &[], &[json!("p")]),
        ("session", &[], &[json!("s")]),
        ("adapter", &[], &[json!(1)]),
        ("max_reply_bytes", &[], &[json!(300)]),
        ("never_heard_of", &[], &[json!(0), json!("")]),
    ];
    let plain = ask(json!({})).unwrap().request;
    for (name, taken, refused) in cases {
        for value in taken {
            assert_eq!(ask(json!({name: value})).unwrap().request, plain, "{name}: {value}");
        }
        for value in refused {
            assert_eq!(param(ask(json!({name: value}))), name, "{value}");
        }
    }
    for (name, taken, refused) in
        [("best_of", json!(1), json!(2)), ("echo", json!(false), json!(true)), ("suffix", json!(""), json!("x"))]
    {
        assert!(ask_text(json!({name: taken})).is_ok(), "{name}");
        assert_eq!(param(ask_text(json!({name: refused}))), name);
    }
    assert_eq!(param(ask(json!({"echo": false}))), "echo", "a field of the other endpoint is unknown");
    assert_eq!(param(ask_text(json!({"messages": []}))), "messages");
}

#[test]
fn wrong_types_name_the_field() {
    let wrong = [
        ("model", json!(1)),
        ("messages", json!("Hello")),
        ("temperature", json!("hot")),
        ("top_p", json!([])),
        ("top_k", json!(0.5)),
        ("max_tokens", json!("9")),
        ("max_completion_tokens", json!(1.5)),
        ("seed", json!(1.5)),
        ("seed", json!(u64::MAX)),
        ("stop", json!(3)),
        ("stop", json!(["a", 3])),
        ("logit_bias", json!([])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logprobs", json!(1)),
        ("top_logprobs", json!(true)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("user", json!(1)),
        ("user", json!("")),
        ("user", json!("a\nb")),
        ("priority", json!("high")),
        ("deadline_ms", json!(-1)),
        ("id", json!(1)),
    ];
    for (name, value) in wrong {
        assert_eq!(param(ask(json!({name: value}))), name, "{value}");
    }
    assert_eq!(param(ask(json!({"stream": true, "stream_options": {"x": 1}}))), "stream_options");
    let obfuscated = json!({"stream": true, "stream_options": {"include_obfuscation": true}});
    assert_eq!(param(ask(obfuscated)), "stream_options.include_obfuscation");
    assert!(ask(json!({"stream": true, "stream_options": {"include_obfuscation": false}})).is_ok());
}

#[test]
fn lengths_have_two_names_and_a_range() {
    assert_eq!(ask(json!({"max_tokens": 5})).unwrap().request.max_tokens, Some(5));
    assert_eq!(ask(json!({"max_tokens": 5, "max_completion_tokens": 5})).unwrap().request.max_tokens, Some(5));
    assert_eq!(param(ask(json!({"max_tokens": 5, "max_completion_tokens": 6}))), "max_completion_tokens");
    for n in [0, -1, 8193, i64::MAX, i64::MIN] {
        let error = ask(json!({"max_completion_tokens": n})).unwrap_err();
        assert_eq!((error.param.as_deref(), error.limit), (Some("max_completion_tokens"), Some(CONTEXT)));
        assert!(error.message.contains(&n.to_string()), "{error}");
    }
    assert_eq!(ask(json!({"max_tokens": 8192})).unwrap().request.max_tokens, Some(8192));
}

#[test]
fn seeds_of_64_bits_are_folded() {
    assert_eq!(seed(0), 0);
    assert_eq!(seed(i64::from(u32::MAX)), u32::MAX);
    assert_eq!(seed(1 << 32), 1);
    assert_eq!(seed(-1), 0);
    assert_eq!(ask(json!({"seed": i64::MIN})).unwrap().request.seed, Some(1 << 31));
}

#[test]
fn contents_are_text_or_parts_of_text() {
    let message = |message: Value| with(json!({"model": "m", "messages": [message]}), json!({}));
    let content = |content: Value| message(json!({"role": "user", "content": content}));
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(content(parts).unwrap().request.messages[0].content, "a\nb");
    let hinted = json!([{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]);
    assert_eq!(content(hinted).unwrap().request.messages[0].content, "a");
    assert_eq!(content(json!("a")).unwrap().request.messages[0].content, "a");

    assert_eq!(param(content(json!(null))), "messages[0].content");
    assert_eq!(param(content(json!(5))), "messages[0].content");
    let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    assert_eq!(param(content(image)), "messages[0].content[1].type");
    assert_eq!(param(content(json!([{"type": "text"}]))), "messages[0].content[0].text");
    assert_eq!(param(content(json!([{"type": "text", "text": "a", "x": 1}]))), "messages[0].content[0].x");
    assert_eq!(param(message(json!({"role": "user", "content": "a", "x": 1}))), "messages[0].x");
    assert_eq!(param(message(json!({"content": "a"}))), "messages[0].role");
    assert_eq!(param(message(json!("a"))), "messages[0]");
}

#[test]
fn an_answer_of_an_openai_client_can_be_sent_back() {
    let back = json!({"role": "assistant", "content": "Hi", "refusal": null, "annotations": [], "audio": null,
        "function_call": null, "tool_calls": null});
    let asked = with(json!({"model": "m", "messages": [back]}), json!({})).unwrap();
    assert_eq!(asked.request.messages[0].role, "assistant");
    let calls = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]});
    assert_eq!(param(with(json!({"model": "m", "messages": [calls]}), json!({}))), "messages[0].tool_calls");
    let developer = json!({"role": "developer", "content": "Be brief."});
    let asked = with(json!({"model": "m", "messages": [developer]}), json!({})).unwrap();
    assert_eq!(asked.request.messages[0].role, "system");
}

#[test]
fn completions_take_one_text_and_legacy_logprobs() {
    let asked = ask_text(json!({"prompt": ["[INST]"], "logprobs": 0, "stop": "</s>"})).unwrap().request;
    assert_eq!((asked.prompt.as_str(), asked.logprobs, asked.top_logprobs), ("[INST]", Some(true), Some(0)));
    assert_eq!(asked.stop, ["</s>"]);
    assert_eq!(ask_text(json!({"logprobs": 5})).unwrap().request.top_logprobs, Some(5));
    assert_eq!(ask_text(json!({})).unwrap().request.logprobs, None);
    assert_eq!(param(ask_text(json!({"logprobs": 6}))), "logprobs");
    assert_eq!(param(ask_text(json!({"logprobs": true}))), "logprobs");
    for prompt in [json!(["a", "b"]), json!([]), json!([1, 2]), json!([[1, 2]]), json!(null), json!(7)] {
        assert_eq!(param(ask_text(json!({"prompt": prompt}))), "prompt");
    }
}

#[test]
fn what_was_read_passes_the_check() {
    let bounds = check::Bounds { context: CONTEXT, payload_bytes: 1000 };
    let asked = ask(json!({"logprobs": true, "top_logprobs": 20})).unwrap();
    let request = check::chat(asked.request, Client::uid(1), WayIn::Http, &bounds).unwrap();
    assert_eq!(request.logprobs, Some(20));
    let asked = ask_text(json!({"logprobs": 3})).unwrap();
    let request = check::complete(asked.request, Client::uid(1), WayIn::Http, &bounds).unwrap();
    assert_eq!(request.input, Input::Raw("[INST] Hello [/INST]".into()));
    assert_eq!(request.logprobs, Some(3));
}

#[test]
fn no_error_repeats_a_text() {
    let secret = "the kiosk user's words";
    let bodies = [
        json!({"model": "m", "messages": [{"role": secret, "content": secret, "x": secret}]}),
        json!({"model": "m", "messages": secret}),
        json!({"model": "m", "messages": [secret]}),
        json!({"model": "m", "messages": [{"role": "user", "content": {"a": secret}}]}),
        json!({"model": "m", "messages": [{"role": "user", "content": [secret]}]}),
        json!({"model": "m", "messages": [{"role": "user", "content": [{"type": secret, "text": secret}]}]}),
        json!({"model": "m", "messages": [], secret: 1}),
        json!({"model": "m", "messages": [], "temperature": secret, "stop": {secret: secret}}),
    ];
    for body in bodies {
        if let Err(error) = chat(body.to_string().as_bytes(), CONTEXT) {
            assert!(!format!("{error:?}").contains("kiosk"), "{error:?}");
        }
    }
    let error = chat(format!("{{\"messages\": \"{secret}").as_bytes(), CONTEXT).unwrap_err();
    assert!(!format!("{error:?}").contains("kiosk"), "{error:?}");
}

#[test]
fn what_an_answer_must_obey_arrives_at_both_endpoints() {
    let schema = json!({"type": "object", "properties": {"z": {}, "a": {}}});
    let wrapped = json!({"name": "x", "description": "d", "strict": true, "schema": schema});
    let asked = |format: Value| {
        let chat = ask(json!({"response_format": format.clone()})).unwrap().request.response_format.unwrap();
        assert_eq!(ask_text(json!({"response_format": format})).unwrap().request.response_format.unwrap(), chat);
        (chat.r#type, chat.schema)
    };
    assert_eq!(asked(json!({"type": "text"})), ("text".into(), None));
    assert_eq!(asked(json!({"type": "json_object"})), ("json_object".into(), None));
    let text = r#"{"type":"object","properties":{"z":{},"a":{}}}"#;
    assert_eq!(
        asked(json!({"type": "json_schema", "json_schema": wrapped})),
        ("json_schema".into(), Some(text.into())),
        "properties keep their order"
    );
    assert_eq!(ask(json!({"grammar": "root ::= \"a\""})).unwrap().request.grammar.unwrap(), "root ::= \"a\"");
    assert_eq!(ask_text(json!({"grammar": "g"})).unwrap().request.grammar.unwrap(), "g");

    let named = |format: Value| param(ask(json!({"response_format": format})));
    assert_eq!(named(json!("json_object")), "response_format");
    assert_eq!(named(json!({})), "response_format.type");
    assert_eq!(named(json!({"type": "json_object", "schema": {}})), "response_format.schema");
    assert_eq!(named(json!({"type": "json_schema"})), "response_format.json_schema");
    assert_eq!(named(json!({"type": "json_schema", "json_schema": {}})), "response_format.json_schema.schema");
    let strict = json!({"schema": {}, "strict": "yes"});
    assert_eq!(named(json!({"type": "json_schema", "json_schema": strict})), "response_format.json_schema.strict");
    assert_eq!(param(ask(json!({"grammar": 3}))), "grammar");
}
