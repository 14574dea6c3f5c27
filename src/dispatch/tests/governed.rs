//! Requests across the ends of engines, and under a lowered operating point.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_ran_goes_on_in_the_next_engine_before_what_waited() {
    let mut rig = Rig::ready(1, 4).await;
    let asked = request("a", "hello", |request| {
        request.stream = Some(true);
        request.logprobs = Some(true);
    });
    let mut running = rig.dispatcher.submit(asked).await.expect("admitted");
    let first = rig.started().await;
    assert!(first.written.is_empty());
    rig.says(first.sequence, "half ", None).await;
    let queued = rig.submit("b").await.expect("queued");
    rig.crash().await;
    let again = rig.started().await;
    assert_eq!(again, Start { written: vec![7], ..first.clone() }, "the same, but for what was written");
    rig.says(again.sequence, "and half", Some("stop")).await;
    let mut pieces = String::new();
    let last = loop {
        match running.next().await.expect("an event") {
            Event::Chunk(chunk) => pieces += &chunk.delta,
            Event::Final(last) => break last,
            Event::Embedded(_) => panic!("nobody asked for vectors"),
        }
    };
    assert_eq!((pieces.as_str(), last.outcome.as_str()), ("half and half", "completed"));
    assert_eq!(last.message.expect("a message").content, "half and half");
    let usage = last.usage.expect("usage");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 2));
    let start = rig.started().await;
    rig.says(start.sequence, "whole", Some("stop")).await;
    assert_eq!(queued.outcome().await.outcome, "completed");
    assert_eq!(rig.status.get().engine.expect("an engine").restarts, 1);
    assert_eq!(rig.metrics.totals().prompt_tokens, 10, "each is counted once");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_kills_engines_is_given_up_and_no_other() {
    let mut rig = Rig::ready(2, 4).await;
    let good = rig.submit("a").await.expect("admitted");
    let bad = rig.submit("b").await.expect("admitted");
    let (first, second) = (rig.started().await, rig.started().await);
    rig.crash().await;
    assert_eq!([rig.started().await.sequence, rig.started().await.sequence], [first.sequence, second.sequence]);
    rig.crash().await;
    // Suspects run alone, so that the third crash tells who it was.
    let alone = rig.started().await;
    assert_eq!(alone.sequence, first.sequence);
    rig.settle().await;
    assert!(rig.frames.try_recv().is_err(), "nothing runs beside it");
    rig.says(alone.sequence, "x", Some("stop")).await;
    assert_eq!(good.outcome().await.outcome, "completed");
    assert_eq!(rig.started().await.sequence, second.sequence);
    let waits = rig.submit("c").await.expect("queued");
    rig.crash().await;
    let last = bad.outcome().await;
    assert_eq!((last.outcome.as_str(), last.error.expect("an error").code.as_str()), ("failed", "poison"));
    let start = rig.started().await;
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(waits.outcome().await.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn planned_ends_speak_against_nobody_and_announce_a_pause() {
    let mut rig = Rig::ready(1, 4).await;
    let ticket = rig.submit("a").await.expect("admitted");
    let start = rig.started().await;
    for _ in 0..5 {
        rig.ends(EngineEvent::Changing(Change::GpuLayers)).await;
        let status = rig.status.get();
        assert_eq!(status.pause.expect("announced").reason, "gpu_layers");
        assert_eq!(
            (status.model.expect("a model").state.as_str(), status.reasons),
            ("loading", vec!["model_loading".into()])
        );
        rig.load().await;
        assert_eq!(rig.status.get().pause, None);
        rig.started().await;
    }
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(ticket.outcome().await.outcome, "completed");
    assert_eq!(rig.status.get().engine.expect("an engine").restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn while_engines_keep_dying_it_says_why_and_holds_what_comes() {
    let mut rig = Rig::ready(2, 2).await;
    let running = rig.submit("a").await.expect("admitted");
    rig.started().await;
    let ended = || EngineEvent::Ended { reason: "the engine was ended by signal 6".into() };
    rig.ends(ended()).await;
    let mut waiting = vec![rig.submit("b").await.expect("queued"), rig.submit("c").await.expect("queued")];
    for _ in 0..3 {
        // Also while another is tried.
        rig.event(EngineEvent::Loading).await;
        rig.settle().await;
        let status = rig.status.get();
        assert_eq!((status.ready, status.reasons), (false, vec!["model_loading".into(), "engine_crashed".into()]));
        let model = status.model.expect("a model");
        assert_eq!(
            (model.state.as_str(), model.error.as_deref()),
            ("loading", Some("the engine was ended by signal 6"))
        );
        assert_eq!(rig.submit("d").await.expect_err("there is no room").code, ErrorCode::QueueFull);
        rig.event(ended()).await;
    }
    rig.load().await;
    let status = rig.status.get();
    assert_eq!((status.ready, status.model.expect("a model").error), (true, None));
    waiting.insert(0, running);
    for ticket in waiting {
        let start = rig.started().await;
        rig.says(start.sequence, "x", Some("stop")).await;
        assert_eq!(ticket.outcome().await.outcome, "completed", "nothing of it was lost, and nobody is to blame");
    }
}

/// What an engine may make up, of sequences that run and of others.
fn made_up() -> impl Strategy<Value = EngineEvent> {
    let reason = prop::option::of(prop::sample::select(vec!["", "stop", "length", "cancelled", "error", "?"]));
    let vectors = prop::collection::vec(prop::collection::vec(any::<f32>(), 0..3), 0..3);
    let numbers = prop::option::of((any::<u32>(), any::<u32>()));
    let drawn = (any::<bool>(), 0_u64..4, prop::collection::vec(any::<u32>(), 0..4), reason, vectors, numbers);
    drawn.prop_map(|(embeds, sequence, tokens, reason, vectors, numbers)| {
        let finished = reason.map(|reason| Finished { reason: reason.into(), drafted: 1, ..Finished::default() });
        if embeds {
            let vectors = vectors.into_iter().map(|values| Vector { values }).collect();
            let (limit, actual) = numbers.unzip();
            return EngineEvent::Embedded(Embedded { sequence, vectors, finished, limit, actual });
        }
        let output = SequenceOutput {
            sequence,
            text: "?".repeat(tokens.len()),
            tokens,
            cached_tokens: numbers.map(|(cached, _)| cached),
            finished,
            ..SequenceOutput::default()
        };
        EngineEvent::Step(Step { outputs: vec![output.clone(), output] })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever an engine says, each request has one outcome, and the next engine finds a daemon that works.
    #[test]
    fn no_nonsense_of_an_engine_loses_a_request(events in prop::collection::vec(made_up(), 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let mut rig = Rig::ready(2, 4).await;
            let tickets = [rig.submit("a").await.expect("admitted"), rig.submit("b").await.expect("admitted")];
            for event in events {
                rig.event(event).await;
            }
            rig.settle().await;
            rig.crash().await;
            let next = rig.submit("c").await.expect("admitted");
            for ticket in tickets.into_iter().chain([next]) {
                loop {
                    rig.settle().await;
                    match rig.frames.try_recv() {
                        Ok(Frame::Start(start)) => rig.says(start.sequence, "x", Some("stop")).await,
                        _ => break,
                    }
                }
                ticket.outcome().await;
            }
            rig.settle().await;
            let status = rig.status.get();
            assert_eq!((status.running, status.queue.expect("a queue").depth), (Some(0), 0));
        });
    }
}

#[tokio::test(start_paused = true)]
async fn held_requests_wait_and_those_that_run_finish() {
    let mut rig = Rig::ready(2, 1).await;
    let running = rig.submit("a").await.expect("admitted");
    let start = rig.started().await;
    rig.order(|orders| orders.point.admit = Admit::Hold);
    let mut status = rig.status.watch();
    status.wait_for(|status| !status.ready && status.reasons == ["hold"]).await.expect("held");
    let waits = rig.dispatcher.submit(request("b", "hello", |request| request.deadline_ms = Some(5000)));
    let waits = waits.await.expect("there is room to wait");
    let refused = rig.submit("c").await.expect_err("and no more of it");
    assert!(refused.code == ErrorCode::QueueFull && refused.retry_after_ms.is_some(), "{refused}");
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(running.outcome().await.outcome, "completed");
    assert!(rig.frames.try_recv().is_err(), "nothing starts");
    assert_eq!(waits.outcome().await.outcome, "expired");
    let later = rig.submit("d").await.expect("queued");
    rig.order(|orders| orders.point.admit = Admit::Run);
    let start = rig.started().await;
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(later.outcome().await.outcome, "completed");
    assert!(rig.status.get().ready);
}

#[tokio::test(start_paused = true)]
async fn unloaded_running_ones_wait_too() {
    let mut rig = Rig::ready(1, 4).await;
    let running = rig.submit("a").await.expect("admitted");
    let first = rig.started().await;
    rig.says(first.sequence, "half", None).await;
    rig.order(|orders| orders.point.admit = Admit::Unload);
    rig.ends(EngineEvent::Changing(Change::Unload)).await;
    rig.event(EngineEvent::Unloaded { asleep: false }).await;
    let mut status = rig.status.watch();
    let unloaded = |status: &v1::Status| status.reasons == ["hold", "model_unloaded"];
    status.wait_for(unloaded).await.expect("unloaded");
    assert_eq!(rig.status.get().model.expect("a model").state, "unloaded");
    let queued = rig.submit("b").await.expect("queued by its bytes");
    rig.order(|orders| orders.point.admit = Admit::Run);
    rig.load().await;
    let again = rig.started().await;
    assert_eq!((again.sequence, again.written), (first.sequence, vec![7]));
    rig.says(again.sequence, "", Some("stop")).await;
    assert_eq!(running.outcome().await.message.expect("a message").content, "half");
    let start = rig.started().await;
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(queued.outcome().await.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_daemon_is_ready_and_a_request_is_seen_at_once() {
    let mut rig = Rig::ready(1, 4).await;
    rig.handle.detach();
    rig.event(EngineEvent::Changing(Change::Sleep)).await;
    rig.event(EngineEvent::Unloaded { asleep: true }).await;
    rig.model_is("unloaded", true).await;
    rig.settle().await;
    assert!(rig.status.get().ready && rig.status.get().reasons.is_empty());
    let ticket = rig.submit("a").await.expect("admitted by its bytes");
    let mut demand = rig.demand.clone();
    demand.wait_for(|demand| demand.requests == 1 && demand.admitted == 1).await.expect("the shell hears of it");
    rig.frames = play_tokeniser(&rig.handle);
    rig.load().await;
    let start = rig.started().await;
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(ticket.outcome().await.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn what_the_lowered_context_cannot_hold_waits_and_holds_up_nobody() {
    let mut rig = Rig::ready(2, 4).await;
    rig.order(|orders| orders.point.context = 256);
    rig.settle().await;
    let large = request("large", &"x".repeat(300), |_| ());
    let large = rig.dispatcher.submit(large).await.expect("the configured context holds it");
    let small = rig.submit("small").await.expect("admitted");
    let start = rig.started().await;
    assert_eq!(start.prompt.len(), 5, "it overtakes");
    rig.order(|orders| orders.point.context = CONTEXT);
    let start_large = rig.started().await;
    assert_eq!(start_large.prompt.len(), 300);
    // Lowered again while it runs, and the engine ends: it waits, and those behind it do not.
    rig.order(|orders| orders.point.context = 256);
    rig.crash().await;
    let again = rig.started().await;
    assert_eq!(again.sequence, start.sequence);
    rig.settle().await;
    assert!(rig.frames.try_recv().is_err());
    rig.order(|orders| orders.point.context = CONTEXT);
    assert_eq!(rig.started().await.sequence, start_large.sequence);
    rig.says(start.sequence, "x", Some("stop")).await;
    rig.says(start_large.sequence, "x", Some("stop")).await;
    assert_eq!(
        (small.outcome().await.outcome, large.outcome().await.outcome),
        ("completed".into(), "completed".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_pin_lowers_how_many_run_at_once() {
    let mut rig = Rig::ready(2, 4).await;
    rig.order(|orders| orders.point.parallel = 1);
    rig.settle().await;
    let first = rig.submit("a").await.expect("admitted");
    let _second = rig.submit("b").await.expect("admitted");
    let start = rig.started().await;
    rig.settle().await;
    assert!(rig.frames.try_recv().is_err());
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(first.outcome().await.outcome, "completed");
    rig.started().await;
}

#[tokio::test(start_paused = true)]
async fn paused_requests_can_be_cancelled_and_expire() {
    let mut rig = Rig::ready(2, 4).await;
    let cancelled = rig.submit("a").await.expect("admitted");
    let expires = rig.dispatcher.submit(request("b", "hello", |request| request.deadline_ms = Some(3000)));
    let expires = expires.await.expect("admitted");
    rig.started().await;
    rig.started().await;
    rig.ends(EngineEvent::Changing(Change::GpuLayers)).await;
    assert!(rig.dispatcher.cancel(&Client::uid(1), "a").await);
    assert_eq!(cancelled.outcome().await.outcome, "cancelled");
    assert_eq!(expires.outcome().await.outcome, "expired");
    rig.load().await;
    rig.settle().await;
    assert!(rig.frames.try_recv().is_err(), "nobody wants them any more");
    assert_eq!(rig.status.get().running, Some(0));
}
