//! What is kept of requests over the daemon's death: a file that was written properly, then damaged. Four bytes each say
//! what happens to a request, the rest is where the file is bent.

use temperd::request::{
    Client,
    dedupe::{Fingerprint, Key, Mark},
    seen::{Bounds, BoxKey, Ended, Record, Run, Seen, Trace, record},
};

const BOUNDS: Bounds = Bounds { entries: 4, age: 1000 };

/// Writes, damages and reads a file of records.
pub fn holds(data: &[u8]) {
    let (steps, damage) = data.split_at(data.len() - data.len() / 4);
    let box_key = || BoxKey::new([7; record::KEY_BYTES]);
    let mut seen = Seen::restore(box_key(), BOUNDS, Vec::new(), 0);
    let mut written: Vec<Record> = Vec::new();
    let mut now = 0;
    for step in steps.chunks_exact(4) {
        let &[what, which, says, pause] = step else { continue };
        now += u64::from(pause) * 4;
        let run = Run {
            key: Key::new("chat", &Client::uid(1), "", Mark::Correlation(&[which % 16])),
            payload: Fingerprint::of("text/plain", &[says % 2]),
            seed: u32::from(says),
            dead: what >> 4,
        };
        match what % 3 {
            0 => written.push(seen.begin(&run, now)),
            1 => match seen.end(&run, now) {
                Ended::Ran(record) | Ended::Waited(record) => written.push(record),
                Ended::Known => {}
            },
            _ => {
                let packet = u16::from(pause);
                written.push(seen.finish(&run, Some(packet), now));
                let known = seen.trace(&run.key, &run.payload, now);
                assert_eq!(known, Trace::Finished { packet }, "what has just been finished is known");
            }
        }
    }
    // Those of finished requests, and as many that were left; what runs here is not bounded by it.
    let again = Seen::restore(box_key(), BOUNDS, seen.records(), now);
    assert!(again.len() <= 2 * BOUNDS.entries, "{} are kept", again.len());

    let mut file: Vec<u8> = written.iter().flat_map(|record| record.encode(&box_key())).collect();
    assert_eq!(record::read(&box_key(), &file), (written.clone(), 0), "what was written is read");
    let whole = file.clone();
    for at in damage.chunks_exact(2) {
        let at = usize::from(u16::from_le_bytes([at[0], at[1]]));
        if let Some(byte) = file.get_mut(at) {
            *byte ^= 0x10;
        }
    }
    let same = whole.chunks(record::BYTES).zip(file.chunks(record::BYTES)).map(|(whole, bent)| whole == bent);
    let unhurt: Vec<Record> = written.iter().zip(same).filter_map(|(record, same)| same.then_some(*record)).collect();
    let damaged = written.len() - unhurt.len();
    assert_eq!(record::read(&box_key(), &file), (unhurt, damaged), "what is unhurt is read, and nothing else");
    // What nobody wrote. A fuzzer that sees checksums compared finds one that is right; who has not the secret does not.
    let (read, damaged) = record::read(&box_key(), data);
    assert_eq!(read.len() + damaged, data.len().div_ceil(record::BYTES), "each piece is a record or none");
}
