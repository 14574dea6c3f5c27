//! What is explored: who asks what, which faults may happen how often, and which safeguard is taken away.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use temperd::{
    request::{
        Client,
        dedupe::{self, Fingerprint, Key, Mark},
        seen::{self, BoxKey, Name, record::KEY_BYTES},
    },
    serve::mqtt::protocol::Now,
};

/// A request of a device.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Those of one key have the same correlation data.
    pub key: usize,
    /// What is asked.
    pub payload: u8,
    /// Whether it has correlation data.
    pub marked: bool,
    /// Whether it has a message expiry: one step of time.
    pub expires: bool,
}

impl Ask {
    pub const fn marked(key: usize, payload: u8) -> Self {
        Self { key, payload, marked: true, expires: false }
    }

    /// Without correlation data and id.
    pub const fn unmarked(key: usize) -> Self {
        Self { key, payload: 0, marked: false, expires: false }
    }

    pub const fn expiring(self) -> Self {
        Self { expires: true, ..self }
    }
}

/// How often each fault may happen, at any step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// The daemon dies; of what was written and not synced any first part is left.
    pub crashes: u8,
    /// The connection is cut.
    pub cuts: u8,
    /// The broker loses the session, and with it the connection.
    pub losses: u8,
    /// A device sends a request once more, or something on the way to the broker does.
    pub repeats: u8,
    /// A request is cancelled.
    pub cancels: u8,
    /// Time goes on, so that what can expire does.
    pub ticks: u8,
    /// The engine dies.
    pub engines: u8,
    /// The dispatcher refuses a request: its queue is full.
    pub refusals: u8,
    /// The broker refuses a final for good.
    pub rejects: u8,
}

/// What keeps the promise. Each is switched off in the model's shell, never in the daemon's own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safeguard {
    /// A request is acknowledged after the broker has its final.
    AckAfterFinal,
    /// Acknowledgements go out in the order of arrival.
    AckOrder,
    /// Deliveries of an old connection are forgotten.
    AcksReset,
    /// Finals that were not acknowledged are sent again on the next connection.
    Resend,
    /// Repeats are recognised.
    Dedupe,
    /// A key stands for one payload.
    Digest,
    /// The beginning of a request is on record.
    BeginRecord,
    /// A request runs only once that is synced.
    BeginSync,
    /// That a daemon lived to see the outcome is on record.
    EndRecord,
    /// The outcome of a request that never ran is on record before its final is sent.
    OutcomeRecord,
    /// That the broker has the final is on record.
    FinishRecord,
    /// A request is acknowledged only once that is synced.
    FinishSync,
    /// A repeat is acknowledged only once what it repeats is synced.
    RepeatSync,
    /// The final of a request that another daemon began says so.
    Redecoded,
}

/// One exploration.
#[derive(Debug, Clone)]
pub struct Setup {
    pub asks: Vec<Ask>,
    pub faults: Faults,
    /// Requests that run at once.
    pub parallel: u32,
    /// Finals on their way at once.
    pub window: u64,
    /// Whether there is a state directory.
    pub disk: bool,
    /// Whether finals are kept for repeats.
    pub keeps: bool,
    /// Taken away.
    pub without: Option<Safeguard>,
}

impl Setup {
    pub fn new(asks: &[Ask], faults: Faults) -> Self {
        Self { asks: asks.into(), faults, parallel: 1, window: 1, disk: true, keeps: true, without: None }
    }

    pub fn lacks(&self, safeguard: Safeguard) -> bool {
        self.without == Some(safeguard)
    }

    pub fn keys(&self) -> usize {
        self.asks.iter().map(|ask| ask.key + 1).max().unwrap_or(0)
    }

    pub fn key(&self, ask: usize) -> Key {
        IDENTITIES.keys[self.asks[ask].key][usize::from(self.asks[ask].marked)]
    }

    pub fn name(&self, ask: usize) -> Name {
        box_key().name(&self.key(ask))
    }

    pub fn payload(&self, ask: usize) -> Fingerprint {
        IDENTITIES.payloads[usize::from(self.asks[ask].payload)]
    }

    pub fn remembered(&self) -> dedupe::Bounds {
        dedupe::Bounds { entries: 16, bytes: if self.keeps { 16 } else { 0 }, age: Duration::from_secs(86_400) }
    }
}

pub const SEEN: seen::Bounds = seen::Bounds { entries: 16, age: 86_400 };

/// Hashes are slow beside everything else here, so they are made once.
struct Identities {
    keys: Vec<[Key; 2]>,
    payloads: Vec<Fingerprint>,
    start: Instant,
}

static IDENTITIES: LazyLock<Identities> = LazyLock::new(|| {
    fn key(mark: Mark<'_>) -> Key {
        Key::new("chat", &client(), "answers", mark)
    }
    let payloads: Vec<_> = (0_u8..4).map(|payload| Fingerprint::of("text/plain", &[payload])).collect();
    let keys = (0_u8..4).map(|number| {
        let words = Fingerprint::of("text/plain", &[number, number]);
        [key(Mark::Payload(words)), key(Mark::Correlation(&[number]))]
    });
    Identities { keys: keys.collect(), payloads, start: Instant::now() }
});

pub fn box_key() -> BoxKey {
    BoxKey::new([7; KEY_BYTES])
}

pub fn client() -> Client {
    Client::mqtt(Some("pump"))
}

/// The time after so many steps.
pub fn at(step: u8) -> Now {
    Now { at: IDENTITIES.start + Duration::from_secs(step.into()), unix: 1000 + u64::from(step) }
}
