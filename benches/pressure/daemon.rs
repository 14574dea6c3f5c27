//! The daemon under test, and when it decided what, by its log.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use temperd::config::Config;

use crate::client::{Address, Endpoint};

/// A change of the operating point.
#[derive(Debug, Clone)]
pub struct Decision {
    /// When its line came.
    pub at: Instant,
    /// The point, in the log's words, and its context.
    pub to: String,
    pub context: u64,
}

/// The daemon with its engine, ended when dropped.
pub struct Daemon {
    pub at: Endpoint,
    socket: PathBuf,
    child: Child,
    decisions: Arc<Mutex<Vec<Decision>>>,
    // Holds configuration and socket as long as the daemon runs.
    _folder: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ended_before = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended_before = self.child.wait();
    }
}

impl Daemon {
    /// With this configuration, once it is ready.
    pub fn start(model: &Path, toml: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (config, socket) = (folder.path().join("config.toml"), folder.path().join("temperd.sock"));
        fs::write(&config, format!("{toml}\n[log]\nlevel = \"info\"\nformat = \"json\"\n"))?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_temperd"))
            .args(["run", "--node", "bench", "--config"])
            .arg(&config)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(&socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let decisions = Arc::<Mutex<Vec<Decision>>>::default();
        let (log, heard) = (child.stderr.take().context("piped")?, Arc::clone(&decisions));
        thread::spawn(move || listen(log, &heard));
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let at = Endpoint { address: Address::Unix(socket.clone()), model: Config::model_name(model) };
        let daemon = Self { at, socket, child, decisions, _folder: folder };
        if !line.starts_with("temperd ready") {
            bail!("the daemon is not ready: {line}");
        }
        Ok(daemon)
    }

    /// The engine: the daemon's only child.
    pub fn engine(&self) -> Result<u32> {
        let mut children = String::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            children += &fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        }
        children.split_whitespace().next().context("the engine")?.parse().context("a pid")
    }

    /// What it has decided from then on.
    pub fn decided(&self, from: Instant) -> Vec<Decision> {
        let decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        decisions.iter().filter(|decision| decision.at >= from).cloned().collect()
    }

    pub fn status(&self) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(stream, "GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text.find("\r\n\r\n").map(|at| &text[at..]).context("an answer")?;
        serde_json::from_str(body.trim()).context("a status")
    }

    /// Cells of the engine's cache.
    pub fn allocated(&self) -> Result<u64> {
        self.status()?["allocated_context"].as_u64().context("allocated_context of the status")
    }

    /// Cells that the operating point allows.
    pub fn context(&self) -> Result<u64> {
        self.status()?["operating_point"]["context"].as_u64().context("the operating point of the status")
    }

    /// A request that is cancelled when this is dropped.
    pub fn ask(&self, prompt: &str) -> Result<UnixStream> {
        let body = json!({"model": self.at.model, "prompt": prompt, "max_tokens": 1, "stream": true}).to_string();
        let mut stream = UnixStream::connect(&self.socket)?;
        let length = body.len();
        write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")?;
        write!(stream, "content-length: {length}\r\n\r\n{body}")?;
        Ok(stream)
    }
}

fn listen(log: impl Read, heard: &Mutex<Vec<Decision>>) {
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        let at = Instant::now();
        let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let to = text("to");
        let context = to.strip_prefix("context ").and_then(|rest| rest.split_once(',')?.0.parse().ok());
        if let Some(context) = context {
            eprintln!("the governor: {to}; {} of {} MiB", line["value"], line["limit"]);
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(Decision { at, to, context });
        } else if line["level"] == "error" {
            eprintln!("the daemon: {}", text("message"));
        }
    }
}
