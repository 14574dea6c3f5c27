//! Everything there is, and what can happen to it next.

use stateright::{Model, Property};
use temperd::serve::mqtt::message::Receipt;

use super::{
    daemon::{Around, Daemon, Gate, Letter},
    disk::Disk,
    history::{Body, History, Wrong},
    setup::{Faults, Setup},
    wire::{Broker, Kept, ToBroker, ToDaemon, Wire},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// Steps of time.
    now: u8,
    /// Faults that may still come.
    faults: Faults,
    broker: Broker,
    wire: Wire,
    disk: Disk,
    /// `None`: it is dead.
    daemon: Option<Daemon>,
    pub history: History,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A device asks.
    Ask(usize),

    // Progress. While any of these is possible, one of them happens sooner or later.
    /// A daemon is started.
    Start,
    /// A connection comes up.
    Connect,
    /// The broker takes what is next on the connection.
    BrokerTakes,
    /// The daemon takes what is next on the connection.
    DaemonTakes,
    /// A sync is done.
    Sync,
    /// The engine has finished a request.
    Finish(u64),
    /// A request is over its time.
    Deadline(u64),
    /// The engine has stopped a sequence.
    Stopped(u64),
    /// Another engine is ready.
    EngineReady,

    // Faults.
    /// The daemon dies; so many of the records that were written and not synced are on disk.
    Crash(usize),
    /// The connection is cut.
    Cut,
    /// The broker loses our session.
    LoseSession,
    /// A request is sent once more.
    Repeat(usize),
    Cancel(u64),
    Tick,
    EngineDies,
    /// The daemon takes a request, and the dispatcher refuses it.
    Refuse,
    /// The broker refuses a final.
    Reject,
}

impl World {
    fn new(setup: &Setup) -> Self {
        let disk = Disk::default();
        Self {
            now: 0,
            faults: setup.faults,
            broker: Broker { subscribed: true, ..Broker::default() },
            wire: Wire::default(),
            daemon: Some(Daemon::start(setup, &disk, 0)),
            disk,
            history: History::new(setup),
        }
    }

    fn progress(&self, setup: &Setup, actions: &mut Vec<Action>) {
        let Some(daemon) = &self.daemon else {
            actions.push(Action::Start);
            return;
        };
        if self.wire.up {
            actions.extend((!self.wire.to_broker.is_empty()).then_some(Action::BrokerTakes));
            actions.extend((!self.wire.to_daemon.is_empty()).then_some(Action::DaemonTakes));
        } else {
            actions.push(Action::Connect);
        }
        actions.extend((!daemon.journal.waiting.is_empty()).then_some(Action::Sync));
        if daemon.engine {
            actions.extend(
                daemon.slots.running().map(|(key, runs)| if runs { Action::Finish(key) } else { Action::Stopped(key) }),
            );
        } else {
            actions.push(Action::EngineReady);
        }
        let late = |ask: usize| setup.asks[ask].expires && self.now > 0;
        actions.extend(daemon.live().filter(|(_, task)| late(task.ask)).map(|(key, _)| Action::Deadline(key)));
    }

    fn others(&self, actions: &mut Vec<Action>) {
        let left = &self.faults;
        if self.broker.subscribed {
            for (ask, state) in self.history.asks.iter().enumerate() {
                if !state.asked {
                    actions.push(Action::Ask(ask));
                } else if left.repeats > 0 {
                    actions.push(Action::Repeat(ask));
                }
            }
            actions.extend((left.losses > 0).then_some(Action::LoseSession));
        }
        actions.extend((left.ticks > 0).then_some(Action::Tick));
        actions.extend((self.wire.up && left.cuts > 0).then_some(Action::Cut));
        if self.wire.up && left.rejects > 0 && matches!(self.wire.to_broker.front(), Some(ToBroker::Final { .. })) {
            actions.push(Action::Reject);
        }
        let Some(daemon) = &self.daemon else { return };
        if left.crashes > 0 {
            actions.extend((0..=daemon.journal.written.len()).map(Action::Crash));
        }
        actions.extend((left.engines > 0 && daemon.engine).then_some(Action::EngineDies));
        if left.cancels > 0 {
            actions.extend(daemon.live().map(|(key, _)| Action::Cancel(key)));
        }
        if left.refusals > 0 && matches!(self.wire.to_daemon.front(), Some(ToDaemon::Request { .. })) {
            actions.push(Action::Refuse);
        }
    }

    /// Does it; `false` where it comes to nothing.
    fn act(&mut self, setup: &Setup, action: Action) -> bool {
        match action {
            Action::Ask(ask) => self.ask(setup, ask),
            Action::Repeat(ask) => {
                self.faults.repeats -= 1;
                self.ask(setup, ask);
            }
            Action::Start => self.daemon = Some(Daemon::start(setup, &self.disk, self.now)),
            Action::Connect => {
                self.wire.up = true;
                self.broker.subscribed = true;
                self.with_daemon(setup, Daemon::connected);
                self.broker.deliver(&mut self.wire);
            }
            Action::BrokerTakes => self.broker_takes(setup, true),
            Action::Reject => {
                self.faults.rejects -= 1;
                self.broker_takes(setup, false);
            }
            Action::DaemonTakes => return self.daemon_takes(setup, false),
            Action::Refuse => {
                self.faults.refusals -= 1;
                return self.daemon_takes(setup, true);
            }
            Action::Sync => self.with_daemon(setup, Daemon::synced),
            Action::Finish(key) => self.with_daemon(setup, |daemon, around| daemon.finish(around, key)),
            Action::Deadline(key) => self.with_daemon(setup, |daemon, around| daemon.end(around, key, Body::Expired)),
            Action::Stopped(key) => self.with_daemon(setup, |daemon, around| daemon.stopped(around, key)),
            Action::EngineReady => self.with_daemon(setup, Daemon::engine_ready),
            Action::Cancel(key) => {
                self.faults.cancels -= 1;
                self.with_daemon(setup, |daemon, around| daemon.end(around, key, Body::Cancelled));
            }
            Action::EngineDies => {
                self.faults.engines -= 1;
                self.with_daemon(setup, Daemon::engine_died);
            }
            Action::Crash(left) => {
                self.faults.crashes -= 1;
                self.crash(setup, left);
            }
            Action::Cut => {
                self.faults.cuts -= 1;
                self.cut(setup);
            }
            Action::LoseSession => {
                self.faults.losses -= 1;
                self.cut(setup);
                for kept in self.broker.lose() {
                    self.history.pay(setup, setup.asks[kept.ask]);
                }
            }
            Action::Tick => {
                self.faults.ticks -= 1;
                self.now += 1;
                // What is on its way stays there.
                let history = &mut self.history;
                self.broker.kept.retain(|kept| {
                    let stays = kept.here || !setup.asks[kept.ask].expires;
                    if !stays {
                        history.pay(setup, setup.asks[kept.ask]);
                    }
                    stays
                });
                self.with_daemon(setup, Daemon::go_on);
            }
        }
        true
    }

    fn with_daemon(&mut self, setup: &Setup, act: impl FnOnce(&mut Daemon, &mut Around<'_>)) {
        if let Some(daemon) = &mut self.daemon {
            let around = &mut Around {
                setup,
                now: self.now,
                disk: &mut self.disk,
                wire: &mut self.wire,
                broker: &mut self.broker,
                history: &mut self.history,
            };
            act(daemon, around);
        }
    }

    fn ask(&mut self, setup: &Setup, ask: usize) {
        let (is_open, what) = (self.broker.has(ask), setup.asks[ask]);
        self.history.asks(ask, what, is_open);
        self.broker.kept.push(Kept { ask, packet: None, here: false });
        self.broker.deliver(&mut self.wire);
    }

    fn broker_takes(&mut self, setup: &Setup, accepts: bool) {
        match self.wire.to_broker.pop_front() {
            Some(ToBroker::Final { packet, letter }) => {
                if accepts {
                    self.history.taken(setup, letter.to, letter.body, letter.redecoded);
                }
                self.wire.to_daemon.push_back(ToDaemon::Receipt { packet, taken: accepts });
            }
            Some(ToBroker::Ack { packet }) => match self.broker.acknowledged(packet) {
                Some((_, true)) => {}
                Some((_, false)) | None => self.history.wrong(Wrong::AckOutOfTurn),
            },
            None => {}
        }
    }

    fn daemon_takes(&mut self, setup: &Setup, refused: bool) -> bool {
        let Some(packet) = self.wire.to_daemon.pop_front() else { return false };
        let mut happened = true;
        self.with_daemon(setup, |daemon, around| match packet {
            ToDaemon::Request { ask, packet, dup } => happened = daemon.take(around, ask, dup, packet, refused),
            ToDaemon::Receipt { packet, taken } => {
                let receipt = if taken { Receipt::Taken } else { Receipt::Never("a fault") };
                daemon.receipt(around, packet, receipt);
            }
        });
        happened
    }

    fn cut(&mut self, setup: &Setup) {
        let flying = self.wire.cut();
        self.broker.disconnected();
        if let Some(daemon) = &mut self.daemon {
            daemon.disconnected(setup, flying);
        }
    }

    fn crash(&mut self, setup: &Setup, left: usize) {
        let Some(daemon) = self.daemon.take() else { return };
        self.wire.cut();
        self.broker.disconnected();
        for record in daemon.journal.written.iter().take(left) {
            self.disk.append(*record);
        }
        for (ask, what) in setup.asks.iter().enumerate() {
            if setup.asks[..ask].iter().any(|other| other.key == what.key) {
                continue;
            }
            let running = daemon.slots.live().any(|(_, task)| setup.asks[task.ask].key == what.key);
            let lost = daemon.journal.ended.get(&what.key).is_some_and(|before| *before > left);
            let begun = daemon.begun().any(|ask| setup.asks[ask].key == what.key);
            self.history.died(what.key, running, begun || lost, self.disk.is_finished(setup, ask));
        }
    }

    /// Whether such a final is on its way to the broker.
    fn says(&self, what: impl Fn(&Letter) -> bool) -> bool {
        self.wire.to_broker.iter().any(|packet| matches!(packet, ToBroker::Final { letter, .. } if what(letter)))
    }

    /// Whether all is done that was asked.
    fn is_settled(&self) -> bool {
        self.wire.up
            && self.wire.to_broker.is_empty()
            && self.wire.to_daemon.is_empty()
            && self.broker.kept.is_empty()
            && self.daemon.as_ref().is_some_and(Daemon::is_idle)
            && self.history.asks.iter().all(|ask| !ask.owed)
    }

    /// Falls with every step of progress: so those come to an end, in whatever order they are taken.
    fn remaining(&self) -> usize {
        let Some(daemon) = &self.daemon else { return 10_000 + self.broker.kept.len() * 100 };
        let kept: usize = self.broker.kept.iter().map(|kept| if kept.here { 2 } else { 100 }).sum();
        let finals = self.wire.to_broker.iter().filter(|packet| matches!(packet, ToBroker::Final { .. })).count();
        let acks = self.wire.to_broker.len() - finals;
        let requests = self.wire.to_daemon.iter().filter(|packet| matches!(packet, ToDaemon::Request { .. })).count();
        let receipts = self.wire.to_daemon.len() - requests;
        let waiting = daemon.core.outbox.len().saturating_sub(finals + receipts);
        let queued = |gate| if gate == Gate::Shut { 75 } else { 65 };
        let queue: usize = daemon.queue.iter().map(|entry| queued(entry.payload.gate)).sum();
        let slots: usize = daemon.slots.running().map(|(_, runs)| if runs { 55 } else { 3 }).sum();
        let paused = 60 * (daemon.slots.len() - daemon.slots.running().count());
        kept + if self.wire.up { 0 } else { 1000 }
            + if daemon.engine { 0 } else { 1000 }
            + 88 * requests
            + 5 * receipts
            + 30 * finals
            + 20 * receipts
            + acks
            + 10 * daemon.core.acks.len()
            + 40 * waiting
            + 8 * daemon.journal.waiting.len()
            + 50 * daemon.late.len()
            + 42 * daemon.journal.held()
            + queue
            + slots
            + paused
    }
}

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // Behind what must never be there is nothing to look for.
        if world.history.wrong.is_none() {
            world.progress(self, actions);
            world.others(actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        if !next.act(self, action) {
            return None;
        }
        let mut progress = Vec::new();
        world.progress(self, &mut progress);
        if progress.contains(&action) && next.remaining() >= world.remaining() {
            next.history.wrong(Wrong::NoProgress);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE, |_, world: &World| world.history.wrong.is_none()),
            Property::always(KEPT, |_, world: &World| {
                let asks = world.history.asks.iter().enumerate();
                asks.filter(|(_, ask)| ask.owed).all(|(ask, _)| world.broker.has(ask))
            }),
            Property::sometimes(ANSWERED, |_, world: &World| world.says(|letter| letter.body.is_answer())),
            Property::sometimes(REDECODED, |_, world: &World| {
                world.says(|letter| letter.redecoded && letter.body.is_answer())
            }),
            Property::sometimes(CANCELLED, |_, world: &World| world.says(|letter| letter.body == Body::Cancelled)),
            Property::sometimes(EXPIRED, |_, world: &World| world.says(|letter| letter.body == Body::Expired)),
            Property::sometimes(POISON, |_, world: &World| world.says(|letter| letter.body == Body::Poison)),
            Property::sometimes(ENGINE_POISON, |_, world: &World| {
                world.says(|letter| letter.body == Body::EnginePoison)
            }),
            Property::sometimes(QUEUE_FULL, |_, world: &World| world.says(|letter| letter.body == Body::QueueFull)),
            Property::sometimes(ALREADY_ANSWERED, |_, world: &World| {
                world.says(|letter| letter.body == Body::AlreadyAnswered)
            }),
            Property::sometimes(CONFLICT, |_, world: &World| world.says(|letter| letter.body == Body::Conflict)),
            Property::sometimes(TWO_OUTCOMES, |_, world: &World| {
                world.history.keys.iter().any(|key| key.outcomes.len() > 1)
            }),
            Property::always(ENDS, |setup, world: &World| {
                let mut progress = Vec::new();
                world.progress(setup, &mut progress);
                !progress.is_empty() || world.is_settled()
            }),
        ]
    }
}

/// What an exploration has to come across, so that it is known to have been there.
pub const ANSWERED: &str = "answered";
pub const REDECODED: &str = "redecoded";
pub const CANCELLED: &str = "cancelled";
pub const EXPIRED: &str = "expired";
pub const POISON: &str = "poison";
pub const ENGINE_POISON: &str = "engine poison";
pub const QUEUE_FULL: &str = "queue full";
pub const ALREADY_ANSWERED: &str = "already answered";
pub const CONFLICT: &str = "conflict";
/// Two different outcomes of one key, as they may be.
pub const TWO_OUTCOMES: &str = "two outcomes";

/// Nothing that must never be.
pub const SAFE: &str = "safe";
/// What is owed is still with the broker.
pub const KEPT: &str = "kept";
/// Where nothing more happens by itself, all is done. With [`World::remaining`], which falls: from wherever faults end, every
/// request gets its outcome.
pub const ENDS: &str = "ends";
