//! An answer that obeys a constraint, written by chance.

use std::sync::OnceLock;

use temperd::constrain::{Constrainer, Constraint};

/// The token that ends an answer, behind all bytes.
const END: u32 = 256;
/// Bytes of an answer after which it is left.
const LONGEST: usize = 200;

/// Compiles a constraint and writes an answer; `None` where it is refused, meets a limit or becomes too long.
pub fn answer(constraint: &Constraint, mut seed: u64) -> Option<Vec<u8>> {
    static BYTES: OnceLock<Constrainer> = OnceLock::new();
    let constrainer = BYTES.get_or_init(|| Constrainer::of_bytes().expect("bytes are a vocabulary"));
    let mut matcher = match constrainer.matcher(constraint) {
        Ok(matcher) => matcher,
        Err(reason) => {
            assert!(!reason.is_empty() && reason.len() <= 512 && !reason.contains('\n'), "{reason:?}");
            return None;
        }
    };
    let mut text = Vec::new();
    while text.len() < LONGEST {
        let allowed: Vec<u32> = matcher.allowed().ok()?.iter().collect();
        assert!(!allowed.is_empty() && allowed.iter().all(|token| *token <= END), "nothing may follow");
        if allowed.contains(&END) && (allowed.len() == 1 || seed.is_multiple_of(3)) {
            return Some(text);
        }
        assert!(!matcher.complete(), "only the end may follow what is complete");
        let bytes: Vec<u8> = allowed.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
        // Half of the time the last one, which in JSON closes what is open.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let drawn = usize::try_from(seed >> 40).unwrap_or_default() % bytes.len();
        let byte = if seed >> 63 == 0 { bytes[drawn] } else { *bytes.last()? };
        text.push(byte);
        matcher.take(byte.into()).expect("it was allowed");
    }
    None
}

/// A number that the bytes settle.
pub fn seed(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
