//! Engines that hang, leak, talk nonsense, or die while they load.

use std::{fs, thread, time::Duration};

use prost::Message as _;
use rustix::process::{Signal, kill_process, test_kill_process};
use temperd::{
    engine::{
        TokeniseError, frames, growth,
        operate::Vitals,
        plan::Change,
        pulse::{self, Patience},
        supervisor::Tolerance,
    },
    governor::{Bytes, Failure},
    wire::engine::{
        Busy, Embedded, FromEngine, Heartbeat, Hello, LoadFailed, Loading, Log, Ready, Saved, SequenceOutput, Step,
        Tokenised, from_engine::Frame,
    },
};

use super::{
    played::{AT_WORK, HEARD_OUT, LAYERS, vocabulary},
    rig::Rig,
};

/// Of an engine whose thread stands still; it says something twenty times a second.
const STILL: Duration = Duration::from_secs(2);

fn impatient() -> Tolerance {
    let silence = pulse::Bounds::default();
    let serving = Patience { still: STILL, computing: 2 * STILL, ..silence.serving };
    let silence = pulse::Bounds { look: Duration::from_millis(100), serving, ..silence };
    Tolerance { silence, ..Tolerance::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_is_killed_and_replaced_and_one_that_is_heard_of_is_not() {
    let mut rig = Rig::tolerating(impatient(), |folder| fs::write(folder.join("mute"), "").unwrap());
    rig.ready().await;
    let reason = rig.ended().await;
    assert!(reason.starts_with("the engine hangs") && reason.ends_with("it stands still"), "{reason}");
    fs::remove_file(rig.folder.path().join("mute")).unwrap();
    let beats = |vitals: &Vitals| vitals.heartbeat.at_s > 2.0 * STILL.as_secs_f64();
    rig.vitals(beats).await;
    let (engine, loads) = (rig.engine().await, rig.loads());
    rig.forget_events();
    kill_process(engine, Signal::STOP).unwrap();
    assert!(rig.ended().await.starts_with("the engine hangs"));
    rig.ready().await;
    assert_eq!(rig.loads(), loads + 1);
    test_kill_process(engine).expect_err("it is gone");
    let crash = Failure::Crash { gpu_layers: LAYERS, context: 8192 };
    assert!(rig.vitals.borrow().failures.iter().all(|(_, failure)| *failure == crash), "the governor hears of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_tokeniser_hangs_is_replaced_although_it_is_heard_of() {
    let mut rig = Rig::tolerating(impatient(), |_| ());
    rig.ready().await;
    let handle = rig.handle.clone();
    // The played engine has none.
    let asked = tokio::spawn(async move { handle.tokenise_text("a text").await });
    assert!(rig.ended().await.starts_with("nobody tokenises"));
    assert_eq!(asked.await.unwrap(), Err(TokeniseError::Gone));
    rig.ready().await;
}

/// The runtime that everything runs on is held up, as a whole daemon is by SIGSTOP; its engine with it, as where a box sleeps.
#[tokio::test(flavor = "current_thread")]
async fn a_daemon_that_was_stopped_takes_no_engine_to_hang() {
    let mut rig = Rig::tolerating(impatient(), |_| ());
    rig.ready().await;
    let engine = rig.engine().await;
    kill_process(engine, Signal::STOP).unwrap();
    thread::sleep(2 * STILL);
    kill_process(engine, Signal::CONT).unwrap();
    let before = rig.vitals.borrow().heartbeat.at_s;
    rig.vitals(|vitals| vitals.heartbeat.at_s > before.max(2.0 * STILL.as_secs_f64())).await;
    assert_eq!((rig.loads(), rig.engine().await), (1, engine));
}

/// Frames as they are on the socket.
fn on_the_wire(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frames::write(&mut bytes, &FromEngine { frame: Some(frame.clone()) }).unwrap();
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_talks_nonsense_is_replaced() {
    let load_failed = LoadFailed { message: "no such file".into(), no_device: true };
    let answer = SequenceOutput { text: "aa".into(), ..SequenceOutput::default() };
    let mut no_text = on_the_wire(&[Frame::Step(Step { outputs: vec![answer] })]);
    let at = no_text.windows(2).position(|pair| pair == b"aa").unwrap();
    no_text[at] = 0xff;
    let timeless = Heartbeat { at_s: f64::NAN, ..AT_WORK };
    let mut rig = Rig::start(|_| ());
    rig.ready().await;
    for (nonsense, word) in [
        (vec![0xff; 4], "cannot be read"),
        ([&3_u32.to_le_bytes()[..], &[0xff; 3]].concat(), "cannot be read"),
        (no_text, "cannot be read"),
        (on_the_wire(&[Frame::LoadFailed(load_failed)]), "loaded before"),
        (on_the_wire(&[Frame::Ready(Ready { context: 256, ..Ready::default() })]), "loaded before"),
        (on_the_wire(&[Frame::Vocabulary(vocabulary())]), "loaded before"),
        (on_the_wire(&[Frame::Heartbeat(timeless)]), "no time"),
    ] {
        // The next engine says it, and the one after that does not.
        rig.order(|orders| orders.asleep = true);
        assert_eq!(rig.changing().await, Change::Sleep);
        fs::write(rig.folder.path().join("says"), nonsense).unwrap();
        rig.order(|orders| orders.asleep = false);
        rig.ready().await;
        let reason = rig.ended().await;
        assert!(reason.contains("sent a frame that") && reason.contains(word), "{reason} for {word:?}");
        rig.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_no_meaning_and_no_harm_is_left_alone() {
    let stray = SequenceOutput { sequence: 99, text: "?".into(), ..SequenceOutput::default() };
    let harmless = [
        Frame::Step(Step { outputs: vec![stray] }),
        Frame::Tokenised(Tokenised { id: 99, tokens: vec![1], ..Tokenised::default() }),
        Frame::Embedded(Embedded { sequence: 99, ..Embedded::default() }),
        Frame::Saved(Saved { bytes: 5, error: None }),
        Frame::Hello(Hello::default()),
        Frame::Loading(Loading { progress: f32::NAN }),
        Frame::Busy(Busy { seconds: f64::INFINITY }),
        Frame::Log(Log { level: "loud".into(), message: "?".into() }),
    ];
    let mut bytes = on_the_wire(&harmless);
    // One that this build does not know.
    let unknown = [0xfa, 0x3f, 0x00];
    assert_eq!(FromEngine::decode(&unknown[..]), Ok(FromEngine { frame: None }));
    bytes.extend([&3_u32.to_le_bytes()[..], &unknown].concat());
    let mut rig = Rig::start(|folder| fs::write(folder.join("says"), bytes).unwrap());
    rig.ready().await;
    rig.vitals(|vitals| vitals.heartbeat.live_tokens == HEARD_OUT).await;
    assert_eq!((rig.loads(), rig.vitals.borrow().failures.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_leaks_hands_its_state_to_another() {
    let memory =
        growth::Bounds { slack: Bytes::mib(16), lasts: Duration::from_millis(300), ..growth::Bounds::default() };
    let silence = pulse::Bounds { look: Duration::from_millis(50), ..pulse::Bounds::default() };
    let mut rig = Rig::tolerating(Tolerance { silence, memory }, |_| ());
    rig.ready().await;
    rig.vitals(|vitals| vitals.heartbeat.sequences == 1).await;
    rig.told("operate 8192 1");
    fs::write(rig.folder.path().join("grows"), "128").unwrap();
    rig.order(|orders| (orders.point.pace, orders.spare) = (0.5, Bytes(u64::MAX)));
    assert_eq!(rig.changing().await, Change::Leak);
    rig.ready().await;
    let told = rig.told("load -1 8192 what it knew");
    assert!(told.contains("save\n"), "{told}");
    assert!(rig.vitals.borrow().failures.is_empty(), "it is no crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_while_it_loads_is_tried_again_until_one_does_not() {
    let mut rig = Rig::start(|folder| fs::write(folder.join("aborts"), "").unwrap());
    // Without layers it is a crash; with some the governor would have been asked for fewer.
    rig.order(|orders| orders.point.gpu_layers = 0);
    for _ in 0..5 {
        assert_eq!(rig.ended().await, "the engine was ended by signal 6");
    }
    fs::remove_file(rig.folder.path().join("aborts")).unwrap();
    rig.ready().await;
    assert!(rig.vitals.borrow().failures.len() >= 5, "the governor hears of each");
}
