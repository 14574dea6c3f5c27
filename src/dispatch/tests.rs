//! The owner against a scripted engine, in stopped time: what is admitted, started, ended, and that each request has
//! exactly one outcome.

use std::{collections::HashMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::sync::{mpsc, watch};

use super::{Demand, Dispatcher, Event, Governing, Settings, Ticket, initial_status};
use crate::{
    chat::Prompter,
    config::{Adapter, Machine, Overrides, SharePrefix},
    engine::{EngineEvent, EngineHandle, operate::Orders, plan::Change},
    governor::Admit,
    request::{Client, ErrorCode, Request, RequestError, WayIn, check},
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::{
        engine::{
            AdapterFailed, Embed, Embedded, Finished, Hello, Ready, Resized, SequenceOutput, Start, Step, ToEngine,
            Tokenised, Vector, Vocabulary, to_engine::Frame,
        },
        v1,
    },
};

mod gates;
mod governed;

const CONTEXT: u32 = 512;

/// A dispatcher, and its engine played by the test. A prompt has as many tokens as bytes.
struct Rig {
    dispatcher: Dispatcher,
    events: mpsc::Sender<EngineEvent>,
    /// `Start` and `Stop` frames; `Tokenise` is answered at once.
    frames: mpsc::Receiver<Frame>,
    handle: EngineHandle,
    status: StatusBoard,
    metrics: Arc<Metrics>,
    orders: watch::Sender<Orders>,
    demand: watch::Receiver<Demand>,
}

impl Rig {
    fn new(parallel: u32, queue: u32) -> Self {
        let machine = Machine {
            hostname: "test".into(),
            default_socket: Some("/tmp/temperd-test.sock".into()),
            state_directory: None,
        };
        let overrides = Overrides { model: Some("model.gguf".into()), ..Overrides::default() };
        let config = crate::config::parse("", overrides, &machine).expect("a configuration");
        let status = StatusBoard::new(initial_status(&config));
        let metrics = Arc::new(Metrics::new());
        let handle = EngineHandle::default();
        let (events, incoming) = mpsc::channel(64);
        let settings = Settings {
            node: "test".into(),
            context: CONTEXT,
            parallel,
            queue,
            share: 100,
            deadline: Duration::from_secs(60),
            max_tokens: 16,
            share_prefix: SharePrefix::System,
            adapters: adapters(),
        };
        let (orders, governed) = watch::channel(Orders::full(&config.engine));
        let (demand_sender, demand) = watch::channel(Demand::default());
        let governing = Governing { orders: governed, demand: demand_sender };
        let dispatcher =
            Dispatcher::start(settings, handle.clone(), incoming, governing, status.clone(), metrics.clone());
        let frames = play_tokeniser(&handle);
        Self { dispatcher, events, frames, handle, status, metrics, orders, demand }
    }

    async fn ready(parallel: u32, queue: u32) -> Self {
        let rig = Self::new(parallel, queue);
        rig.load().await;
        rig
    }

    async fn load(&self) {
        self.event(EngineEvent::Loading).await;
        self.event(EngineEvent::Vocabulary(Arc::new(prompter()))).await;
        self.event(EngineEvent::Ready(Ready { context: CONTEXT, ..Ready::default() })).await;
        self.model_is("ready", true).await;
    }

    /// Waits until the model is in this state, or in another.
    async fn model_is(&self, state: &str, so: bool) {
        let mut status = self.status.watch();
        let is = |status: &v1::Status| status.model.as_ref().is_some_and(|model| model.state == state) == so;
        status.wait_for(is).await.expect("the owner lives");
    }

    /// The engine dies, and another is ready.
    async fn crash(&mut self) {
        self.ends(EngineEvent::Ended { reason: "the engine was ended by signal 9".into() }).await;
        self.load().await;
    }

    /// The engine ends in this way.
    async fn ends(&mut self, event: EngineEvent) {
        self.handle.detach();
        self.event(event).await;
        self.model_is("ready", false).await;
        self.frames = play_tokeniser(&self.handle);
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    /// Lets the owner act on what it was sent.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn event(&self, event: EngineEvent) {
        self.events.send(event).await.expect("the owner lives");
    }

    async fn submit(&self, id: &str) -> Result<Ticket, RequestError> {
        self.dispatcher.submit(request(id, "hello", |_| ())).await
    }

    async fn started(&mut self) -> Start {
        match self.frames.recv().await {
            Some(Frame::Start(start)) => start,
            other => panic!("not a start: {other:?}"),
        }
    }

    async fn embeds(&mut self) -> Embed {
        match self.frames.recv().await {
            Some(Frame::Embed(embed)) => embed,
            other => panic!("not an embed: {other:?}"),
        }
    }

    async fn embedded(&self, embedded: Embedded) {
        self.event(EngineEvent::Embedded(embedded)).await;
    }

    async fn stopped(&mut self) -> u64 {
        match self.frames.recv().await {
            Some(Frame::Stop(stop)) => stop.sequence,
            other => panic!("not a stop: {other:?}"),
        }
    }

    async fn says(&self, sequence: u64, text: &str, end: Option<&str>) {
        let finished = end.map(|reason| Finished { reason: reason.into(), ..Finished::default() });
        let output =
            SequenceOutput { sequence, tokens: vec![7], text: text.into(), finished, ..SequenceOutput::default() };
        self.event(EngineEvent::Step(Step { outputs: vec![output] })).await;
    }
}

/// Connects to the handle as an engine does, answers `Tokenise`, passes the rest on.
fn play_tokeniser(handle: &EngineHandle) -> mpsc::Receiver<Frame> {
    let mut outgoing =
        handle.attach([Frame::Hello(Hello::default()), Frame::Load(crate::wire::engine::Load::default())]);
    let (sender, frames) = mpsc::channel(256);
    let handle = handle.clone();
    tokio::spawn(async move {
        while let Some(ToEngine { frame: Some(frame) }) = outgoing.recv().await {
            match frame {
                Frame::Tokenise(ask) => {
                    let tokens = ask.segments.iter().flat_map(|segment| segment.text.bytes().map(u32::from)).collect();
                    handle.tokenised(Tokenised { id: ask.id, tokens, ..Tokenised::default() });
                }
                Frame::Hello(_) | Frame::Load(_) => {}
                other => sender.send(other).await.expect("the test listens"),
            }
        }
    });
    frames
}

fn prompter() -> Prompter {
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    Prompter::new(&Vocabulary { chat_template: Some(template.into()), ..Vocabulary::default() }).expect("a template")
}

fn adapters() -> Vec<Adapter> {
    let adapter = |name: &str| Adapter { name: name.into(), path: "x.gguf".into(), scale: 0.5 };
    vec![adapter("polite"), adapter("brief")]
}

#[tokio::test(start_paused = true)]
async fn the_status_says_how_many_cells_are_allocated() {
    let rig = Rig::new(4, 4);
    rig.event(EngineEvent::Loading).await;
    rig.event(EngineEvent::Vocabulary(Arc::new(prompter()))).await;
    let mut status = rig.status.watch();
    let ready = Ready { context: CONTEXT, allocated_context: 32, ..Ready::default() };
    for (event, cells) in [
        (EngineEvent::Ready(ready), 32),
        (EngineEvent::Resized(Resized { allocated_context: 64 }), 64),
        (EngineEvent::Ended { reason: "it was killed".into() }, 0),
    ] {
        rig.event(event).await;
        status.wait_for(|status| status.allocated_context == cells).await.expect("the owner lives");
    }
}

fn for_adapter(id: &str, name: &str) -> Request {
    request(id, "hello", |request| request.adapter = Some(name.into()))
}

#[tokio::test(start_paused = true)]
async fn an_adapter_is_chosen_by_name_and_one_of_no_use_is_refused_by_name() {
    let mut rig = Rig::new(4, 4);
    rig.event(EngineEvent::Loading).await;
    rig.event(EngineEvent::Vocabulary(Arc::new(prompter()))).await;
    // It came while the model was loading, and nobody knew yet.
    let early = rig.dispatcher.submit(for_adapter("a", "polite")).await.expect("admitted");
    let failed = vec![AdapterFailed { name: "polite".into(), message: "it is torn".into() }];
    rig.event(EngineEvent::Ready(Ready { context: CONTEXT, adapters_failed: failed, ..Ready::default() })).await;
    let last = early.outcome().await;
    assert_eq!(last.outcome, "failed");
    assert_eq!(last.error.expect("an error").message, "adapter: `polite` cannot be used: it is torn");

    assert_eq!(code(rig.dispatcher.submit(for_adapter("b", "polite")).await), ErrorCode::ModelUnavailable);
    assert_eq!(code(rig.dispatcher.submit(for_adapter("c", "rude")).await), ErrorCode::InvalidRequest);
    let _brief = rig.dispatcher.submit(for_adapter("d", "brief")).await.expect("admitted");
    let start = rig.started().await;
    assert_eq!((start.adapter, start.adapter_scale), (2, 0.5));
    let _plain = rig.submit("e").await.expect("admitted");
    assert_eq!(rig.started().await.adapter, 0);
}

fn request(id: &str, text: &str, change: impl FnOnce(&mut v1::ChatRequest)) -> Request {
    let message = v1::Message { role: "user".into(), content: text.into(), ..v1::Message::default() };
    let mut request = v1::ChatRequest { id: id.into(), messages: vec![message], ..v1::ChatRequest::default() };
    change(&mut request);
    let bounds = check::Bounds { context: CONTEXT, payload_bytes: 1 << 20 };
    check::chat(request, Client::uid(1), WayIn::Http, &bounds).expect("a good request")
}

fn code(refused: Result<Ticket, RequestError>) -> ErrorCode {
    refused.expect_err("refused").code
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_in_pieces_and_whole() {
    let mut rig = Rig::ready(1, 4).await;
    let request = request("a", "hello", |request| request.stream = Some(true));
    let mut ticket = rig.dispatcher.submit(request).await.expect("admitted");
    let start = rig.started().await;
    assert_eq!(start.prompt, b"hello".map(u32::from));
    rig.says(start.sequence, "Good ", None).await;
    rig.says(start.sequence, "day", Some("stop")).await;
    let mut pieces = String::new();
    let last = loop {
        match ticket.next().await.expect("an event") {
            Event::Chunk(chunk) => pieces += &chunk.delta,
            Event::Final(last) => break last,
            Event::Embedded(_) => panic!("nobody asked for vectors"),
        }
    };
    assert_eq!(pieces, "Good day");
    assert_eq!((last.outcome.as_str(), last.finish_reason.as_deref()), ("completed", Some("stop")));
    assert_eq!(last.message.expect("a message").content, "Good day");
    let usage = last.usage.expect("usage");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 2));
}

fn texts(id: &str, input: &[&str]) -> Request {
    let input = input.iter().map(|text| (*text).into()).collect();
    let request = v1::EmbedRequest { id: id.into(), input, ..v1::EmbedRequest::default() };
    let bounds = check::Bounds { context: CONTEXT, payload_bytes: 1 << 20 };
    check::embed(request, Client::uid(1), WayIn::Http, &bounds).expect("a good request")
}

fn vectors(sequence: u64, values: &[f32], end: Option<&str>) -> Embedded {
    Embedded {
        sequence,
        vectors: values.iter().map(|value| Vector { values: vec![*value] }).collect(),
        finished: end.map(|reason| Finished { reason: reason.into(), ..Finished::default() }),
        ..Embedded::default()
    }
}

#[tokio::test(start_paused = true)]
async fn vectors_come_in_parts_and_are_answered_as_one() {
    let mut rig = Rig::ready(1, 4).await;
    let ticket = rig.dispatcher.submit(texts("a", &["one", "three", "x"])).await.expect("admitted");
    let embed = rig.embeds().await;
    assert_eq!((embed.lengths, embed.cells), (vec![3, 5, 1], 9));
    assert_eq!(embed.tokens, b"onethreex".map(u32::from));
    rig.embedded(vectors(embed.sequence, &[1.0, 2.0], None)).await;
    rig.embedded(vectors(embed.sequence, &[3.0], Some("stop"))).await;
    let reply = ticket.embedded().await;
    assert_eq!((reply.id.as_str(), reply.outcome.as_str(), reply.error), ("a", "completed", None));
    assert_eq!(reply.embeddings.iter().map(|one| one.values[0]).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
    let usage = reply.usage.expect("usage");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (9, 0));
    assert_eq!(rig.metrics.totals().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn embeddings_that_fail_or_are_cancelled_have_one_outcome_and_no_vectors() {
    let mut rig = Rig::ready(1, 4).await;
    let ticket = rig.dispatcher.submit(texts("a", &["one", "two"])).await.expect("admitted");
    let embed = rig.embeds().await;
    let waits = rig.dispatcher.submit(texts("b", &["one"])).await.expect("queued");
    rig.embedded(vectors(embed.sequence, &[1.0], None)).await;
    let end = Finished { reason: "error".into(), error: Some("too long".into()), ..Finished::default() };
    let (limit, actual) = (Some(2), Some(3));
    rig.embedded(Embedded { limit, actual, finished: Some(end), ..vectors(embed.sequence, &[], None) }).await;
    let reply = ticket.embedded().await;
    assert_eq!((reply.outcome.as_str(), reply.embeddings.len()), ("failed", 0));
    let error = reply.error.expect("an error");
    assert_eq!((error.code.as_str(), error.limit, error.actual), ("context_length_exceeded", limit, actual));

    let embed = rig.embeds().await;
    assert!(rig.dispatcher.cancel(&Client::uid(1), "b").await);
    assert_eq!(waits.embedded().await.outcome, "cancelled");
    assert_eq!(rig.stopped().await, embed.sequence);
    let next = rig.dispatcher.submit(texts("c", &["one"])).await.expect("queued");
    assert!(rig.frames.try_recv().is_err(), "the slot is still taken");
    rig.embedded(vectors(embed.sequence, &[], Some("cancelled"))).await;
    let embed = rig.embeds().await;
    rig.embedded(vectors(embed.sequence, &[7.0], None)).await;
    rig.crash().await;
    let again = rig.embeds().await;
    assert_eq!((again.sequence, again.tokens), (embed.sequence, embed.tokens), "all of it is read again");
    rig.embedded(vectors(again.sequence, &[8.0], Some("stop"))).await;
    let reply = next.embedded().await;
    assert_eq!(reply.embeddings.iter().map(|one| one.values[0]).collect::<Vec<_>>(), [8.0]);
    let too_long = texts("d", &["x", &"y".repeat(CONTEXT as usize + 1)]);
    let error = rig.dispatcher.submit(too_long).await.expect_err("refused");
    assert_eq!((error.code, error.param.as_deref()), (ErrorCode::ContextLengthExceeded, Some("input[1]")));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_and_a_prompt_too_long_are_refused() {
    let mut rig = Rig::ready(1, 1).await;
    let _running = rig.submit("a").await.expect("admitted");
    rig.started().await;
    let _queued = rig.submit("b").await.expect("queued");
    let mut other = request("c", "hello", |_| ());
    assert_eq!(code(rig.submit("c").await), ErrorCode::ShareExceeded);
    other.client = Client::uid(2);
    let error = rig.dispatcher.submit(other).await.expect_err("full");
    assert_eq!(error.code, ErrorCode::QueueFull);
    assert!(error.retry_after_ms.is_some());
    // Before anybody looks at how long it is.
    let long = || request("d", &"x".repeat(CONTEXT as usize), |_| ());
    let error = rig.dispatcher.submit(long()).await.expect_err("full");
    assert_eq!(error.code, ErrorCode::ShareExceeded);
    assert_eq!(rig.metrics.totals().refused, 3);
    let rig = Rig::ready(1, 1).await;
    let error = rig.dispatcher.submit(long()).await.expect_err("too long");
    assert_eq!((error.code, error.limit, error.actual), (ErrorCode::ContextLengthExceeded, Some(512), Some(512)));
    assert_eq!(rig.metrics.totals().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_id_twice_at_once_is_a_conflict() {
    let rig = Rig::ready(1, 4).await;
    let _first = rig.submit("a").await.expect("admitted");
    assert_eq!(code(rig.submit("a").await), ErrorCode::IdConflict);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_only_once_the_engine_says_so() {
    let mut rig = Rig::ready(1, 4).await;
    let first = rig.submit("a").await.expect("admitted");
    let start = rig.started().await;
    let second = rig.submit("b").await.expect("queued");
    assert!(rig.dispatcher.cancel(&Client::uid(1), "a").await);
    assert_eq!(first.outcome().await.outcome, "cancelled");
    assert_eq!(rig.stopped().await, start.sequence);
    assert!(rig.frames.try_recv().is_err(), "the slot is still taken");
    rig.says(start.sequence, "", Some("cancelled")).await;
    let start = rig.started().await;
    rig.says(start.sequence, "x", Some("length")).await;
    assert_eq!(second.outcome().await.outcome, "completed");
    assert!(!rig.dispatcher.cancel(&Client::uid(1), "b").await, "it has its outcome");
}

#[tokio::test(start_paused = true)]
async fn cells_bound_what_runs_beside() {
    let mut rig = Rig::ready(4, 4).await;
    let large = request("a", &"x".repeat(400), |_| ());
    let _large = rig.dispatcher.submit(large).await.expect("admitted");
    let first = rig.started().await;
    let second = request("b", &"y".repeat(200), |_| ());
    let _second = rig.dispatcher.submit(second).await.expect("queued");
    let _third = rig.submit("c").await.expect("queued");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.frames.try_recv().is_err(), "the small one does not overtake the one that does not fit");
    rig.says(first.sequence, "x", Some("stop")).await;
    assert_eq!(rig.started().await.prompt.len(), 200);
    assert_eq!(rig.started().await.prompt.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_ticket_cancels() {
    let mut rig = Rig::ready(1, 4).await;
    let ticket = rig.submit("a").await.expect("admitted");
    let start = rig.started().await;
    drop(ticket);
    assert_eq!(rig.stopped().await, start.sequence);
    assert_eq!(rig.metrics.totals().cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn deadlines_end_what_waits_and_what_runs() {
    let mut rig = Rig::ready(1, 4).await;
    let soon = |id| request(id, "hello", |request| request.deadline_ms = Some(1000));
    let running = rig.dispatcher.submit(soon("a")).await.expect("admitted");
    rig.started().await;
    let queued = rig.dispatcher.submit(soon("b")).await.expect("queued");
    let began = tokio::time::Instant::now();
    assert_eq!(running.outcome().await.outcome, "expired");
    assert_eq!(queued.outcome().await.outcome, "expired");
    assert!((900..1100).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn requests_wait_while_the_model_loads() {
    let mut rig = Rig::new(2, 4);
    let ticket = rig.submit("a").await.expect("admitted");
    let long = request("b", &"x".repeat(CONTEXT as usize), |_| ());
    let too_long = rig.dispatcher.submit(long).await.expect("its size is not known yet");
    rig.load().await;
    let start = rig.started().await;
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(ticket.outcome().await.outcome, "completed");
    let last = too_long.outcome().await;
    assert_eq!(last.outcome, "failed");
    assert_eq!(last.error.expect("an error").code, "context_length_exceeded");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_failed_refuses_and_recovers() {
    let mut rig = Rig::new(1, 4);
    let waiting = rig.submit("a").await.expect("admitted");
    rig.event(EngineEvent::Failed { reason: "model m is truncated".into() }).await;
    let last = waiting.outcome().await;
    assert_eq!(last.error.expect("an error").code, "model_unavailable");
    let error = rig.submit("b").await.expect_err("refused");
    assert_eq!(error.code, ErrorCode::ModelUnavailable);
    assert!(error.message.contains("truncated"));
    assert_eq!(rig.status.get().reasons, ["model_failed"]);
    rig.load().await;
    let _ticket = rig.submit("c").await.expect("admitted");
    rig.started().await;
}

#[tokio::test(start_paused = true)]
async fn draining_waits_then_fails_the_rest() {
    let mut rig = Rig::ready(1, 4).await;
    let first = rig.submit("a").await.expect("admitted");
    let start = rig.started().await;
    let second = rig.submit("b").await.expect("queued");
    let dispatcher = rig.dispatcher.clone();
    let drain = tokio::spawn(async move { dispatcher.drain(Duration::from_secs(5)).await });
    let mut status = rig.status.watch();
    status.wait_for(|status| status.reasons == ["draining"]).await.expect("draining");
    assert_eq!(code(rig.submit("c").await), ErrorCode::Draining);
    rig.says(start.sequence, "x", Some("stop")).await;
    assert_eq!(first.outcome().await.outcome, "completed");
    let last = second.outcome().await;
    assert_eq!((last.outcome.as_str(), last.error.expect("an error").code.as_str()), ("failed", "draining"));
    drain.await.expect("drained");
}

#[derive(Debug, Clone)]
enum Act {
    Submit {
        priority: i32,
        tokens: usize,
        deadline_ms: u32,
    },
    Cancel(usize),
    Drop(usize),
    Token(usize),
    Finish(usize),
    EngineDies,
    /// Ended on purpose, for another engine or for none for a while.
    Changes(bool),
    Order {
        context: u32,
        parallel: u32,
        admit: bool,
    },
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (-1..=1, 1_usize..300, 1_u32..5000)
            .prop_map(|(priority, tokens, deadline_ms)| Act::Submit { priority, tokens, deadline_ms }),
        1 => (0_usize..8).prop_map(Act::Cancel),
        1 => (0_usize..8).prop_map(Act::Drop),
        3 => (0_usize..8).prop_map(Act::Token),
        3 => (0_usize..8).prop_map(Act::Finish),
        1 => Just(Act::EngineDies),
        1 => any::<bool>().prop_map(Act::Changes),
        1 => (64_u32..=CONTEXT, 1_u32..=2, any::<bool>())
            .prop_map(|(context, parallel, admit)| Act::Order { context, parallel, admit }),
        1 => (1_u64..3000).prop_map(Act::Wait),
    ]
}

/// Plays a script; the engine confirms each stop at once. Returns the number of admitted requests.
async fn play(acts: Vec<Act>) -> u64 {
    let mut rig = Rig::ready(2, 3).await;
    let mut tickets: Vec<Option<Ticket>> = Vec::new();
    let mut live: HashMap<u64, usize> = HashMap::new();
    let mut admitted = 0;
    for act in acts {
        match act {
            Act::Submit { priority, tokens, deadline_ms } => {
                let id = format!("r{}", tickets.len());
                let request = request(&id, &"x".repeat(tokens), |request| {
                    request.priority = Some(priority);
                    request.deadline_ms = Some(deadline_ms);
                });
                if let Ok(ticket) = rig.dispatcher.submit(request).await {
                    admitted += 1;
                    tickets.push(Some(ticket));
                }
            }
            Act::Cancel(n) => {
                rig.dispatcher.cancel(&Client::uid(1), &format!("r{n}")).await;
            }
            Act::Drop(n) => drop(tickets.get_mut(n).and_then(Option::take)),
            Act::Token(n) | Act::Finish(n) => {
                let keys: Vec<u64> = live.keys().copied().collect();
                if let Some(key) = keys.get(n % keys.len().max(1)) {
                    let end = matches!(act, Act::Finish(_)).then_some("stop");
                    rig.says(*key, "x", end).await;
                    if end.is_some() {
                        live.remove(key);
                    }
                }
            }
            Act::EngineDies => {
                live.clear();
                rig.crash().await;
            }
            Act::Changes(what) => {
                live.clear();
                let change = EngineEvent::Changing(if what { Change::GpuLayers } else { Change::Unload });
                rig.ends(change).await;
                if !what {
                    rig.event(EngineEvent::Unloaded { asleep: false }).await;
                }
                rig.load().await;
            }
            Act::Order { context, parallel, admit } => rig.order(|orders| {
                (orders.point.context, orders.point.parallel) = (context, parallel);
                orders.point.admit = if admit { Admit::Run } else { Admit::Hold };
            }),
            Act::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
        // Let the owner act, then answer its frames.
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Ok(frame) = rig.frames.try_recv() {
            match frame {
                Frame::Start(start) => {
                    let cells = start.prompt.len() + start.max_tokens as usize;
                    live.insert(start.sequence, cells);
                    assert!(live.len() <= 2, "more than `parallel` run");
                    assert!(live.values().sum::<usize>() <= CONTEXT as usize, "more cells than there are");
                }
                Frame::Stop(stop) => {
                    live.remove(&stop.sequence);
                    rig.says(stop.sequence, "", Some("cancelled")).await;
                }
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    rig.dispatcher.drain(Duration::from_secs(1)).await;
    for ticket in tickets.into_iter().flatten() {
        assert!(["completed", "failed", "cancelled", "expired"].contains(&ticket.outcome().await.outcome.as_str()));
    }
    let totals = rig.metrics.totals();
    assert_eq!(totals.completed + totals.failed + totals.cancelled + totals.expired, admitted, "one outcome each");
    admitted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_admitted_request_has_exactly_one_outcome(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
            .expect("a runtime");
        runtime.block_on(play(acts));
    }
}
