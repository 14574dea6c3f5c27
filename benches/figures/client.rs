//! One streamed request of the OpenAI API, by hand over a plain stream, with the time of each piece of the answer.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Tokens that end an answer, by id: those of the small model and of Mistral are among the first ones. With them out of
/// the question, every answer has the length asked for.
const END_TOKENS: u32 = 17;

/// How long a model that nobody asks may stay.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that has no room.
#[derive(Debug)]
pub struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("refused: 429")
    }
}

impl std::error::Error for Refused {}

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// temperd's socket.
    Unix(PathBuf),
    /// A port on loopback.
    Tcp(u16),
}

/// A server that answers.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// What it calls its model.
    pub model: String,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Ask {
    /// A raw prompt.
    Prompt(String),
    /// Messages: role and text.
    Chat(Vec<(&'static str, String)>),
}

/// What came, and when.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When the request was sent.
    pub sent: Instant,
    /// When each piece of text came.
    pub pieces: Vec<Instant>,
    /// Where each piece ends in the text.
    ends: Vec<usize>,
    /// The text.
    pub text: String,
    /// Drafted tokens, and how many were right, where llama-server says so.
    pub drafted: (u64, u64),
}

impl Answer {
    /// From the request to the first piece.
    pub fn first(&self) -> Duration {
        self.pieces.first().map_or(Duration::MAX, |first| first.duration_since(self.sent))
    }

    /// When the last piece came.
    pub fn last(&self) -> Instant {
        self.pieces.last().copied().unwrap_or(self.sent)
    }

    /// The text that had come by then.
    pub fn before(&self, when: Instant) -> &str {
        let pieces = self.pieces.iter().take_while(|piece| **piece <= when).count();
        let end = pieces.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or(0);
        self.text.get(..end).unwrap_or_default()
    }

    /// Longest wait for a piece within a window: from the last piece before it on.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let within = self.pieces.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
        within.map(|pair| pair[1].duration_since(pair[0])).max().unwrap_or_default()
    }

    /// Tokens per second from the first to the last, of an answer of `tokens`.
    pub fn rate(&self, tokens: usize) -> f64 {
        let first = self.pieces.first().copied().unwrap_or(self.sent);
        (tokens - 1) as f64 / self.last().duration_since(first).as_secs_f64()
    }
}

impl Endpoint {
    fn connect(&self) -> Result<Box<dyn ReadWrite>> {
        Ok(match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path)?),
            Address::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    fn send(&self, head: &str, body: &str) -> Result<BufReader<Box<dyn ReadWrite>>> {
        let mut stream = self.connect()?;
        let length = body.len();
        write!(stream, "{head} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")?;
        write!(stream, "content-length: {length}\r\nconnection: close\r\n\r\n{body}")?;
        Ok(BufReader::new(stream))
    }

    /// Whether the server can answer.
    pub fn healthy(&self) -> bool {
        let Ok(mut reader) = self.send("GET /health", "") else { return false };
        let mut line = String::new();
        reader.read_line(&mut line).is_ok() && line.contains(" 200 ")
    }

    /// What temperd's attention has come to be: "on", "off" or "auto".
    pub fn flash_attention(&self) -> Result<String> {
        let status = json_of(self.send("GET /v1/status", "")?)?;
        Ok(status["settings"]["flash_attention"].as_str().context("settings.flash_attention of the status")?.to_owned())
    }

    /// Waits until temperd has unloaded its model.
    pub fn until_unloaded(&self) -> Result<()> {
        let began = Instant::now();
        while json_of(self.send("GET /v1/status", "")?)?["model"]["state"] != "unloaded" {
            if began.elapsed() > PATIENCE {
                bail!("the model is not unloaded");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Tokens that temperd has drafted so far, and how many were right.
    pub fn drafted(&self) -> Result<(u64, u64)> {
        let mut text = String::new();
        self.send("GET /metrics", "")?.read_to_string(&mut text)?;
        let count = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("_total "));
            line.with_context(|| format!("{name} in the metrics"))?.trim().parse().context("a count")
        };
        Ok((count("temperd_drafted_tokens")?, count("temperd_accepted_tokens")?))
    }

    /// A greedy answer of exactly so many tokens, piece by piece. The error is [`Refused`] where there is no room for it.
    pub fn stream(&self, ask: &Ask, tokens: usize) -> Result<Answer> {
        self.stream_to(ask, tokens, |_| ())
    }

    /// The same, and tells of each piece when it comes.
    pub fn stream_to(&self, ask: &Ask, tokens: usize, mut piece: impl FnMut(usize)) -> Result<Answer> {
        let (path, body) = self.body(ask, tokens);
        let sent = Instant::now();
        let reader = self.send(&format!("POST {path}"), &body.to_string())?;
        let mut answer = Answer { sent, pieces: Vec::new(), ends: Vec::new(), text: String::new(), drafted: (0, 0) };
        let mut reason = None;
        let mut odd = String::new();
        for line in reader.lines() {
            let line = line?;
            if line.starts_with("HTTP/1.1 429 ") {
                return Err(Refused.into());
            }
            let Some(data) = line.strip_prefix("data: ").filter(|data| data.starts_with('{')) else {
                odd = if line.contains("error") { line } else { odd };
                continue;
            };
            let now = Instant::now();
            let data: Value = serde_json::from_str(data)?;
            let choice = &data["choices"][0];
            let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str()).unwrap_or_default();
            if !text.is_empty() {
                answer.pieces.push(now);
                answer.text.push_str(text);
                answer.ends.push(answer.text.len());
                piece(answer.pieces.len());
            }
            if let Some(drafted) = data["timings"]["draft_n"].as_u64() {
                answer.drafted = (drafted, data["timings"]["draft_n_accepted"].as_u64().unwrap_or_default());
            }
            if let Some(found) = choice["finish_reason"].as_str() {
                reason = Some(found.to_owned());
            }
            if !data["error"].is_null() {
                odd = data.to_string();
            }
        }
        match reason.as_deref() {
            Some("length") => Ok(answer),
            other => bail!("the answer ended with {other:?} instead of \"length\": {odd}"),
        }
    }

    /// Tokens of this prompt.
    pub fn prompt_tokens(&self, ask: &Ask) -> Result<u64> {
        let (path, mut body) = self.body(ask, 1);
        body["stream"] = json!(false);
        let data = json_of(self.send(&format!("POST {path}"), &body.to_string())?)?;
        data["usage"]["prompt_tokens"].as_u64().context("usage.prompt_tokens")
    }

    /// The best two tokens and their log probabilities at each place of a greedy answer in a chat.
    pub fn best_two(&self, ask: &Ask, tokens: usize) -> Result<Vec<Vec<(String, f64)>>> {
        let (path, mut body) = self.body(ask, tokens);
        body["stream"] = json!(false);
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(2);
        let data = json_of(self.send(&format!("POST {path}"), &body.to_string())?)?;
        let places = data["choices"][0]["logprobs"]["content"].as_array().context("logprobs")?;
        let pair = |top: &Value| Some((top["token"].as_str()?.to_owned(), top["logprob"].as_f64()?));
        let best = |place: &Value| place["top_logprobs"].as_array().into_iter().flatten().filter_map(pair).collect();
        Ok(places.iter().map(best).collect())
    }

    fn body(&self, ask: &Ask, tokens: usize) -> (&'static str, Value) {
        let never: serde_json::Map<String, Value> =
            (0..END_TOKENS).map(|token| (token.to_string(), (-100).into())).collect();
        let model = &self.model;
        let mut body =
            json!({"model": model, "max_tokens": tokens, "temperature": 0, "stream": true, "logit_bias": never});
        match ask {
            Ask::Prompt(prompt) => {
                body["prompt"] = json!(prompt);
                ("/v1/completions", body)
            }
            Ask::Chat(messages) => {
                let message = |(role, text): &(&str, String)| json!({"role": role, "content": text});
                body["messages"] = messages.iter().map(message).collect();
                ("/v1/chat/completions", body)
            }
        }
    }
}

/// The JSON object behind the head of a response.
fn json_of(mut response: impl Read) -> Result<Value> {
    let mut text = String::new();
    response.read_to_string(&mut text)?;
    let body = text.find("\r\n\r\n").map(|at| &text[at + 4..]).context("an answer")?;
    let start = body.find('{').context("a JSON answer")?;
    Ok(serde_json::Deserializer::from_str(&body[start..]).into_iter().next().context("JSON")??)
}

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}
