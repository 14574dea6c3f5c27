//! What is kept of a request on disk: records of a fixed size, each with a checksum of its own, so that one that is
//! torn or damaged costs no other. Pure.
//!
//! ```text
//!  0  state  1 started, 2 finished      16  name of the request   keyed hash of its key
//!  1  dead   daemons that died of it    32  print of its payload  keyed hash, with the name
//!  2  packet id, where finished         48  checksum              keyed hash of all before it
//!  4  seed                              56
//!  8  Unix time in seconds              numbers are little endian
//! ```
//! All hashes are keyed with a secret of the box: whoever has the file alone can try no guesses of what was asked.

use sha2::{Digest as _, Sha256};

use crate::request::dedupe::{Fingerprint, Key};

/// Bytes of a record.
pub const BYTES: usize = 56;
/// Bytes under the checksum.
const BODY: usize = 48;
/// Bytes of the secret.
pub const KEY_BYTES: usize = 32;

/// The secret of a box. A request's name and a record's checksum mean nothing under another.
#[derive(Clone, PartialEq, Eq, Hash, zeroize::ZeroizeOnDrop)]
pub struct BoxKey([u8; KEY_BYTES]);

impl std::fmt::Debug for BoxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BoxKey")
    }
}

/// Which request this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name([u8; 16]);

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Print([u8; 16]);

impl BoxKey {
    /// Of random bytes.
    #[must_use]
    pub fn new(secret: [u8; KEY_BYTES]) -> Self {
        Self(secret)
    }

    /// What a key is called on disk.
    #[must_use]
    pub fn name(&self, key: &Key) -> Name {
        Name(self.hash(b"name", &[&key.0]))
    }

    /// What a payload is called on disk. The name goes in: equal payloads of two requests do not look alike.
    #[must_use]
    pub fn print(&self, name: &Name, payload: &Fingerprint) -> Print {
        Print(self.hash(b"print", &[&name.0, &payload.0]))
    }

    fn checksum(&self, body: &[u8]) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.hash(b"seen record 1", &[body]);
        [a, b, c, d, e, f, g, h]
    }

    /// All that goes in has a length that its label settles, so no input is the beginning of another.
    fn hash(&self, label: &[u8], parts: &[&[u8]]) -> [u8; 16] {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update((label.len() as u64).to_le_bytes());
        hasher.update(label);
        parts.iter().for_each(|part| hasher.update(part));
        let whole: [u8; 32] = hasher.finalize().into();
        whole.first_chunk().copied().unwrap_or_default()
    }
}

/// Where a request was when the record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It has run, and the broker may not have its final.
    Started {
        /// From which its tokens are drawn.
        seed: u32,
        /// Daemons that died while it ran, the one that writes this included as long as it runs there.
        dead: u8,
    },
    /// The broker has its final.
    Finished {
        /// Packet id of the delivery that was answered; 0 where there is none.
        packet: u16,
    },
}

/// What is known of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// Which one.
    pub name: Name,
    /// What was asked.
    pub print: Print,
    /// How far it came.
    pub state: State,
    /// Unix time in seconds.
    pub at: u64,
}

impl Record {
    /// As it is written.
    #[must_use]
    pub fn encode(&self, key: &BoxKey) -> [u8; BYTES] {
        let (state, dead, packet, seed) = match self.state {
            State::Started { seed, dead } => (1, dead, 0, seed),
            State::Finished { packet } => (2, 0, packet, 0),
        };
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend([state, dead]);
        bytes.extend(packet.to_le_bytes());
        bytes.extend(seed.to_le_bytes());
        bytes.extend(self.at.to_le_bytes());
        bytes.extend(self.name.0);
        bytes.extend(self.print.0);
        let checksum = key.checksum(&bytes);
        bytes.extend(checksum);
        bytes.first_chunk().copied().unwrap_or([0; BYTES])
    }

    /// Reads what [`Self::encode`] writes; `None` for anything else.
    #[must_use]
    pub fn decode(key: &BoxKey, bytes: &[u8; BYTES]) -> Option<Self> {
        let (body, checksum) = bytes.split_at(BODY);
        if key.checksum(body) != checksum {
            return None;
        }
        let ([state, dead], body) = body.split_first_chunk()?;
        let (packet, body) = body.split_first_chunk()?;
        let (seed, body) = body.split_first_chunk()?;
        let (at, body) = body.split_first_chunk()?;
        let (name, body) = body.split_first_chunk()?;
        let (print, _) = body.split_first_chunk()?;
        let state = match state {
            1 => State::Started { seed: u32::from_le_bytes(*seed), dead: *dead },
            2 => State::Finished { packet: u16::from_le_bytes(*packet) },
            _ => return None,
        };
        Some(Self { name: Name(*name), print: Print(*print), state, at: u64::from_le_bytes(*at) })
    }
}

/// All whole records of a file, in order, and how many are none.
#[must_use]
pub fn read(key: &BoxKey, file: &[u8]) -> (Vec<Record>, usize) {
    let mut damaged = 0;
    let mut records = Vec::with_capacity(file.len() / BYTES);
    for piece in file.chunks(BYTES) {
        match piece.first_chunk().and_then(|bytes| Record::decode(key, bytes)) {
            Some(record) => records.push(record),
            None => damaged += 1,
        }
    }
    (records, damaged)
}
