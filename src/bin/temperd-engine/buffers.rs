//! What llama.cpp has allocated, by the lines of its log: it has no other way to tell that C knows.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Sizes by what a buffer is for and where it is, in bytes.
#[derive(Default)]
pub struct Buffers(Mutex<BTreeMap<(String, String), u64>>);

impl Buffers {
    /// Forgets those of this kind: "model", "KV" or "compute".
    pub fn clear(&self, kind: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != kind);
    }

    /// Takes in a line that tells of a buffer; others are none of its business.
    pub fn note(&self, line: &str) {
        let Some((kind, place, bytes)) = parse(line) else { return };
        let mut sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = sizes.entry((kind.to_owned(), place.to_owned())).or_default();
        // A file in several parts has several buffers of weights; the others are told of again when they change.
        *size = if kind == "model" { *size + bytes } else { bytes };
    }

    /// Bytes of a kind, in places that `of` is true for.
    pub fn bytes(&self, kind: &str, of: impl Fn(&str) -> bool) -> u64 {
        let sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.iter().filter(|((it, place), _)| it == kind && of(place)).map(|(_, bytes)| bytes).sum()
    }
}

/// Kind, place and bytes of a line like `llama_kv_cache:        CPU KV buffer size =    45.00 MiB`.
fn parse(line: &str) -> Option<(&str, &str, u64)> {
    let (what, size) = line.split_once(" buffer size = ")?;
    let mut words = what.split_whitespace().rev();
    let (kind, place) = (words.next()?, words.next()?);
    let mib: f64 = size.trim().strip_suffix("MiB")?.trim_end().parse().ok()?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within what memory can be, not negative"
    )]
    let bytes = (0.0..1e9).contains(&mib).then(|| (mib * f64::from(1 << 20)).round() as u64)?;
    Some((kind, place, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_buffers_are_understood_and_others_left_alone() {
        let buffers = Buffers::default();
        for line in [
            "load_tensors:   CPU_Mapped model buffer size =    93.00 MiB",
            "load_tensors:   CPU_Mapped model buffer size =     1.00 MiB",
            "load_tensors:   CPU_REPACK model buffer size =     0.50 MiB",
            "llama_kv_cache:        CPU KV buffer size =    45.00 MiB",
            "sched_reserve:        CPU compute buffer size =   100.25 MiB",
            "sched_reserve:        CPU compute buffer size =   101.25 MiB",
            "llama_context:        CPU  output buffer size =     1.50 MiB",
            "llama_kv_cache: size =   45.00 MiB (  2048 cells,  30 layers), K (f16)",
            "a buffer size = ",
            "x y buffer size = -1.0 MiB",
        ] {
            buffers.note(line);
        }
        const MIB: u64 = 1 << 20;
        assert_eq!(buffers.bytes("model", |_| true), 94 * MIB + MIB / 2);
        assert_eq!(buffers.bytes("model", |place| !place.ends_with("_Mapped")), MIB / 2);
        assert_eq!(buffers.bytes("KV", |_| true), 45 * MIB);
        assert_eq!(buffers.bytes("compute", |_| true), 101 * MIB + MIB / 4);
        buffers.clear("model");
        assert_eq!((buffers.bytes("model", |_| true), buffers.bytes("KV", |_| true)), (0, 45 * MIB));
    }
}
