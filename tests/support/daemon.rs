//! A real daemon with a real engine in a private folder, ended with the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::http;

/// Longer than anything here takes on a loaded machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The small real model.
pub fn model() -> PathBuf {
    std::env::var_os("TEMPERD_TEST_MODEL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    )
}

/// Tests run side by side, and threads of several engines that spin for each other on the same cores make all of them
/// crawl: one thread each.
fn with_one_thread(toml: &str) -> String {
    const ONE: &str = "[engine]\nthreads = 1\nthreads_batch = 1\n";
    if toml.contains(ONE) {
        return toml.into();
    }
    if toml.contains("[engine]\n") { toml.replace("[engine]\n", ONE) } else { format!("{toml}\n{ONE}") }
}

/// With a folder for what outlives it: not the user's own, which daemons side by side would fight over.
fn run(program: &Path, state: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("run").env("STATE_DIRECTORY", state);
    command
}

/// Puts a program into a folder under another name: beside it, a daemon finds its engines.
pub fn install(program: &Path, folder: &Path, name: &str) {
    let to = folder.join(name);
    if fs::hard_link(program, &to).is_err() {
        fs::copy(program, &to).expect("copied");
    }
}

pub struct Daemon {
    pub folder: tempfile::TempDir,
    pub socket: PathBuf,
    pub log: PathBuf,
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    /// Starts with this TOML on top of the small model and a socket of its own, and waits until it can answer.
    pub async fn ready(toml: &str) -> Self {
        let mut daemon = Self::start(&model(), toml);
        let line = daemon.line().await;
        assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
        daemon
    }

    /// As [`Self::ready`], with the readings of a board from below a folder.
    pub async fn ready_on(board: &Path, toml: &str) -> Self {
        let mut daemon = Self::start_on(board, toml);
        let line = daemon.line().await;
        assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
        daemon
    }

    /// As [`Self::ready`], with a folder for what outlives it.
    pub async fn ready_with_state(state: &Path, toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, log) = (folder.path().join("temperd.sock"), folder.path().join("log"));
        let command = run(env!("CARGO_BIN_EXE_temperd").as_ref(), state);
        let mut daemon = Self::start_with(command, &model(), toml, folder, socket, log);
        let line = daemon.line().await;
        assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
        daemon
    }

    /// As [`Self::ready_on`] without waiting.
    pub fn start_on(board: &Path, toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, log) = (folder.path().join("temperd.sock"), folder.path().join("log"));
        let mut command = run(env!("CARGO_BIN_EXE_temperd").as_ref(), &folder.path().join("state"));
        command.arg("--board-root").arg(board);
        Self::start_with(command, &model(), toml, folder, socket, log)
    }

    /// Starts the daemon that is installed in this folder, beside engines of its own, without waiting.
    pub fn start_installed(folder: tempfile::TempDir, toml: &str, environment: &[(&str, &str)]) -> Self {
        let (socket, log) = (folder.path().join("temperd.sock"), folder.path().join("log"));
        let mut command = run(&folder.path().join("temperd"), &folder.path().join("state"));
        command.envs(environment.iter().copied());
        Self::start_with(command, &model(), toml, folder, socket, log)
    }

    /// Starts without waiting, at a socket in a folder of its own.
    pub fn start(model: &Path, toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, log) = (folder.path().join("temperd.sock"), folder.path().join("log"));
        Self::start_at(model, toml, folder, socket, log)
    }

    /// Starts without waiting, at a socket elsewhere.
    pub fn start_with_own_socket(model: &Path, toml: &str, socket: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        Self::start_at(model, toml, folder, socket.into(), log)
    }

    /// Starts without waiting, with its log elsewhere.
    pub fn start_with_log(model: &Path, toml: &str, log: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("temperd.sock");
        Self::start_at(model, toml, folder, socket, log.into())
    }

    fn start_at(model: &Path, toml: &str, folder: tempfile::TempDir, socket: PathBuf, log: PathBuf) -> Self {
        Self::start_with(
            run(env!("CARGO_BIN_EXE_temperd").as_ref(), &folder.path().join("state")),
            model,
            toml,
            folder,
            socket,
            log,
        )
    }

    fn start_with(
        mut command: Command,
        model: &Path,
        toml: &str,
        folder: tempfile::TempDir,
        socket: PathBuf,
        log: PathBuf,
    ) -> Self {
        let config = folder.path().join("config.toml");
        fs::write(&config, with_one_thread(toml)).expect("written");
        let names_its_node = toml.lines().any(|line| line.starts_with("node = "));
        let mut child = command
            .arg("--config")
            .arg(&config)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(&socket)
            .args(if names_its_node { &[][..] } else { &["--node", "test"] })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("a log file"))
            .kill_on_drop(true)
            .spawn()
            .expect("the daemon starts");
        let out = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { folder, socket, log, child, out }
    }

    /// The next line on standard output.
    pub async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.out.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => line,
            other => panic!("no line from the daemon: {other:?}\n{}", self.log_text()),
        }
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it lives")
    }

    /// Bytes of its own memory that are in use, without those of files.
    pub fn anonymous_bytes(&self) -> u64 {
        temperd::engine::kernel::anonymous(self.pid()).expect("it lives").0
    }

    /// The engine: the daemon's only child.
    pub fn engine_pid(&self) -> i32 {
        let pid = self.pid();
        let children = (fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").flatten())
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .collect::<String>();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("it has an engine")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("waited")
    }

    /// SIGKILL, and the end.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it dies");
    }

    /// Starts anew with the same configuration in the same place, without waiting.
    pub fn start_again(self) -> Self {
        let config = fs::read_to_string(self.folder.path().join("config.toml")).expect("it is there");
        let Self { folder, socket, log, .. } = self;
        Self::start_at(&model(), &config, folder, socket, log)
    }

    /// SIGTERM, and the end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended().await
    }
}

/// Waits until `/v1/status` says so.
pub async fn until(daemon: &Daemon, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let (_, status) = http::get(&daemon.socket, "/v1/status").await;
        if holds(&status) {
            return status;
        }
        assert!(started.elapsed() < PATIENCE, "never {what}: {status}\n{}", daemon.log_text());
        // The status has no push form over HTTP.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
