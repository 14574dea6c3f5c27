//! The supervisor against an engine that this test plays: orders that take another engine, failed loads, the state that one
//! engine hands to the next. Real processes and real frames; no model is loaded.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    env, fs,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use temperd::{
    config::{self, Machine, Overrides},
    engine::{
        EngineEvent, EngineHandle, frames,
        operate::{Orders, Vitals},
        plan::Change,
        supervisor::Supervisor,
    },
    governor::{Admit, Bytes, Failure},
    telemetry::metrics::Metrics,
    wire::engine::{
        FromEngine, Heartbeat, Hello, Load, LoadFailed, Operate, Ready, Saved, ToEngine, Vocabulary,
        from_engine::Frame, to_engine,
    },
};
use tokio::sync::{Notify, mpsc, watch};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Layers of the played engine, and of the model's file one less.
const LAYERS: u32 = 5;
const KV_BYTES: u64 = 1000;

// === the engine ===

/// Not a test: what is started as the engine. It does what the file of orders beside it says, and writes down what it was
/// told.
#[test]
#[ignore = "it is the engine that the other tests start"]
fn engine() {
    let Some(folder) = env::var_os("PLAYED_IN").map(PathBuf::from) else { return };
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut socket = UnixStream::from(stdin);
    let say = |socket: &mut UnixStream, frame| frames::write(socket, &FromEngine { frame: Some(frame) }).unwrap();
    let hello = Hello { protocol: frames::PROTOCOL, build: frames::BUILD.into(), flavour: "cuda".into() };
    say(&mut socket, Frame::Hello(hello));
    while let Some(ToEngine { frame: Some(frame) }) = frames::read(&mut socket).unwrap() {
        match frame {
            to_engine::Frame::Load(load) => {
                note(&folder, &format!("load {} {} {}", load.gpu_layers, load.context, restored(&load)));
                if let Some(answer) = refusal(&folder, &load) {
                    say(&mut socket, answer);
                    continue;
                }
                say(&mut socket, Frame::Vocabulary(vocabulary()));
                say(&mut socket, Frame::Ready(ready(&load)));
                let at_work = Heartbeat { sequences: 1, live_tokens: 10, ..Heartbeat::default() };
                say(&mut socket, Frame::Heartbeat(at_work));
            }
            to_engine::Frame::Operate(Operate { context, pace, .. }) => {
                note(&folder, &format!("operate {context} {pace}"));
            }
            to_engine::Frame::Save(_) => {
                note(&folder, "save");
                let mut file = inherited("TEMPERD_SAVE_FD").unwrap();
                file.write_all(b"what it knew").unwrap();
                say(&mut socket, Frame::Saved(Saved { bytes: 12, error: None }));
            }
            _ => {}
        }
    }
}

/// The file that an environment variable names by number.
fn inherited(name: &str) -> Option<fs::File> {
    let number: i32 = env::var(name).ok()?.parse().unwrap();
    Some(fs::OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{number}")).unwrap())
}

fn restored(load: &Load) -> String {
    let Some(mut file) = inherited("TEMPERD_RESTORE_FD").filter(|_| load.restore) else { return "anew".into() };
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Refuses any layers where there is a file `lacks`, more layers than the file `most` allows, and whatever the file
/// `refuses` says.
fn refusal(folder: &Path, load: &Load) -> Option<Frame> {
    let most: Option<i32> = fs::read_to_string(folder.join("most")).ok().and_then(|text| text.parse().ok());
    let wanted = if load.gpu_layers < 0 { LAYERS.cast_signed() } else { load.gpu_layers };
    if wanted > 0 && folder.join("lacks").exists() {
        return Some(Frame::LoadFailed(LoadFailed { message: "no device".into(), no_device: true }));
    }
    let message = match most {
        Some(most) if wanted > most => "unable to allocate CUDA0 buffer".into(),
        _ => fs::read_to_string(folder.join("refuses")).ok()?,
    };
    Some(Frame::LoadFailed(LoadFailed { message, no_device: false }))
}

fn ready(load: &Load) -> Ready {
    let asked = u32::try_from(load.gpu_layers).unwrap_or(LAYERS);
    Ready {
        context: load.context,
        gpu_layers: asked.min(LAYERS),
        layers: LAYERS,
        allocated_context: 256,
        kv_bytes_per_token: KV_BYTES,
        ..Ready::default()
    }
}

fn vocabulary() -> Vocabulary {
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    Vocabulary { chat_template: Some(template.into()), ..Vocabulary::default() }
}

fn note(folder: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(folder.join("told")).unwrap();
    writeln!(file, "{line}").unwrap();
}

// === the test's side ===

struct Rig {
    folder: tempfile::TempDir,
    orders: watch::Sender<Orders>,
    vitals: watch::Receiver<Vitals>,
    events: mpsc::Receiver<EngineEvent>,
    task: tokio::task::JoinHandle<()>,
}

impl Rig {
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let binary = folder.path().join("engine");
        let exe = env::current_exe().unwrap();
        let (at, exe) = (folder.path().display(), exe.display());
        let script = format!("#!/bin/sh\nPLAYED_IN='{at}' exec '{exe}' engine --exact --ignored\n");
        fs::write(&binary, script).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let model = folder.path().join("model.gguf");
        fs::write(&model, gguf(LAYERS - 1)).unwrap();
        let machine =
            Machine { hostname: "test".into(), default_socket: Some("/tmp/socket".into()), state_directory: None };
        let overrides = Overrides { model: Some(model), ..Overrides::default() };
        let config = config::parse("", overrides, &machine).unwrap().engine;
        let config = config::Engine { path: Some(binary), ..config };
        let (orders, governed) = watch::channel(Orders::full(&config));
        let (vitals_sender, vitals) = watch::channel(Vitals::default());
        let (sender, events) = mpsc::channel(64);
        let supervisor = Supervisor {
            config,
            state_directory: None,
            handle: EngineHandle::default(),
            events: sender,
            reload: Arc::new(Notify::new()),
            metrics: Arc::new(Metrics::new()),
            orders: governed,
            vitals: vitals_sender,
        };
        Self { folder, orders, vitals, events, task: tokio::spawn(supervisor.run()) }
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    /// The next event that `wanted` takes.
    async fn event<T>(&mut self, wanted: impl Fn(&EngineEvent) -> Option<T>) -> T {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the supervisor lives");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                assert!(!matches!(event, EngineEvent::Failed { .. }), "{event:?}");
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("the event comes")
    }

    async fn ready(&mut self) -> u32 {
        self.event(|event| match event {
            EngineEvent::Ready(ready) => Some(ready.gpu_layers),
            _ => None,
        })
        .await
    }

    async fn changing(&mut self) -> Change {
        self.event(|event| match event {
            EngineEvent::Changing(change) => Some(*change),
            _ => None,
        })
        .await
    }

    async fn vitals(&mut self, so: impl Fn(&Vitals) -> bool) -> Vitals {
        let found = tokio::time::timeout(PATIENCE, self.vitals.wait_for(|vitals| so(vitals))).await;
        found.expect("it comes to be").expect("the supervisor lives").clone()
    }

    /// What engines were told, once there is such a line.
    fn told(&self, line: &str) -> String {
        let started = std::time::Instant::now();
        loop {
            let told = fs::read_to_string(self.folder.path().join("told")).unwrap_or_default();
            if told.lines().any(|one| one == line) {
                return told;
            }
            assert!(started.elapsed() < PATIENCE, "no {line:?} in\n{told}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The least that is a GGUF, with so many blocks.
fn gguf(blocks: u32) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    text(&mut bytes, "general.architecture");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, "played");
    text(&mut bytes, "played.block_count");
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend(blocks.to_le_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operating_point_is_sent_before_anything_else_and_with_each_change() {
    let mut rig = Rig::start(|_| ());
    assert_eq!(rig.ready().await, LAYERS);
    let told = rig.told("operate 8192 1");
    assert_eq!(told.lines().next(), Some("load -1 8192 anew"));
    rig.order(|orders| orders.point.pace = 0.5);
    rig.told("operate 8192 0.5");
    rig.order(|orders| orders.point.context = 4096);
    let told = rig.told("operate 4096 0.5");
    assert_eq!(told.lines().filter(|line| line.starts_with("load")).count(), 1, "within the same engine");
    let vitals = rig.vitals(|vitals| vitals.heartbeat.sequences == 1).await;
    assert_eq!((vitals.layers, vitals.loading, vitals.allocated_context), (LAYERS, false, 256));
    assert!(vitals.pid.is_some() && vitals.load > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_layers_takes_another_engine_which_gets_the_state() {
    let mut rig = Rig::start(|_| ());
    assert_eq!(rig.ready().await, LAYERS);
    rig.vitals(|vitals| vitals.heartbeat.sequences == 1).await;
    rig.order(|orders| (orders.point.gpu_layers, orders.spare) = (2, Bytes(KV_BYTES * 11)));
    assert_eq!(rig.changing().await, Change::GpuLayers);
    assert_eq!(rig.ready().await, 2);
    let told = rig.told("load 2 8192 what it knew");
    assert!(told.contains("save\n"), "{told}");
    // Without room for it, prompts are read again.
    rig.vitals(|vitals| vitals.heartbeat.sequences == 1).await;
    rig.order(|orders| (orders.point.gpu_layers, orders.spare) = (LAYERS, Bytes(KV_BYTES * 10)));
    assert_eq!(rig.changing().await, Change::GpuLayers);
    assert_eq!(rig.ready().await, LAYERS);
    assert_eq!(rig.told("load -1 8192 anew").matches("save\n").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unload_ends_the_engine_and_run_brings_another() {
    let mut rig = Rig::start(|_| ());
    rig.ready().await;
    rig.order(|orders| (orders.point.admit, orders.spare) = (Admit::Unload, Bytes(u64::MAX)));
    assert_eq!(rig.changing().await, Change::Unload);
    let asleep = |event: &EngineEvent| match event {
        EngineEvent::Unloaded { asleep } => Some(*asleep),
        _ => None,
    };
    assert!(!rig.event(asleep).await);
    assert!(rig.vitals(|vitals| vitals.ready.is_none()).await.pid.is_none());
    rig.order(|orders| orders.point.admit = Admit::Hold);
    rig.order(|orders| orders.point.admit = Admit::Run);
    rig.ready().await;
    rig.order(|orders| orders.asleep = true);
    assert_eq!(rig.changing().await, Change::Sleep);
    assert!(rig.event(asleep).await);
    rig.order(|orders| orders.asleep = false);
    rig.ready().await;
    let told = rig.told("load -1 8192 anew");
    assert!(!told.contains("save"), "memory is what it is for:\n{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_told_to_the_governor_and_tried_with_less() {
    let mut rig = Rig::start(|folder| fs::write(folder.join("most"), "2").unwrap());
    let load = |gpu_layers| Failure::Load { gpu_layers, context: 8192 };
    let vitals = rig.vitals(|vitals| !vitals.failures.is_empty()).await;
    assert_eq!(vitals.failures, [(0, load(LAYERS))]);
    // What the governor makes of it.
    rig.order(|orders| orders.point.gpu_layers = 3);
    rig.vitals(|vitals| vitals.failures.len() == 2).await;
    rig.order(|orders| orders.point.gpu_layers = 2);
    assert_eq!(rig.ready().await, 2);
    assert_eq!(rig.vitals.borrow().failures, [(0, load(LAYERS)), (1, load(3))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_engine_is_loaded_without_layers_where_it_finds_no_device() {
    let mut rig = Rig::start(|folder| fs::write(folder.join("lacks"), "").unwrap());
    rig.event(|event| matches!(event, EngineEvent::Greeted { flavour } if flavour == "cuda").then_some(())).await;
    assert_eq!(rig.ready().await, 0);
    let told = rig.told("load 0 8192 anew");
    assert!(told.starts_with("load -1 8192 anew\nload 0 8192 anew\n"), "{told}");
    let vitals = rig.vitals(|vitals| vitals.ready.is_some()).await;
    assert!(vitals.failures.is_empty(), "it is none of the governor's business");
    // An engine that is needed anew may find one.
    fs::remove_file(rig.folder.path().join("lacks")).unwrap();
    rig.order(|orders| orders.asleep = true);
    assert_eq!(rig.changing().await, Change::Sleep);
    rig.order(|orders| orders.asleep = false);
    assert_eq!(rig.ready().await, LAYERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_stays_failed_once_nothing_is_left_on_the_gpu() {
    let broken = "unknown model architecture: 'played'";
    let mut rig = Rig::start(|folder| fs::write(folder.join("refuses"), broken).unwrap());
    rig.vitals(|vitals| !vitals.failures.is_empty()).await;
    rig.order(|orders| orders.point.gpu_layers = 0);
    let failed = |event: &EngineEvent| match event {
        EngineEvent::Failed { reason } => Some(reason.clone()),
        _ => None,
    };
    assert!(rig.event(failed).await.contains(broken));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_is_replaced_and_the_governor_hears_of_it() {
    let mut rig = Rig::start(|_| ());
    rig.ready().await;
    let pid = rig.vitals(|vitals| vitals.pid.is_some()).await.pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let ended = |event: &EngineEvent| matches!(event, EngineEvent::Ended { .. }).then_some(());
    rig.event(ended).await;
    rig.ready().await;
    let crash = Failure::Crash { gpu_layers: LAYERS, context: 8192 };
    assert_eq!(rig.vitals.borrow().failures, [(0, crash)]);
}
