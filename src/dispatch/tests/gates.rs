//! Requests that need leave to run.

use futures_util::FutureExt as _;

use super::*;
use crate::dispatch::gate::{Gate, Knock};

async fn behind_a_gate(rig: &Rig, id: &str) -> (Ticket, Knock) {
    let (gate, knock) = Gate::shut();
    let ticket = rig.dispatcher.submit_behind(gate, request(id, "hello", |_| ())).await.expect("admitted");
    (ticket, knock)
}

#[tokio::test(start_paused = true)]
async fn one_behind_a_gate_starts_with_leave_and_is_not_overtaken() {
    let mut rig = Rig::ready(2, 4).await;
    let (_gated, mut knock) = behind_a_gate(&rig, "a").await;
    let leave = knock.heard().await;
    let _next = rig.submit("b").await.expect("admitted");
    rig.settle().await;
    assert!(rig.frames.try_recv().is_err(), "nothing starts");
    leave.give();
    let started = [rig.started().await.sequence, rig.started().await.sequence];
    assert!(started[0] < started[1], "in the order of arrival");
}

#[tokio::test(start_paused = true)]
async fn leave_is_asked_for_all_that_could_start_and_for_no_other() {
    let mut rig = Rig::ready(2, 4).await;
    let (first, mut knock) = behind_a_gate(&rig, "a").await;
    let (_second, mut second) = behind_a_gate(&rig, "b").await;
    let (_third, mut third) = behind_a_gate(&rig, "c").await;
    let (leave, second) = (knock.heard().await, second.heard().await);
    rig.settle().await;
    assert!(third.heard().now_or_never().is_none(), "there is no slot for it");
    // One that goes away before it has run leaves its place to the next; its leave comes too late.
    drop(first);
    let third = third.heard().await;
    leave.give();
    rig.settle().await;
    assert!(rig.frames.try_recv().is_err());
    second.give();
    third.give();
    rig.started().await;
    rig.started().await;
}

#[tokio::test(start_paused = true)]
async fn another_engine_needs_no_second_leave_and_a_way_in_that_is_gone_gives_it() {
    let mut rig = Rig::ready(1, 4).await;
    let (_ticket, mut knock) = behind_a_gate(&rig, "a").await;
    drop(knock.heard().await);
    let sequence = rig.started().await.sequence;
    rig.crash().await;
    assert_eq!(rig.started().await.sequence, sequence);
}
