//! A supervisor with a played engine, and the test in the places of dispatcher and governor.

use std::{env, fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, thread, time::Duration};

use rustix::process::Pid;
use temperd::{
    config::{self, Machine, Overrides},
    engine::{
        EngineEvent, EngineHandle,
        operate::{Orders, Vitals},
        plan::Change,
        supervisor::{Supervisor, Tolerance},
    },
    telemetry::metrics::Metrics,
};
use tokio::sync::{Notify, mpsc, watch};

use super::played::LAYERS;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub folder: tempfile::TempDir,
    orders: watch::Sender<Orders>,
    pub vitals: watch::Receiver<Vitals>,
    events: mpsc::Receiver<EngineEvent>,
    pub handle: EngineHandle,
    task: tokio::task::JoinHandle<()>,
}

impl Rig {
    pub fn start(prepare: impl FnOnce(&Path)) -> Self {
        Self::tolerating(Tolerance::default(), prepare)
    }

    pub fn tolerating(tolerance: Tolerance, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let binary = folder.path().join("engine");
        let exe = env::current_exe().unwrap();
        let (at, exe) = (folder.path().display(), exe.display());
        let script = format!("#!/bin/sh\nPLAYED_IN='{at}' exec '{exe}' played::engine --exact --ignored\n");
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
        let handle = EngineHandle::default();
        let supervisor = Supervisor {
            config,
            state_directory: None,
            handle: handle.clone(),
            events: sender,
            reload: Arc::new(Notify::new()),
            metrics: Arc::new(Metrics::new()),
            orders: governed,
            vitals: vitals_sender,
            tolerance,
        };
        Self { folder, orders, vitals, events, handle, task: tokio::spawn(supervisor.run()) }
    }

    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    /// The next event that `wanted` takes.
    pub async fn event<T>(&mut self, wanted: impl Fn(&EngineEvent) -> Option<T>) -> T {
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

    /// What has happened so far is of no interest.
    pub fn forget_events(&mut self) {
        while self.events.try_recv().is_ok() {}
    }

    pub async fn ready(&mut self) -> u32 {
        self.event(|event| match event {
            EngineEvent::Ready(ready) => Some(ready.gpu_layers),
            _ => None,
        })
        .await
    }

    pub async fn changing(&mut self) -> Change {
        self.event(|event| match event {
            EngineEvent::Changing(change) => Some(*change),
            _ => None,
        })
        .await
    }

    /// How the engine ended by itself, or was ended.
    pub async fn ended(&mut self) -> String {
        self.event(|event| match event {
            EngineEvent::Ended { reason } => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// The process of the engine that lives.
    pub async fn engine(&mut self) -> Pid {
        let pid = self.vitals(|vitals| vitals.pid.is_some()).await.pid.unwrap();
        Pid::from_raw(pid.cast_signed()).unwrap()
    }

    pub fn loads(&self) -> usize {
        let told = fs::read_to_string(self.folder.path().join("told")).unwrap();
        told.lines().filter(|line| line.starts_with("load")).count()
    }

    pub async fn vitals(&mut self, so: impl Fn(&Vitals) -> bool) -> Vitals {
        let found = tokio::time::timeout(PATIENCE, self.vitals.wait_for(|vitals| so(vitals))).await;
        found.expect("it comes to be").expect("the supervisor lives").clone()
    }

    /// What engines were told, once there is such a line.
    pub fn told(&self, line: &str) -> String {
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
