//! Answers that obey a schema or a grammar, from a real daemon with the real model, through every way in.

mod support;

use http_body_util::BodyExt;
use hyper::Method;
use prost::Message as _;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, PATIENCE},
    http,
    mosquitto::{Device, Mosquitto},
};
use temperd::{
    cli::client,
    wire::v1::{self, chat_event::Event, inference_client::InferenceClient},
};

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";
const CHAT: &str = "/v1/chat/completions";

/// Enums, bounded integers, arrays within arrays, a reference, an object that may be absent.
fn report() -> Value {
    json!({"type": "object", "properties": {
            "state": {"enum": ["running", "stopped", "broken"]},
            "hall": {"type": "integer", "minimum": 1, "maximum": 12},
            "readings": {"type": "array", "minItems": 1, "maxItems": 3,
                "items": {"type": "array", "items": {"$ref": "#/$defs/reading"}, "maxItems": 2}},
            "note": {"type": "string", "maxLength": 30}},
        "required": ["state", "hall", "readings", "note"], "additionalProperties": false,
        "$defs": {"reading": {"type": "integer", "minimum": 0, "maximum": 9}}})
}

fn obeys_report(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let keys: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["state", "hall", "readings", "note"], "in the order of the schema");
    assert!(["running", "stopped", "broken"].iter().any(|state| value["state"] == *state), "{text}");
    assert!((1..=12).contains(&value["hall"].as_i64().expect("an integer")), "{text}");
    let readings = value["readings"].as_array().expect("an array");
    assert!((1..=3).contains(&readings.len()), "{text}");
    for inner in readings.iter().map(|inner| inner.as_array().expect("an array")) {
        assert!(inner.len() <= 2 && inner.iter().all(|n| n.as_i64().is_some_and(|n| (0..=9).contains(&n))), "{text}");
    }
    assert!(value["note"].as_str().expect("a text").chars().count() <= 30, "{text}");
}

fn question(extra: &Value) -> Value {
    let mut body = json!({"model": MODEL, "temperature": 0, "max_tokens": 400,
        "messages": [{"role": "user", "content": "Report on the pump in hall 3. It runs. Readings: 4, 7."}]});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

fn by_schema(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "report", "strict": true, "schema": schema}}})
}

/// Text and finish reason.
async fn ask(daemon: &Daemon, extra: &Value) -> (String, String) {
    let (status, answer) = http::post(&daemon.socket, CHAT, &question(extra)).await;
    assert_eq!(status, 200, "{answer}\n{}", daemon.log_text());
    let choice = &answer["choices"][0];
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&choice["message"]["content"]), text(&choice["finish_reason"]))
}

#[tokio::test]
async fn over_http_plain_and_streaming_a_schema_is_obeyed() {
    let daemon = Daemon::ready("").await;
    let (text, reason) = ask(&daemon, &by_schema(&report())).await;
    obeys_report(&text);
    assert_eq!(reason, "stop");

    let mut body = question(&by_schema(&report()));
    body["stream"] = json!(true);
    let response = http::send(&daemon.socket, Method::POST, CHAT, body.to_string()).await;
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    let lines = std::str::from_utf8(&bytes).expect("text").lines();
    let chunks = lines.filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let chunks: Vec<Value> = chunks.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let streamed: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);

    // Drawn, with penalties, a bias and another order of samplers' work.
    for seed in 0..3 {
        let mut extra = by_schema(&report());
        extra["temperature"] = json!(1.5);
        extra["seed"] = json!(seed);
        extra["repeat_penalty"] = json!(1.3);
        extra["logit_bias"] = json!({"2": 100, "0": 50});
        obeys_report(&ask(&daemon, &extra).await.0);
    }

    let (text, _) = ask(&daemon, &json!({"response_format": {"type": "json_object"}, "max_tokens": 600})).await;
    let cut = serde_json::from_str::<Value>(&text);
    assert!(text.starts_with('{') && cut.as_ref().map_or_else(serde_json::Error::is_eof, Value::is_object), "{text}");

    let body = json!({"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 20,
        "response_format": by_schema(&json!({"enum": ["London", "Paris"]}))["response_format"]});
    let (_, answer) = http::post(&daemon.socket, "/v1/completions", &body).await;
    assert_eq!(answer["choices"][0]["text"], "\"Paris\"", "{answer}");
}

#[tokio::test]
async fn a_grammar_is_obeyed_and_a_short_answer_says_so() {
    let daemon = Daemon::ready("").await;
    let yes_or_no = json!({"grammar": "root ::= \"yes\" | \"no\"", "temperature": 1.0, "seed": 3});
    let (text, reason) = ask(&daemon, &yes_or_no).await;
    assert!(["yes", "no"].contains(&text.as_str()), "{text}");
    assert_eq!(reason, "stop");

    let sum = "root ::= term (\" + \" term)+\nterm ::= [0-9]{1,3} | \"(\" root \")\"";
    let (text, _) = ask(&daemon, &json!({"grammar": sum, "max_tokens": 60})).await;
    assert!(text.contains(" + ") && text.chars().all(|c| c.is_ascii_digit() || " +()".contains(c)), "{text}");

    let long = json!({"grammar": "root ::= \"one, two, three, four, five, six, seven\"", "max_tokens": 4});
    let (text, reason) = ask(&daemon, &long).await;
    assert!("one, two, three, four, five, six, seven".starts_with(&text) && text.len() > 4, "{text}");
    assert_eq!(reason, "length");
    let mut cut = by_schema(&report());
    cut["max_tokens"] = json!(6);
    let (text, reason) = ask(&daemon, &cut).await;
    assert!(serde_json::from_str::<Value>(&text).is_err_and(|error| error.is_eof()), "{text}");
    assert_eq!(reason, "length");

    // A stop text wins over the grammar, and the grammar over a bias.
    let (text, reason) = ask(&daemon, &json!({"grammar": "root ::= \"one, two\"", "stop": [", t"]})).await;
    assert_eq!((text.as_str(), reason.as_str()), ("one", "stop"));

    // What is complete with the last token it may have was not cut.
    let body = question(&json!({"grammar": "root ::= \"one, two\""}));
    let (_, answer) = http::post(&daemon.socket, CHAT, &body).await;
    let tokens = answer["usage"]["completion_tokens"].as_u64().expect("a number");
    let exact = json!({"grammar": "root ::= \"one, two\"", "max_tokens": tokens});
    assert_eq!(ask(&daemon, &exact).await, ("one, two".into(), "stop".into()));
}

#[tokio::test]
async fn what_cannot_be_compiled_is_refused_and_all_goes_on() {
    let daemon = Daemon::ready("").await;
    let engine = daemon.engine_pid();
    let deep: Value =
        serde_json::from_str(&format!("{}{{}}{}", "{\"items\":".repeat(60), "}".repeat(60))).expect("JSON");
    let large = json!({"enum": ["x".repeat(65_536)]});
    let both = json!({"grammar": "root ::= \"a\"", "response_format": {"type": "json_object"}});
    let cases = [
        (by_schema(&json!({"not": {"type": "null"}})), "response_format", "not"),
        (by_schema(&json!({"$ref": "#/$defs/none"})), "response_format", "none"),
        (by_schema(&json!({"$ref": "file:///etc/passwd"})), "response_format", "file:///etc/passwd"),
        (by_schema(&json!([])), "response_format", "must be a JSON object"),
        (by_schema(&deep), "response_format", "deeper"),
        (by_schema(&large), "response_format", "65536"),
        (json!({"grammar": "answer ::= \"a\""}), "grammar", "no rule `root`"),
        (json!({"grammar": "root ::= \"a\" other"}), "grammar", "no rule `other`"),
        (json!({"grammar": "root ::= (\"a\""}), "grammar", "line 1"),
        (json!({"grammar": "root ::= root"}), "grammar", "never come to an end"),
        (
            json!({"grammar": format!("root ::= {}\"a\"{}", "(".repeat(9000), ")".repeat(9000))}),
            "grammar",
            "parentheses",
        ),
        (json!({"grammar": "x".repeat(65_537)}), "grammar", "65536"),
        (json!({"grammar": "root ::= <[0]>"}), "grammar", "tokens"),
        (both, "grammar", "one of them"),
    ];
    for (extra, param, what) in cases {
        let (status, answer) = http::post(&daemon.socket, CHAT, &question(&extra)).await;
        let error = &answer["error"];
        let found = (status.as_u16(), error["code"].as_str(), error["param"].as_str());
        assert_eq!(found, (400, Some("invalid_request"), Some(param)), "{answer}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(what)), "{what}: {answer}");
    }
    // Deeper than any JSON that is read here; broken JSON as text comes in over MQTT and gRPC below.
    let abyss = question(&json!({"response_format": 0}));
    let abyss = abyss.to_string().replace(":0}", &format!(":{}}}", "{\"items\":".repeat(20_000)));
    let (status, answer) = http::json(&daemon.socket, Method::POST, CHAT, abyss).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (400, Some("invalid_request")), "{answer}");

    // Left recursion, which llama.cpp cannot read, is fine.
    let left = json!({"grammar": "root ::= root \"a\" | \"b\"", "max_tokens": 8});
    assert!(ask(&daemon, &left).await.0.starts_with('b'));
    assert_eq!(daemon.engine_pid(), engine);
}

#[tokio::test]
async fn free_and_constrained_answers_run_beside_each_other() {
    let daemon = Daemon::ready("").await;
    let free = json!({"max_tokens": 40});
    let alone = [ask(&daemon, &free).await, ask(&daemon, &by_schema(&report())).await];
    let grammar = json!({"grammar": "root ::= [a-z ]{80}"});
    let schema = by_schema(&report());
    let (first, second, third, fourth) =
        tokio::join!(ask(&daemon, &free), ask(&daemon, &schema), ask(&daemon, &grammar), ask(&daemon, &schema));
    assert_eq!(first.1, alone[0].1);
    for (text, _) in [second, fourth] {
        obeys_report(&text);
    }
    assert_eq!((third.0.len(), third.1.as_str()), (80, "stop"), "{}", third.0);
}

#[tokio::test]
async fn over_grpc_and_at_the_command_line() {
    let daemon = Daemon::ready("").await;
    let channel = client::connect(Some(daemon.socket.clone())).await.expect("connected");
    let mut inference = InferenceClient::new(channel);
    let message = v1::Message { role: "user".into(), content: "Is the pump ok?".into(), ..v1::Message::default() };
    let request = |kind: &str, schema: Option<String>, grammar: Option<&str>| v1::ChatRequest {
        messages: vec![message.clone()],
        temperature: Some(0.0),
        max_tokens: Some(400),
        response_format: Some(v1::ResponseFormat { r#type: kind.into(), schema }),
        grammar: grammar.map(Into::into),
        ..v1::ChatRequest::default()
    };
    let mut events = inference.chat(request("json_schema", Some(report().to_string()), None)).await.expect("accepted");
    let mut text = String::new();
    while let Some(event) = events.get_mut().message().await.expect("a stream") {
        if let Some(Event::Final(last)) = event.event {
            text = last.message.expect("an answer").content;
        }
    }
    obeys_report(&text);
    for (asked, what) in [
        (
            request("json_schema", Some("{\"type\": ".into()), None),
            "response_format: the schema is malformed JSON: line 1",
        ),
        (request("json_schema", Some("[".repeat(60_000)), None), "response_format: the schema"),
        (request("yaml", None, None), "response_format.type"),
        (request("text", None, Some("root ::= x")), "grammar: there is no rule `x`"),
    ] {
        let status = inference.chat(asked).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(what), "{status}");
    }

    let file = daemon.folder.path().join("schema.json");
    std::fs::write(&file, report().to_string()).expect("written");
    let run = |schema: std::path::PathBuf| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_temperd"));
        command.arg("ask").arg("--socket").arg(&daemon.socket).arg("--schema").arg(schema).arg("Report.");
        tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output())
    };
    let output = run(file.clone()).await.expect("it ends").expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    obeys_report(std::str::from_utf8(&output.stdout).expect("text"));
    std::fs::write(&file, r#"{"type": "colour"}"#).expect("written");
    let output = run(file).await.expect("it ends").expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("colour"), "{said}");
    let output = run(daemon.folder.path().join("none.json")).await.expect("it ends").expect("it runs");
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn over_mqtt_in_json_and_protobuf() {
    let broker = Mosquitto::start();
    let daemon = Daemon::ready(&format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.port())).await;
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe("temperd/v1/test/response/#").await;
    let (topic, response) = ("temperd/v1/test/request/chat/pump", "temperd/v1/test/response/chat/pump");
    let schema = json!({"type": "json_schema", "schema": report().to_string()});
    let request = json!({"id": "j", "temperature": 0, "max_tokens": 400, "response_format": schema,
        "messages": [{"role": "user", "content": "Report."}]});
    device.publish(topic, request.to_string(), PublishProperties::default()).await;
    let answer: Value = serde_json::from_slice(&device.next_on(response).await.payload).expect("JSON");
    assert_eq!(answer["outcome"], "completed", "{answer}");
    obeys_report(answer["message"]["content"].as_str().expect("a text"));

    let request = v1::ChatRequest {
        id: "p".into(),
        messages: vec![v1::Message { role: "user".into(), content: "Well?".into(), ..v1::Message::default() }],
        grammar: Some("root ::= \"yes\" | \"no\"".into()),
        ..v1::ChatRequest::default()
    };
    let protobuf = PublishProperties { content_type: Some("application/x-protobuf".into()), ..Default::default() };
    device.publish(topic, request.encode_to_vec(), protobuf).await;
    let answer = v1::Final::decode(device.next_on(response).await.payload).expect("protobuf");
    assert!(["yes", "no"].contains(&answer.message.expect("an answer").content.as_str()));

    for (id, schema, what) in [("b1", "{\"type\":", "malformed JSON"), ("b2", "{\"type\": \"colour\"}", "colour")] {
        let format = json!({"type": "json_schema", "schema": schema});
        let request = json!({"id": id, "response_format": format, "messages": [{"role": "user", "content": "?"}]});
        device.publish(topic, request.to_string(), PublishProperties::default()).await;
        let answer: Value = serde_json::from_slice(&device.next_on(response).await.payload).expect("JSON");
        let found = (answer["outcome"].as_str(), answer["error"]["code"].as_str());
        assert_eq!(found, (Some("refused"), Some("invalid_request")), "{answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|message| message.contains(what)), "{answer}");
    }
    let log = daemon.log_text();
    assert!(!log.contains("colour") && !log.contains("readings"), "{log}");
}
