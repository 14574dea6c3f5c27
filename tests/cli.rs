//! The command line with the real binary: exit codes, what goes to which stream, `check` against a real mosquitto. The
//! daemon that `ask` and `status` talk to is played by a server of the same schema, which says what a test needs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use temperd::wire::{
    self,
    v1::{self, ChatEvent, chat_event::Event, control_server::ControlServer, inference_server::InferenceServer},
};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::UnixListener, sync::Notify};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

const BINARY: &str = env!("CARGO_BIN_EXE_temperd");

fn temperd(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

// === arguments and configuration ===

#[test]
fn arguments_that_do_not_fit_exit_2() {
    for args in [&[][..], &["fly"], &["ask"], &["run", "--port", "1"], &["stats"], &["kiosk"], &["ask", ""]] {
        assert_eq!(exit(&temperd(args)), 2, "{args:?}");
    }
}

#[test]
fn options_to_come_say_so_and_exit_2() {
    for args in [
        &["ask", "--session", "s", "q"][..],
        &["ask", "--profile", "p", "q"],
        &["ask", "--batch", "f.jsonl"],
        &["status", "--watch"],
    ] {
        let output = temperd(args);
        assert_eq!(exit(&output), 2, "{args:?}");
        assert!(stderr(&output).contains("not available yet"), "{args:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn standard_input_that_is_no_text_exits_2() {
    let mut child = Command::new(BINARY)
        .args(["ask", "--socket", "/nowhere", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\xff\xfe").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(exit(&output), 2);
    assert!(stderr(&output).contains("UTF-8"));
}

#[test]
fn nobody_there_exits_69_and_says_where_it_looked() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("temperd.sock");
    let socket = path.to_str().unwrap();
    for args in [&["ask", "--socket", socket, "q"][..], &["status", "--socket", socket]] {
        let output = temperd(args);
        assert_eq!(exit(&output), 69);
        let text = stderr(&output);
        assert!(text.contains(socket) && text.contains("temperd run"), "{text}");
    }
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let output = temperd(&["status", "--socket", socket]);
    assert_eq!(exit(&output), 69);
    assert!(stderr(&output).contains("nobody listens"));
}

#[test]
fn a_bad_configuration_exits_78_with_every_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("temperd.toml");
    fs::write(&path, "[engine]\ncontext = 1\nthread = 4\n[limits]\nqueue = \"x\"\n").unwrap();
    let output = temperd(&["run", "--config", path.to_str().unwrap(), "--mqtt", "mqtt://me:hunter2@broker"]);
    assert_eq!(exit(&output), 78);
    let text = stderr(&output);
    for part in ["engine.context", "engine.thread:", "limits.queue", "--mqtt", "no model is named"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("hunter2"));
}

// === check ===

fn check(args: &[&str]) -> (i32, String) {
    let output = temperd(&[&["check"], args].concat());
    (exit(&output), stdout(&output))
}

#[test]
fn check_lists_every_error_of_a_bad_configuration() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("temperd.toml");
    fs::write(&path, "[engine]\nmodel = \"m\"\ncontxt = 1\nparallel = 0\n").unwrap();
    let (code, text) = check(&["--config", path.to_str().unwrap(), "--socket", "/s"]);
    assert_eq!(code, 78);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "problem configuration: engine.contxt: unknown key; did you mean `engine.context`? (line 3)",
            "problem configuration: engine.parallel: is 0, must be 1 to 64 (line 4)",
        ]
    );
}

/// A device on which everything is fine: an engine, a board, a model's file.
struct Device {
    folder: TempDir,
}

impl Device {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let engine = folder.path().join("engine");
        fs::write(&engine, "").unwrap();
        fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(folder.path().join("board/proc")).unwrap();
        fs::create_dir_all(folder.path().join("board/sys/devices/system/cpu")).unwrap();
        let meminfo = "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nCmaFree: 100 kB\n";
        fs::write(folder.path().join("board/proc/meminfo"), meminfo).unwrap();
        fs::write(folder.path().join("board/sys/devices/system/cpu/online"), "0-5\n").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn check(&self, model: &Path, mqtt: &str) -> (i32, String) {
        let config = self.path("temperd.toml");
        let engine = self.path("engine");
        fs::write(&config, format!("[engine]\npath = {engine:?}\nthreads = 2\n[mqtt]\n{mqtt}\n")).unwrap();
        check(&[
            "--config",
            config.to_str().unwrap(),
            "--model",
            model.to_str().unwrap(),
            "--socket",
            self.path("temperd.sock").to_str().unwrap(),
            "--board-root",
            self.path("board").to_str().unwrap(),
        ])
    }
}

fn model() -> PathBuf {
    std::env::var_os("TEMPERD_TEST_MODEL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    )
}

#[test]
fn check_finds_nothing_wrong_where_nothing_is() {
    let (code, text) = Device::new().check(&model(), "");
    assert_eq!(code, 0, "{text}");
    for thing in ["configuration", "model", "engine", "memory", "cpu", "socket", "broker"] {
        assert!(text.lines().any(|line| line.starts_with(&format!("ok      {thing}: "))), "{thing} in {text}");
    }
    assert!(text.contains("6 CPUs for 2 threads"), "{text}");
}

#[test]
fn check_exits_1_with_the_remedy() {
    let fixture = Device::new();
    let port = free_port();
    let (code, text) = fixture.check(&fixture.path("none.gguf"), &format!("url = \"mqtt://127.0.0.1:{port}\""));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("problem model: ") && text.contains("fetch-model"), "{text}");
    assert!(text.contains("problem broker: ") && text.contains("start the broker"), "{text}");
}

// === check with a real broker ===

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A mosquitto that wants a login.
struct Broker {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Broker {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        // mosquitto gives up root and reads the files as its own user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let users = folder.path().join("users");
        let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["temperd", "secret"]).status();
        assert!(made.unwrap().success());
        fs::set_permissions(&users, fs::Permissions::from_mode(0o644)).unwrap();
        let port = free_port();
        let config = folder.path().join("mosquitto.conf");
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {}\n", users.display());
        fs::write(&config, text).unwrap();
        let binary = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
        let child = Command::new(binary).arg("-c").arg(&config).stderr(Stdio::null()).spawn().unwrap();
        let broker = Self { child, port, _folder: folder };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return broker;
            }
            thread::sleep(Duration::from_millis(25));
        }
        panic!("mosquitto does not listen on {port}");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn check_connects_to_the_broker_with_the_configured_login() {
    let broker = Broker::start();
    let fixture = Device::new();
    let url = format!("url = \"mqtt://127.0.0.1:{}\"", broker.port);
    let password = fixture.path("password");
    let login = |word: &str| {
        fs::write(&password, word).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
        fixture.check(&model(), &format!("{url}\nuser = \"temperd\"\npassword_file = {password:?}"))
    };
    let (code, text) = login("secret\n");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("takes the connection") && text.contains("mosquitto 2."), "{text}");
    let (code, text) = login("wrong");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("the login is refused") && !text.contains("wrong"), "{text}");
    let (code, text) = fixture.check(&model(), &url);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("the login is refused"), "{text}");
}

#[test]
fn check_says_when_what_listens_is_no_broker_that_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("url = \"mqtt://127.0.0.1:{}\"", listener.local_addr().unwrap().port());
    let (code, text) = Device::new().check(&model(), &url);
    assert_eq!(code, 1, "{text}");
    assert!(text.lines().any(|line| line.starts_with("problem broker: ")), "{text}");
}

// === ask and status, against a daemon that is played ===

type Events = Pin<Box<dyn Stream<Item = Result<ChatEvent, Status>> + Send>>;

/// Answers by the question's text.
#[derive(Clone, Default)]
struct Played {
    /// A stream that never ends was begun, and was dropped.
    begun: Arc<Notify>,
    dropped: Arc<Notify>,
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn chunk(seq: u32, delta: &str, ahead: Option<u32>) -> Result<ChatEvent, Status> {
    let chunk = v1::Chunk { seq, delta: delta.into(), ahead, ..v1::Chunk::default() };
    Ok(ChatEvent { event: Some(Event::Chunk(chunk)) })
}

fn last(outcome: &str, content: &str) -> Result<ChatEvent, Status> {
    let message = v1::Message { role: "assistant".into(), content: content.into(), ..v1::Message::default() };
    let error = (outcome != "completed").then(|| v1::Error {
        code: outcome.into(),
        message: "the reason".into(),
        ..v1::Error::default()
    });
    let usage = Some(v1::Usage { prompt_tokens: 7, completion_tokens: 2, cached_tokens: 0 });
    let last = v1::Final { outcome: outcome.into(), message: Some(message), error, usage, ..v1::Final::default() };
    Ok(ChatEvent { event: Some(Event::Final(last)) })
}

#[tonic::async_trait]
impl v1::inference_server::Inference for Played {
    type ChatStream = Events;
    type CompleteStream = Events;

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let question = &request.messages.last().unwrap().content;
        let events = match question.as_str() {
            "refuse" => {
                let mut metadata = MetadataMap::new();
                metadata.insert("temperd-code", "queue_full".parse().unwrap());
                metadata.insert("retry-after-ms", 2000.into());
                return Err(Status::with_metadata(Code::ResourceExhausted, "64 requests are waiting", metadata));
            }
            "endless" => {
                self.begun.notify_one();
                let guard = NotifyOnDrop(Arc::clone(&self.dropped));
                let endless = stream::once(async { chunk(0, "Once upon", None) }).chain(stream::pending());
                return Ok(Response::new(Box::pin(endless.map(move |event| {
                    let _ = &guard;
                    event
                }))));
            }
            "cut" => vec![chunk(0, "Par", None)],
            outcome @ ("failed" | "cancelled" | "expired") => vec![chunk(0, "Par", None), last(outcome, "Par")],
            _ if request.stream == Some(false) => vec![last("completed", "Paris.")],
            _ => vec![
                chunk(0, "", Some(3)),
                chunk(1, "Par", None),
                chunk(2, &format!("is ({} messages, {question}).", request.messages.len()), None),
                last("completed", &format!("Paris ({} messages, {question}).", request.messages.len())),
            ],
        };
        Ok(Response::new(Box::pin(stream::iter(events))))
    }

    async fn complete(&self, _: Request<v1::CompleteRequest>) -> Result<Response<Events>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn embed(&self, _: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl v1::control_server::Control for Played {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::Status>, Status> {
        let status = v1::Status { ready: true, node: "box".into(), version: "9.9".into(), ..v1::Status::default() };
        Ok(Response::new(status))
    }

    async fn cancel(&self, _: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn set_operating_point(
        &self,
        _: Request<v1::SetOperatingPointRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_session(
        &self,
        _: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Daemon {
    played: Played,
    folder: TempDir,
}

impl Daemon {
    /// Ends with the test's runtime.
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("temperd.sock")).unwrap();
        let played = Played::default();
        let server = tonic::transport::Server::builder()
            .add_service(InferenceServer::new(played.clone()))
            .add_service(ControlServer::new(played.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        Self { played, folder }
    }

    fn command(&self, command: &str, args: &[&str]) -> tokio::process::Command {
        let mut child = tokio::process::Command::new(BINARY);
        child.arg(command).arg("--socket").arg(self.folder.path().join("temperd.sock")).args(args);
        child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        child
    }

    async fn run(&self, command: &str, args: &[&str]) -> Output {
        self.command(command, args).output().await.unwrap()
    }
}

#[tokio::test]
async fn ask_prints_the_answer_alone() {
    let output = Daemon::start().run("ask", &["--system", "Be brief.", "Capital?"]).await;
    assert_eq!((exit(&output), stdout(&output)), (0, "Paris (2 messages, Capital?).\n".into()));
    assert_eq!(stderr(&output), "", "notes are for terminals");
}

#[tokio::test]
async fn ask_reads_the_question_from_standard_input() {
    let daemon = Daemon::start();
    let mut child = daemon.command("ask", &["-"]).stdin(Stdio::piped()).spawn().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), b"Capital?\n").await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((exit(&output), stdout(&output)), (0, "Paris (1 messages, Capital?).\n".into()));
}

#[tokio::test]
async fn ask_json_prints_the_final_in_one_line() {
    let output = Daemon::start().run("ask", &["--json", "Capital?"]).await;
    assert_eq!(exit(&output), 0);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1);
    let last: v1::Final = wire::from_json(text.trim_end().as_bytes()).unwrap();
    assert_eq!((last.outcome.as_str(), last.usage.unwrap().prompt_tokens), ("completed", 7));
}

#[tokio::test]
async fn each_outcome_is_an_exit_code() {
    let daemon = Daemon::start();
    for (question, code, reason) in [
        ("failed", 1, "the reason"),
        ("cut", 1, "without its outcome"),
        ("refuse", 3, "64 requests are waiting [queue_full] (again in 2 s)"),
        ("cancelled", 4, "cancelled"),
        ("expired", 5, "the reason"),
    ] {
        let output = daemon.run("ask", &[question]).await;
        assert_eq!(exit(&output), code, "{question}");
        assert!(stderr(&output).contains(reason), "{question}: {}", stderr(&output));
        let shown = if question == "refuse" { "" } else { "Par\n" };
        assert_eq!(stdout(&output), shown, "{question}");
    }
    let output = daemon.run("ask", &["--json", "refuse"]).await;
    assert_eq!(exit(&output), 3);
    let last: v1::Final = wire::from_json(stdout(&output).trim_end().as_bytes()).unwrap();
    assert_eq!((last.outcome.as_str(), last.retry_after_ms), ("refused", Some(2000)));
}

#[tokio::test]
async fn ctrl_c_cancels_and_exits_4() {
    let daemon = Daemon::start();
    let mut child = daemon.command("ask", &["endless"]).spawn().unwrap();
    daemon.played.begun.notified().await;
    let mut first = [0; 9];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"Once upon", "pieces come as they are made");
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(exit(&output), 4);
    daemon.played.dropped.notified().await;
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_quietly() {
    let daemon = Daemon::start();
    let mut child = daemon.command("ask", &["Capital?"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((exit(&output), stderr(&output)), (0, String::new()));
}

#[tokio::test]
async fn status_for_people_and_for_machines() {
    let daemon = Daemon::start();
    let output = daemon.run("status", &[]).await;
    assert_eq!((exit(&output), stdout(&output)), (0, "temperd    9.9 on box\nstate      ready\n".into()));
    let output = daemon.run("status", &["--json"]).await;
    let status: v1::Status = wire::from_json(stdout(&output).trim_end().as_bytes()).unwrap();
    assert!(status.ready);
}

#[tokio::test]
async fn check_sees_a_daemon_that_listens() {
    let daemon = Daemon::start();
    let output = daemon.run("check", &["--model", model().to_str().unwrap()]).await;
    assert!(stdout(&output).contains("a daemon listens there"), "{}", stdout(&output));
}
