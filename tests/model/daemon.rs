//! The daemon: its own protocol, queue and slots, in a shell that does nothing by itself. Steps that the real shells put
//! between two of these (a channel, a task that waits) are one step here: what may come between changes nothing but what
//! a step earlier or later may do as well.

use std::collections::BTreeMap;

use temperd::{
    dispatch::{
        slots::{Slot, Slots, Suspect},
        turn::{self, Gated},
    },
    request::{
        queue::{Entry, Queue},
        seen::Seen,
    },
    serve::mqtt::{
        acks::Delivery,
        message,
        outbox::{End, Gone},
        protocol::{Asked, Left, Note, Protocol, Refusal, Settlement, Taken},
    },
};

use super::{
    disk::{Disk, Journal, Then},
    history::{Body, History, Wrong},
    setup::{self, Safeguard, Setup, at},
    wire::{Broker, ToBroker, Wire},
};

/// A final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Letter {
    /// The request that it answers.
    pub to: usize,
    pub body: Body,
    pub redecoded: bool,
    /// The step of time at which it is of no use any more.
    pub expires: Option<u8>,
}

impl message::Letter for Letter {
    fn expires(&self) -> Option<std::time::Instant> {
        self.expires.map(|step| at(step).at)
    }

    fn is_beside(&self, _: &Self) -> bool {
        // Finals never take each other's place.
        false
    }

    fn bytes(&self) -> usize {
        1
    }
}

/// A request with the dispatcher.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Task {
    /// Its number, here and in the protocol.
    pub job: u64,
    pub ask: usize,
    pub gate: Gate,
    /// What it decodes to, from its first start on: another engine goes on with the same answer.
    pub decode: Option<u8>,
    crashes: u32,
}

/// See [`temperd::dispatch::gate`], whose two ends are channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    Shut,
    Asked,
    Open,
}

impl Suspect for Task {
    fn crashes(&self) -> u32 {
        self.crashes
    }

    fn crashed(&mut self) -> u32 {
        self.crashes += 1;
        self.crashes
    }
}

impl Gated for Task {
    type Leave = ();

    fn may_run(&self) -> bool {
        self.gate == Gate::Open
    }

    fn knock(&mut self) -> Option<()> {
        (self.gate == Gate::Shut).then(|| self.gate = Gate::Asked)
    }
}

/// What a daemon acts on beside itself.
pub struct Around<'a> {
    pub setup: &'a Setup,
    pub now: u8,
    pub disk: &'a mut Disk,
    pub wire: &'a mut Wire,
    pub broker: &'a mut Broker,
    pub history: &'a mut History,
}

impl Around<'_> {
    fn acknowledge(&mut self, packet: u16) {
        self.wire.to_broker.push_back(ToBroker::Ack { packet });
        if let Some(kept) = self.broker.kept.iter().find(|kept| kept.packet == Some(packet)) {
            self.history.acknowledges(self.setup.asks[kept.ask]);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Daemon {
    pub core: Protocol<usize, Letter>,
    pub queue: Queue<Task>,
    pub slots: Slots<Task>,
    pub engine: bool,
    pub journal: Journal,
    /// Outcomes of requests that wait for a sync.
    pub late: BTreeMap<u64, Body>,
    /// Without [`Safeguard::Resend`]: finals that were on their way on a connection that is gone.
    forgotten: Vec<Letter>,
    /// Without [`Safeguard::AckOrder`]: what came on this connection.
    loose: BTreeMap<Delivery, u16>,
}

impl Daemon {
    pub fn start(setup: &Setup, disk: &Disk, now: u8) -> Self {
        let seen = setup.disk.then(|| Seen::restore(setup::box_key(), setup::SEEN, disk.0.clone(), at(now).unix));
        Self {
            core: Protocol::new(seen, setup.remembered(), 0),
            queue: Queue::new(16, 16),
            slots: Slots::default(),
            engine: true,
            journal: Journal::default(),
            late: BTreeMap::new(),
            forgotten: Vec::new(),
            loose: BTreeMap::new(),
        }
    }

    pub fn connected(&mut self, around: &mut Around<'_>) {
        let window = around.setup.window;
        let qos = message::Qos::AtLeastOnce;
        self.core.connected(message::Allowed { window, packet_bytes: None, qos, retain: true });
        self.go_on(around);
    }

    pub fn disconnected(&mut self, setup: &Setup, flying: Vec<Letter>) {
        if setup.lacks(Safeguard::Resend) {
            self.forgotten.extend(flying);
        }
        self.loose.clear();
        let acks = self.core.acks.clone();
        self.core.disconnected();
        if setup.lacks(Safeguard::AcksReset) {
            self.core.acks = acks;
        }
    }

    /// A request was delivered; `refused`: the dispatcher does not accept it if it comes to that. `false` where it does not.
    pub fn take(&mut self, around: &mut Around<'_>, ask: usize, dup: bool, packet: u16, refused: bool) -> bool {
        let (setup, now) = (around.setup, at(around.now));
        let delivery = self.core.acks.arrived(packet);
        if setup.lacks(Safeguard::AckOrder) {
            self.loose.insert(delivery, packet);
        }
        if setup.lacks(Safeguard::AckAfterFinal) {
            self.settled(around, vec![delivery]);
        }
        let has_dedupe = !setup.lacks(Safeguard::Dedupe);
        let payload = if setup.lacks(Safeguard::Digest) { setup.payload(0) } else { setup.payload(ask) };
        let asked = Asked {
            key: setup.key(ask),
            payload,
            marked: setup.asks[ask].marked && has_dedupe,
            again: dup && has_dedupe,
        };
        let expires = self.expiry(around, ask);
        let renewed = |to: &usize, kept: &Letter| Letter { to: *to, expires, ..*kept };
        match self.core.take(&asked, ask, Some(delivery), || 0, renewed, now) {
            Taken::Run { job, .. } if refused => self.answer(around, job, Body::QueueFull),
            Taken::Run { job, .. } => {
                let gate = if self.core.is_kept() { Gate::Shut } else { Gate::Open };
                let entry = Entry {
                    key: job,
                    client: setup::client(),
                    id: String::new(),
                    priority: 0,
                    arrived: at(0).at,
                    deadline: at(u8::MAX).at,
                    payload: Task { job, ask, gate, decode: None, crashes: 0 },
                };
                self.queue.push(entry).expect("there is room");
            }
            _ if refused => return false,
            Taken::Repeat(settlement) => self.settle(around, settlement),
            Taken::Poison { job, dead } => {
                if around.history.keys[setup.asks[ask].key].accusations < dead {
                    around.history.wrong(Wrong::FalselyAccused);
                }
                self.answer(around, job, Body::Poison);
            }
            Taken::Refused(ask, refusal) => {
                let job = self.core.open(ask, Some(delivery));
                let body = match refusal {
                    Refusal::AlreadyAnswered => Body::AlreadyAnswered,
                    Refusal::Conflict => Body::Conflict,
                };
                self.answer(around, job, body);
            }
        }
        self.go_on(around);
        true
    }

    /// The broker's word on a final.
    pub fn receipt(&mut self, around: &mut Around<'_>, packet: u16, receipt: message::Receipt) {
        if let Some(gone) = self.core.outbox.receipt(packet, receipt, at(around.now).at) {
            self.gone(around, gone);
        }
        self.go_on(around);
    }

    /// The engine has finished a request.
    pub fn finish(&mut self, around: &mut Around<'_>, key: u64) {
        let Some(Slot { client, job: Some(task), .. }) = self.slots.remove(key) else { return };
        self.queue.ended(&client);
        let payload = around.setup.asks[task.ask].payload;
        self.outcome(around, key, Body::Answer { payload, decode: task.decode.unwrap_or_default() });
        self.go_on(around);
    }

    /// A request ends before it is finished, wherever it is.
    pub fn end(&mut self, around: &mut Around<'_>, key: u64, body: Body) {
        if let Some(entry) = self.queue.remove(key) {
            if entry.payload.gate == Gate::Asked {
                // Whoever waits for the sync does not look at the ticket meanwhile.
                self.late.insert(key, body);
                return;
            }
        } else {
            if let Some(paused) = self.slots.remove_paused(key) {
                self.queue.ended(&paused.client);
            } else if self.slots.get_mut(key).and_then(|slot| slot.job.take()).is_none() {
                return;
            }
        }
        self.outcome(around, key, body);
        self.go_on(around);
    }

    /// The engine has stopped a sequence.
    pub fn stopped(&mut self, around: &mut Around<'_>, key: u64) {
        if let Some(slot) = self.slots.remove(key) {
            self.queue.ended(&slot.client);
        }
        self.go_on(around);
    }

    pub fn engine_died(&mut self, around: &mut Around<'_>) {
        self.engine = false;
        let ended = self.slots.interrupt(true);
        ended.released.iter().for_each(|client| self.queue.ended(client));
        for (client, task) in ended.poison {
            self.queue.ended(&client);
            self.outcome(around, task.job, Body::EnginePoison);
        }
        self.go_on(around);
    }

    pub fn engine_ready(&mut self, around: &mut Around<'_>) {
        self.engine = true;
        self.go_on(around);
    }

    /// A sync is done.
    pub fn synced(&mut self, around: &mut Around<'_>) {
        match self.journal.sync(around.disk) {
            Some(Then::Run(key)) => self.leave(around, key),
            Some(Then::Send(job)) => self.core.noted(job),
            Some(Then::Acknowledge(deliveries)) => self.settled(around, deliveries),
            None => {}
        }
        self.go_on(around);
    }

    /// Requests without an outcome.
    pub fn live(&self) -> impl Iterator<Item = (u64, &Task)> {
        self.queue.iter().map(|entry| (entry.key, &entry.payload)).chain(self.slots.live())
    }

    /// Requests whose beginning is noted, and which do not run yet.
    pub fn begun(&self) -> impl Iterator<Item = usize> {
        let asked = self.queue.iter().filter(|entry| entry.payload.gate != Gate::Shut).map(|entry| entry.payload.ask);
        asked.chain(self.late.keys().filter_map(|job| self.core.job(*job)).map(|job| job.asker))
    }

    /// Whether all is done.
    pub fn is_idle(&self) -> bool {
        self.core.jobs() == 0
            && self.core.outbox.is_empty()
            && self.core.acks.is_empty()
            && self.queue.is_empty()
            && self.slots.is_empty()
            && self.journal.waiting.is_empty()
    }

    fn outcome(&mut self, around: &Around<'_>, job: u64, body: Body) {
        let Some(letter) = self.letter(around, job, body) else { return };
        let note = self.core.outcome(job, letter, at(around.now));
        match note {
            Note::Nothing => {}
            Note::Append(_) => {
                let note = if around.setup.lacks(Safeguard::EndRecord) { Note::Nothing } else { note };
                self.note(note, None);
                self.journal.ended.insert(around.setup.asks[letter.to].key, self.journal.written.len());
            }
            Note::Sync(_) if around.setup.lacks(Safeguard::OutcomeRecord) => self.core.noted(job),
            Note::Sync(_) => drop(self.note(note, Some(Then::Send(job)))),
        }
    }

    fn answer(&mut self, around: &Around<'_>, job: u64, body: Body) {
        if let Some(letter) = self.letter(around, job, body) {
            self.core.answer(job, letter);
        }
    }

    fn letter(&self, around: &Around<'_>, job: u64, body: Body) -> Option<Letter> {
        let job = self.core.job(job)?;
        let redecoded = job.redecoded && body.is_outcome() && !around.setup.lacks(Safeguard::Redecoded);
        Some(Letter { to: job.asker, body, redecoded, expires: self.expiry(around, job.asker) })
    }

    /// A final lives as long as its request, but for a while in any case.
    fn expiry(&self, around: &Around<'_>, ask: usize) -> Option<u8> {
        around.setup.asks[ask].expires.then_some(around.now + 1)
    }

    /// The shell of [`temperd::serve::mqtt::trail`].
    fn note(&mut self, note: Note, then: Option<Then>) -> Option<Then> {
        match note {
            Note::Nothing => return then,
            Note::Append(record) => self.journal.written.push(record),
            Note::Sync(record) => {
                self.journal.written.extend(record);
                if let Some(then) = then {
                    self.journal.waiting.push_back((self.journal.written.len(), then));
                }
                return None;
            }
        }
        then
    }

    fn settle(&mut self, around: &mut Around<'_>, Settlement { mut note, deliveries }: Settlement) {
        let setup = around.setup;
        match note {
            Note::Sync(Some(_)) if setup.lacks(Safeguard::FinishRecord) => note = Note::Nothing,
            Note::Sync(Some(record)) if setup.lacks(Safeguard::FinishSync) => note = Note::Append(record),
            Note::Sync(None) if setup.lacks(Safeguard::RepeatSync) => note = Note::Nothing,
            _ => {}
        }
        if let Some(Then::Acknowledge(deliveries)) = self.note(note, Some(Then::Acknowledge(deliveries))) {
            self.settled(around, deliveries);
        }
    }

    fn settled(&mut self, around: &mut Around<'_>, deliveries: Vec<Delivery>) {
        if around.setup.lacks(Safeguard::AckOrder) {
            let packets: Vec<u16> = deliveries.iter().filter_map(|delivery| self.loose.remove(delivery)).collect();
            packets.into_iter().for_each(|packet| around.acknowledge(packet));
        } else {
            self.core.settled(deliveries);
        }
    }

    fn leave(&mut self, around: &Around<'_>, key: u64) {
        if let Some(body) = self.late.remove(&key) {
            self.outcome(around, key, body);
        }
        if let Some((_, task)) = self.queue.payloads_mut().find(|(other, _)| *other == key) {
            task.gate = Gate::Open;
        }
    }

    fn gone(&mut self, around: &mut Around<'_>, gone: Gone<Letter>) {
        if gone.end != End::Taken {
            around.history.given_up(around.setup, gone.message.to, gone.message.body);
        }
        match self.core.left(gone, at(around.now)) {
            Left::Nothing => {}
            Left::Over(settlement) => self.settle(around, settlement),
            Left::TooLarge { .. } => unreachable!("there is no limit"),
        }
    }

    /// What the owner of requests and the session do after each event: start what can, send what can be sent.
    pub fn go_on(&mut self, around: &mut Around<'_>) {
        while self.engine {
            let room = self.slots.room(u32::MAX, around.setup.parallel);
            let turn = turn::next(&mut self.queue, &mut self.slots, room, true, |_| Some(1));
            let knocked = !turn.leaves.is_empty();
            for (key, ()) in turn.leaves {
                self.turn(around, key);
            }
            match turn.starts {
                Some((key, next)) => self.run(around, key, next),
                None if knocked => {}
                None => break,
            }
        }
        self.flush(around);
    }

    fn turn(&mut self, around: &Around<'_>, key: u64) {
        let setup = around.setup;
        let note = match self.core.turn(key, at(around.now)) {
            Note::Sync(Some(_)) if setup.lacks(Safeguard::BeginRecord) => Note::Nothing,
            Note::Sync(Some(record)) if setup.lacks(Safeguard::BeginSync) => Note::Append(record),
            note => note,
        };
        if let Some(Then::Run(key)) = self.note(note, Some(Then::Run(key))) {
            self.leave(around, key);
        }
    }

    fn run(&mut self, around: &mut Around<'_>, key: u64, next: temperd::dispatch::slots::Paused<Task>) {
        let temperd::dispatch::slots::Paused { client, cells, job: mut task } = next;
        if task.decode.is_none() {
            let ask = around.setup.asks[task.ask];
            if ask.marked && self.slots.live().any(|(_, other)| around.setup.asks[other.ask].key == ask.key) {
                around.history.wrong(Wrong::DecodedTwiceAtOnce);
            }
            task.decode = Some(around.history.keys[ask.key].decodes);
            around.history.starts(ask, around.disk.is_finished(around.setup, task.ask));
        }
        self.slots.insert(key, Slot { client, cells, job: Some(task) });
    }

    fn flush(&mut self, around: &mut Around<'_>) {
        loop {
            let (forgotten, wire) = (&self.forgotten, &mut *around.wire);
            let gone = self.core.outbox.offer(at(around.now).at, |_| 1, |letter| wire.publish(*letter, forgotten));
            around.wire.sent().for_each(|packet| self.core.outbox.sent(packet));
            if gone.is_empty() {
                break;
            }
            gone.into_iter().for_each(|gone| self.gone(around, gone));
        }
        if around.wire.up {
            self.core.acks.release(|packet| {
                around.acknowledge(packet);
                true
            });
        }
    }
}
