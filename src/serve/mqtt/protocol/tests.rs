//! Single paths; all of them are walked in `tests/model.rs`.

use std::time::Duration;

use super::*;
use crate::{
    request::{
        Client,
        dedupe::Mark,
        seen::{BoxKey, POISON, record::KEY_BYTES},
    },
    serve::mqtt::message::{Qos, Receipt},
};

const REMEMBERED: Bounds = Bounds { entries: 4, bytes: 100, age: Duration::from_secs(60) };

/// A final, by what it says.
type Final = &'static str;

impl Letter for Final {
    fn expires(&self) -> Option<Instant> {
        None
    }

    fn is_beside(&self, _: &Self) -> bool {
        false
    }

    fn bytes(&self) -> usize {
        self.len()
    }
}

/// A daemon with a broker that takes everything, and a disk.
struct Rig {
    core: Protocol<(), Final>,
    disk: Vec<Record>,
    packet: u16,
}

fn now() -> Now {
    Now { at: Instant::now(), unix: 1000 }
}

fn asked(mark: Mark<'_>, again: bool) -> Asked {
    let key = Key::new("chat", &Client::mqtt(Some("pump")), "answers", mark);
    let marked = !matches!(mark, Mark::Payload(_));
    Asked { key, payload: Fingerprint::of("text/plain", b"ok?"), marked, again }
}

impl Rig {
    fn start(disk: Vec<Record>) -> Self {
        let bounds = seen::Bounds { entries: 4, age: 60 };
        let seen = Seen::restore(BoxKey::new([7; KEY_BYTES]), bounds, disk.clone(), now().unix);
        let mut core = Protocol::new(Some(seen), REMEMBERED, 4);
        core.connected(Allowed { window: 8, packet_bytes: None, qos: Qos::AtLeastOnce, retain: true });
        Self { core, disk, packet: 0 }
    }

    /// The next daemon, where all that was written is on disk.
    fn next(self) -> Self {
        Self::start(self.disk)
    }

    fn take(&mut self, asked: &Asked, packet: u16) -> Taken<()> {
        let delivery = self.core.acks.arrived(packet);
        self.core.take(asked, (), Some(delivery), || 5, |(), kept| kept, now())
    }

    fn run(&mut self, asked: &Asked, packet: u16) -> u64 {
        match self.take(asked, packet) {
            Taken::Run { job, .. } => job,
            other => panic!("{other:?}"),
        }
    }

    /// Puts something on record; whether somebody waits for it.
    fn write(&mut self, note: Note) -> bool {
        match note {
            Note::Nothing => return false,
            Note::Append(record) => self.disk.push(record),
            Note::Sync(record) => self.disk.extend(record),
        }
        matches!(note, Note::Sync(_))
    }

    /// What goes to the broker.
    fn sent(&mut self) -> Vec<Final> {
        let mut sent = Vec::new();
        let gone = self.core.outbox.offer(
            now().at,
            |_| 1,
            |letter| {
                sent.push(*letter);
                true
            },
        );
        assert!(gone.is_empty());
        for _ in &sent {
            self.packet += 1;
            self.core.outbox.sent(self.packet);
        }
        sent
    }

    /// The broker takes the last one that was sent.
    fn taken(&mut self) -> Settlement {
        let gone = self.core.outbox.receipt(self.packet, Receipt::Taken, now().at).expect("it was sent");
        match self.core.left(gone, now()) {
            Left::Over(settlement) => settlement,
            other => panic!("{other:?}"),
        }
    }
}

/// The broker may have the final of a daemon that died right after it: twice, and then the third is a different one.
#[test]
fn a_request_that_is_given_up_says_that_there_may_be_another_final() {
    let request = asked(Mark::Correlation(b"m"), true);
    let mut rig = Rig::start(Vec::new());
    for _ in 0..POISON {
        let job = rig.run(&request, 1);
        let note = rig.core.turn(job, now());
        assert!(rig.write(note));
        // The outcome is not on disk yet when this daemon dies.
        let _lost = rig.core.outcome(job, "answer", now());
        assert_eq!(rig.sent(), ["answer"]);
        rig = rig.next();
    }
    let Taken::Poison { job, dead: POISON } = rig.take(&request, 1) else { panic!("not given up") };
    assert!(rig.core.job(job).is_some_and(|job| job.redecoded));
}

/// One that is cancelled, or expires, while it waits.
#[test]
fn an_outcome_before_the_first_step_is_on_record_before_its_final_is_sent() {
    let request = asked(Mark::Correlation(b"m"), false);
    let mut rig = Rig::start(Vec::new());
    let job = rig.run(&request, 1);
    let note = rig.core.outcome(job, "cancelled", now());
    assert!(rig.sent().is_empty());
    assert!(rig.write(note));
    rig.core.noted(job);
    assert_eq!(rig.sent(), ["cancelled"]);
    // It dies before the broker's receipt is on record: the next one knows that there may be a final.
    let mut rig = rig.next();
    let job = rig.run(&Asked { again: true, ..request }, 1);
    assert!(rig.core.job(job).is_some_and(|job| job.redecoded));
    let note = rig.core.outcome(job, "cancelled", now());
    assert!(!rig.write(note));
    assert_eq!(rig.sent(), ["cancelled"]);
}

/// The broker sets the flag on what it has sent on a connection that was lost, whether or not it arrived.
#[test]
fn words_that_were_answered_are_a_new_question_also_where_the_broker_sends_them_again() {
    let words = Mark::Payload(Fingerprint::of("text/plain", b"ok?"));
    let mut rig = Rig::start(Vec::new());
    for packet in 1..3 {
        let job = rig.run(&asked(words, false), packet);
        let note = rig.core.turn(job, now());
        rig.write(note);
        let note = rig.core.outcome(job, "answer", now());
        rig.write(note);
        assert_eq!(rig.sent(), ["answer"]);
        let settlement = rig.taken();
        assert!(rig.write(settlement.note));
        rig.core.settled(settlement.deliveries);
    }
    rig.core.disconnected();
    rig.core.connected(Allowed { window: 8, packet_bytes: None, qos: Qos::AtLeastOnce, retain: true });
    // Both acknowledgements were lost with the connection, and so was a third request on its way here.
    for packet in 1..3 {
        let taken = rig.take(&asked(words, true), packet);
        assert!(matches!(&taken, Taken::Repeat(settlement) if settlement.deliveries.len() == 1), "{taken:?}");
    }
    rig.run(&asked(words, true), 3);
    // The next daemon knows the last that was finished.
    let mut rig = rig.next();
    let taken = rig.take(&asked(words, true), 2);
    assert!(matches!(&taken, Taken::Repeat(settlement) if settlement.deliveries.len() == 1), "{taken:?}");
    let job = rig.run(&asked(words, true), 3);
    assert!(rig.core.job(job).is_some_and(|job| !job.redecoded));
}
