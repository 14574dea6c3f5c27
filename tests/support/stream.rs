//! An answer that comes in pieces, over the OpenAI API.

use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming};
use serde_json::{Value, json};

use super::{
    daemon::{Daemon, PATIENCE},
    http,
};

/// The name of the small model.
pub const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";

/// A stream that runs until it has `max_tokens`: all that ends an answer is out of the question.
pub fn endless(max_tokens: u32) -> Value {
    let never: serde_json::Map<String, Value> = (0..17).map(|token| (token.to_string(), json!(-100))).collect();
    json!({"model": MODEL, "prompt": "Count: one, two,", "max_tokens": max_tokens, "temperature": 0, "stream": true,
        "logit_bias": never})
}

/// An answer that comes in pieces.
pub struct Stream {
    body: Incoming,
    unread: String,
    text: String,
    over: bool,
}

impl Stream {
    pub async fn start(daemon: &Daemon, body: &Value) -> Self {
        let response = http::send(&daemon.socket, Method::POST, "/v1/completions", body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Self { body: response.into_body(), unread: String::new(), text: String::new(), over: false }
    }

    /// Reads on to the next piece of text, or to the end.
    pub async fn piece(&mut self) {
        while !self.over {
            while let Some(at) = self.unread.find('\n') {
                let line: String = self.unread.drain(..=at).collect();
                let Some(data) = line.trim().strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    self.over = true;
                    return;
                }
                let data: Value = serde_json::from_str(data).expect("JSON");
                assert!(data.get("error").is_none(), "{data}");
                if let Some(text) = data["choices"][0]["text"].as_str().filter(|text| !text.is_empty()) {
                    self.text += text;
                    return;
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("the stream goes on");
            match frame {
                Some(frame) => {
                    let data = frame.expect("a frame").into_data().expect("data");
                    self.unread += std::str::from_utf8(&data).expect("UTF-8");
                }
                None => self.over = true,
            }
        }
    }

    pub async fn pieces(&mut self, count: usize) {
        for _ in 0..count {
            self.piece().await;
        }
        assert!(!self.over, "it ended too early");
    }

    pub async fn rest(mut self) -> String {
        while !self.over {
            self.piece().await;
        }
        self.text
    }
}
