//! LoRA adapters: chosen by a request, in turns within one engine, and of no effect on anyone else's answer.

#[path = "engine/harness.rs"]
mod harness;
#[path = "support/make.rs"]
mod make;
mod support;

use std::{fs, path::Path};

use harness::{Answer, Engine, load, model, start};
use hyper::Method;
use serde_json::{Value, json};
use support::{
    daemon::Daemon,
    http,
    mosquitto::{Device, Mosquitto},
};
use temperd::wire::engine::{Adapter, Load, Start};

const ANSWER: u32 = 24;
/// A step of many rows takes other kernels than one of a single row; log probabilities change by less than this.
const NEAR: f32 = 0.5;
const QUESTION: &str = "How does a pump move water?";

/// Two that fit, one that is made for another model, one that is no GGUF file, one that is not there.
fn adapters(folder: &Path) -> Vec<Adapter> {
    let file = |name: &str| folder.join(format!("{name}.gguf"));
    make::adapter(&model(), &file("one"), 1, None);
    make::adapter(&model(), &file("two"), 2, None);
    make::adapter(&model(), &file("wide"), 3, Some(640));
    fs::write(file("torn"), "GGUX").expect("written");
    let adapter =
        |name: &str| Adapter { name: name.into(), path: file(name).to_str().expect("UTF-8").into(), scale: 1.0 };
    ["one", "two", "wide", "torn", "gone"].map(adapter).into()
}

fn engine(adapters: &[Adapter], change: impl FnOnce(&mut Load)) -> Engine {
    let mut load = Load { adapters: adapters.to_vec(), ..load(&model()) };
    change(&mut load);
    Engine::loaded_with(load).0
}

fn asked(id: u64, prompt: &[u32], adapter: u32, adapter_scale: f32) -> Start {
    Start { adapter, adapter_scale, scope: 7, logprobs: true, top_logprobs: 2, ..start(id, prompt.to_vec(), ANSWER) }
}

fn alone(adapters: &[Adapter], adapter: u32, scale: f32) -> Answer {
    let mut engine = engine(adapters, |_| ());
    let prompt = engine.chat(QUESTION);
    engine.answer(asked(1, &prompt, adapter, scale))
}

#[test]
fn an_adapter_changes_the_answer_by_its_scale_and_only_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let adapters = adapters(folder.path());
    let kinds = [(0, 0.0), (1, 1.0), (2, 1.0), (1, 0.5)];
    let alone = kinds.map(|(adapter, scale)| alone(&adapters, adapter, scale).tokens);
    for (nth, one) in alone.iter().enumerate() {
        assert!(!one.is_empty() && alone[nth + 1..].iter().all(|other| other != one), "{nth} answers as another");
    }

    let mut engine = engine(&adapters, |_| ());
    let prompt = engine.chat(QUESTION);
    // Scale 0 is the model as it is.
    assert_eq!(engine.answer(asked(1, &prompt, 1, 0.0)).tokens, alone[0]);
}

#[test]
fn side_by_side_each_answers_as_if_it_were_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let adapters = adapters(folder.path());
    let kinds = [(0, 0.0), (1, 1.0), (2, 1.0), (1, 0.5)];
    let alone = kinds.map(|(adapter, scale)| alone(&adapters, adapter, scale));
    let mut engine = engine(&adapters, |_| ());
    let prompt = engine.chat(QUESTION);
    // Two of each at once, then one after the other.
    let all = || (1..).zip(kinds.iter().chain(&kinds).zip(alone.iter().chain(&alone)));
    for (id, ((adapter, scale), _)) in all() {
        engine.start(asked(id, &prompt, *adapter, *scale));
    }
    for (id, (_, alone)) in all() {
        engine.finish(id).assert_like(alone, NEAR, &format!("sequence {id}"));
    }
    for (id, ((adapter, scale), alone)) in all() {
        engine.answer(asked(id, &prompt, *adapter, *scale)).assert_like(alone, NEAR, &format!("sequence {id} later"));
    }
}

#[test]
fn cells_are_shared_within_an_adapter_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = engine(&adapters(folder.path()), |_| ());
    let prompt = engine.chat(QUESTION);
    let whole = u32::try_from(prompt.len()).expect("small") - 1;
    let mut cached = |id, adapter, scale| engine.answer(asked(id, &prompt, adapter, scale)).cached;
    assert_eq!(cached(1, 0, 0.0), Some(0));
    assert_eq!(cached(2, 1, 1.0), Some(0));
    assert_eq!(cached(3, 1, 0.5), Some(0));
    assert_eq!(cached(4, 2, 1.0), Some(0));
    assert_eq!(cached(5, 1, 1.0), Some(whole));
    assert_eq!(cached(6, 1, 0.0), Some(whole));
}

#[test]
fn the_engine_says_which_it_cannot_use_and_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut engine, _, ready) = Engine::loaded_with(Load { adapters: adapters(folder.path()), ..load(&model()) });
    let why = |name: &str| {
        let failed = ready.adapters_failed.iter().find(|failed| failed.name == name);
        failed.map(|failed| failed.message.as_str()).unwrap_or_default().to_owned()
    };
    assert_eq!(ready.adapters_failed.len(), 3);
    assert!(why("wide").contains("incorrect shape") && why("wide").contains("wide.gguf"), "{}", why("wide"));
    assert!(why("torn").contains("not a GGUF file"), "{}", why("torn"));
    assert!(why("gone").contains("No such file"), "{}", why("gone"));
    let prompt = engine.chat(QUESTION);
    for (id, adapter, name) in [(1, 3, "wide"), (2, 9, "no adapter 9")] {
        let error = engine.answer(asked(id, &prompt, adapter, 1.0)).error.expect("refused");
        assert!(error.contains(name), "{error}");
    }
    assert_eq!(engine.answer(asked(3, &prompt, 2, 1.0)).error, None);
}

fn sections(folder: &Path) -> String {
    let section =
        |adapter: Adapter| format!("[[adapter]]\nname = {:?}\npath = {:?}\nscale = 3.0\n", adapter.name, adapter.path);
    adapters(folder).into_iter().map(section).collect()
}

fn question(change: Value) -> Value {
    let mut body = json!({
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "temperature": 0,
    });
    body.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
    body
}

#[tokio::test]
async fn over_http_by_field_or_as_a_model_and_errors_name_what_there_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::ready(&sections(folder.path())).await;
    let ask = async |change| http::post(&daemon.socket, "/v1/chat/completions", &question(change)).await;
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    let (status, plain) = ask(json!({})).await;
    assert_eq!(status, 200, "{plain}");
    let (_, one) = ask(json!({"adapter": "one"})).await;
    let (_, as_model) = ask(json!({"model": "one"})).await;
    assert_ne!(text(&one), text(&plain));
    assert_eq!(text(&as_model), text(&one));
    assert_eq!(as_model["model"], "one");

    let (status, unknown) = ask(json!({"adapter": "rude"})).await;
    assert_eq!((status.as_u16(), &unknown["error"]["param"]), (400, &json!("adapter")), "{unknown}");
    assert!(unknown["error"]["message"].as_str().expect("a text").contains("`one`, `two`"), "{unknown}");
    let (status, wide) = ask(json!({"adapter": "wide"})).await;
    let message = wide["error"]["message"].as_str().expect("a text");
    assert_eq!(status, 503);
    assert!(message.contains("`wide` cannot be used") && message.contains("incorrect shape"), "{message}");
    assert_eq!(ask(json!({"model": "one", "adapter": "two"})).await.0, 400);

    let (_, models) = http::json(&daemon.socket, Method::GET, "/v1/models", "").await;
    let ids: Vec<_> = models["data"].as_array().expect("models").iter().map(|model| model["id"].clone()).collect();
    assert!(ids.contains(&json!("one")) && ids.len() == 6, "{models}");
    assert!(daemon.log_text().contains("adapter wide cannot be used"), "{}", daemon.log_text());
}

#[tokio::test]
async fn over_mqtt() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Mosquitto::start();
    let url = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.port());
    let _daemon = Daemon::ready(&format!("{url}{}", sections(folder.path()))).await;
    let mut device = Device::connect(broker.port(), "a", None).await;
    device.subscribe("temperd/v1/test/response/#").await;
    let mut ask = async |id: &str, adapter: Option<&str>| {
        let mut body = json!({"id": id, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16,
            "temperature": 0.0});
        if let Some(adapter) = adapter {
            body["adapter"] = json!(adapter);
        }
        device.publish("temperd/v1/test/request/chat", body.to_string(), Default::default()).await;
        let answer = device.next().await;
        serde_json::from_slice::<Value>(&answer.payload).expect("JSON")
    };
    let (plain, one) = (ask("a", None).await, ask("b", Some("one")).await);
    assert_eq!((&plain["outcome"], &one["outcome"]), (&json!("completed"), &json!("completed")), "{one}");
    assert_ne!(plain["message"]["content"], one["message"]["content"]);
    let unknown = ask("c", Some("rude")).await;
    assert_eq!((&unknown["outcome"], &unknown["error"]["code"]), (&json!("refused"), &json!("invalid_request")));
    let gone = ask("d", Some("gone")).await;
    assert!(gone["error"]["message"].as_str().expect("a text").contains("`gone` cannot be used"), "{gone}");
}
