//! The supervisor against an engine that this test plays: orders that take another engine, failed loads, the state that one
//! engine hands to the next, engines that are given up. Real processes and real frames; no model is loaded.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "supervising/given_up.rs"]
mod given_up;
#[path = "supervising/played.rs"]
mod played;
#[path = "supervising/rig.rs"]
mod rig;

use std::{fs, time::Duration};

use played::{KV_BYTES, LAYERS};
use rig::Rig;
use rustix::process::{Signal, kill_process};
use temperd::{
    engine::{EngineEvent, plan::Change},
    governor::{Admit, Bytes, Failure},
};

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
    kill_process(rig.engine().await, Signal::KILL).unwrap();
    assert_eq!(rig.ended().await, "the engine was ended by signal 9");
    rig.ready().await;
    let crash = Failure::Crash { gpu_layers: LAYERS, context: 8192 };
    assert_eq!(rig.vitals.borrow().failures, [(0, crash)]);
}
