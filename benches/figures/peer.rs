//! The programs that are measured against each other, each started for its rows and ended with them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use temperd::config::Config;

use crate::client::{Address, Endpoint};

/// Context of every server here.
pub const CONTEXT: u32 = 16384;
/// The engine measures what steps cost as soon as nothing has run for half a second, which takes a second or two.
const MEASURED: Duration = Duration::from_secs(4);
/// How long a server may take to load a model.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The folder of llama-server and llama-bench.
    pub peers: PathBuf,
    /// The small model.
    pub small: PathBuf,
    /// The file of Mistral's shape.
    pub shape: PathBuf,
    /// Threads of every side.
    pub threads: usize,
}

/// A server at work.
pub struct Server {
    /// How it is asked.
    pub at: Endpoint,
    child: Child,
    // Holds configuration and socket as long as the server runs.
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The daemon ends its engine; llama-server is one process.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ended_before = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended_before = self.child.wait();
    }
}

impl Server {
    /// temperd as it is shipped, but for the context and `settings`, TOML lines of `[engine]`.
    pub fn temperd(model: &Path, settings: &str) -> Result<Self> {
        let server = Self::start(model, settings, None)?;
        // What it measures then would fall into somebody's turn.
        thread::sleep(MEASURED);
        Ok(server)
    }

    /// The same the moment it is ready, with a folder for what outlives it.
    pub fn start(model: &Path, settings: &str, state: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (config, socket) = (folder.path().join("config.toml"), folder.path().join("temperd.sock"));
        fs::write(&config, format!("[engine]\ncontext = {CONTEXT}\n{settings}\n[log]\nlevel = \"warn\"\n"))?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_temperd"))
            .env("STATE_DIRECTORY", folder.path().join("state"))
            .args(["run", "--node", "bench", "--config"])
            .arg(&config)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(&socket)
            .env_remove("STATE_DIRECTORY")
            .envs(state.map(|state| ("STATE_DIRECTORY", state)))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let server = Self { at: endpoint(Address::Unix(socket), model), child, _folder: folder };
        if !line.starts_with("temperd ready") {
            bail!("the daemon is not ready: {line}");
        }
        Ok(server)
    }

    /// llama-server with eight slots on one unified cache, and `more` arguments.
    pub fn llama(places: &Places, model: &Path, more: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = fs::File::create(folder.path().join("log"))?;
        let child = Command::new(places.peers.join("llama-server"))
            .arg("--model")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["-np", "8", "--kv-unified", "-c", &CONTEXT.to_string()])
            .args(["-t", &places.threads.to_string(), "-tb", &places.threads.to_string()])
            .args(more)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("llama-server")?;
        let mut server = Self { at: endpoint(Address::Tcp(port), model), child, _folder: folder };
        let began = Instant::now();
        while !server.at.healthy() {
            if server.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                let log = fs::read_to_string(server._folder.path().join("log")).unwrap_or_default();
                bail!("llama-server {more:?} does not come up: {}", log.lines().last().unwrap_or_default());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// SIGKILL to temperd's engine, its only child.
    pub fn kill_engine(&self) -> Result<()> {
        let [engine] = &self.children()?[..] else { bail!("the daemon has not one child") };
        let pid = rustix::process::Pid::from_raw(engine.parse()?).context("a process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    fn children(&self) -> Result<Vec<String>> {
        let mut children = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let pids = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children.extend(pids.split_whitespace().map(str::to_owned));
        }
        Ok(children)
    }

    /// Proportional set size of the process and its children now, in bytes (proc_pid_smaps_rollup(5)).
    pub fn pss(&self) -> Result<u64> {
        let mut pids = self.children()?;
        pids.push(self.child.id().to_string());
        let pss = pids.iter().map(|pid| -> Result<u64> {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("Pss")?;
            Ok(line.split_whitespace().nth(1).context("Pss")?.parse::<u64>()? * 1024)
        });
        pss.sum()
    }
}

fn endpoint(address: Address, model: &Path) -> Endpoint {
    Endpoint { address, model: Config::model_name(model) }
}

/// The bare loop in a process of its own (`bare.rs`), so that its threads disturb nobody in between.
pub struct Bare {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ended_before = self.child.kill();
        let _ended_before = self.child.wait();
    }
}

impl Bare {
    /// Loads the model there. `flash_attention` is "on", "off" or "auto".
    pub fn start(places: &Places, model: &Path, flash_attention: &str) -> Result<Self> {
        Self::start_with(places, model, flash_attention, CONTEXT)
    }

    /// The same with a context of so many cells.
    pub fn start_with(places: &Places, model: &Path, flash_attention: &str, cells: u32) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--bench", "--bare"])
            .arg(model)
            .env("TEMPERD_BENCH_THREADS", places.threads.to_string())
            .env("TEMPERD_BENCH_FLASH_ATTENTION", flash_attention)
            .env("TEMPERD_BENCH_CONTEXT", cells.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (to, from) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Tokens per second of a greedy answer.
    pub fn rate(&mut self, prompt: &str, tokens: usize) -> Result<f64> {
        writeln!(self.to, "{tokens} {}", prompt.replace('\n', " "))?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the bare loop said {line:?}"))
    }
}

/// Tokens per second that llama-bench finds for decoding.
pub fn llama_bench(places: &Places, model: &Path, flash_attention: &str, tokens: usize) -> Result<f64> {
    let out = Command::new(places.peers.join("llama-bench"))
        .arg("-m")
        .arg(model)
        .args(["-p", "0", "-n", &tokens.to_string(), "-r", "1", "-o", "json", "-t", &places.threads.to_string()])
        .args(["-fa", flash_attention])
        .stderr(Stdio::null())
        .output()
        .context("llama-bench")?;
    let runs: serde_json::Value = serde_json::from_slice(&out.stdout).context("llama-bench's JSON")?;
    runs[0]["avg_ts"].as_f64().context("avg_ts of llama-bench")
}
