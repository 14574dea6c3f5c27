//! The table in front of the state: written, and checked before anything is believed. Pure.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hasher as _},
};

use llama_cpp_2::token::LlamaToken;
use prost::Message as _;
use temperd::wire::engine::{Handed, HandedSequence};

use super::Identity;
use crate::prefix::Kept;

/// Bytes in front of the table.
pub const HEADER: usize = 32;
const MAGIC: &[u8; 8] = b"temperd1";
/// Longest table: four bytes for a token and as many for its cell, for 256 sequences of 128 Ki tokens.
const LONGEST: u64 = 256 << 20;

/// A sequence whose cells have these names.
pub fn sequence(kept: &Kept, names: &[usize]) -> HandedSequence {
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    HandedSequence {
        slot: u32::try_from(kept.slot).unwrap_or(u32::MAX),
        tokens: kept.tokens.iter().map(|token| u32::try_from(token.0).unwrap_or(u32::MAX)).collect(),
        cells: names.iter().map(|name| narrow(*name)).collect(),
        public_prefix: narrow(kept.public),
        scope: kept.scope,
        adapter: kept.adapter,
    }
}

/// The table's bytes.
pub fn encode(identity: &Identity, sequences: Vec<HandedSequence>) -> Vec<u8> {
    Handed { sequences, ..identity.table() }.encode_to_vec()
}

/// Puts header and table in front of a state that is in its place already.
pub fn finish(memory: &mut [u8], table: &[u8]) {
    let Some((header, rest)) = memory.split_at_mut_checked(HEADER) else { return };
    let Some((place, state)) = rest.split_at_mut_checked(table.len()) else { return };
    place.copy_from_slice(table);
    let numbers = [table.len() as u64, state.len() as u64, digest(place, state)];
    let bytes = MAGIC.iter().copied().chain(numbers.iter().flat_map(|number| number.to_le_bytes()));
    header.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
}

/// The table and the state, where both are whole and of an engine like this one.
///
/// # Errors
/// What is wrong with them.
pub fn read<'a>(memory: &'a [u8], identity: &Identity) -> Result<(Handed, &'a [u8]), String> {
    let damaged = || "it is damaged".to_owned();
    let (header, rest) = memory.split_at_checked(HEADER).ok_or_else(damaged)?;
    let number = |at: usize| {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(damaged)
    };
    let (table, state, expected) = (number(8)?, number(16)?, number(24)?);
    if !header.starts_with(MAGIC) || table > LONGEST || table.checked_add(state) != Some(rest.len() as u64) {
        return Err(damaged());
    }
    let (table, state) =
        usize::try_from(table).ok().and_then(|table| rest.split_at_checked(table)).ok_or_else(damaged)?;
    if digest(table, state) != expected {
        return Err(damaged());
    }
    let handed = Handed::decode(table).map_err(|_| damaged())?;
    identity.fits(&handed)?;
    let mut slots = HashSet::new();
    for sequence in &handed.sequences {
        let distinct: HashSet<u32> = sequence.cells.iter().copied().collect();
        let known = sequence.slot < identity.slots && slots.insert(sequence.slot);
        let whole = !sequence.tokens.is_empty()
            && sequence.cells.len() == sequence.tokens.len()
            && distinct.len() == sequence.cells.len();
        if !known || !whole {
            return Err("its table contradicts itself".to_owned());
        }
    }
    Ok((handed, state))
}

/// The sequences, as ended ones of a vocabulary of so many tokens.
///
/// # Errors
/// A token that there is not.
pub fn kept(handed: &Handed, n_vocab: i32) -> Result<Vec<Kept>, String> {
    let token = |id: &u32| i32::try_from(*id).ok().filter(|id| *id < n_vocab).map(LlamaToken);
    let sequences = handed.sequences.iter().map(|sequence| {
        let tokens: Option<Vec<LlamaToken>> = sequence.tokens.iter().map(token).collect();
        Ok(Kept {
            slot: i32::try_from(sequence.slot).map_err(|error| error.to_string())?,
            tokens: tokens.ok_or("it holds a token beyond the vocabulary")?,
            public: sequence.public_prefix as usize,
            scope: sequence.scope,
            adapter: sequence.adapter,
            since: 0.0,
            parked: false,
            named: false,
        })
    });
    sequences.collect()
}

/// The names of the cells of each sequence id, without gaps: a name is no reason to make room for as many.
pub fn names(handed: &Handed) -> HashMap<i32, Vec<usize>> {
    let mut short: HashMap<u32, usize> = HashMap::new();
    let sequences = handed.sequences.iter().map(|sequence| {
        let names = sequence.cells.iter().map(|name| {
            let next = short.len();
            *short.entry(*name).or_insert(next)
        });
        (i32::try_from(sequence.slot).unwrap_or_default(), names.collect())
    });
    sequences.collect()
}

/// Tells whether anything has changed. It is no defence against someone who means it: the memfd is sealed, and only the
/// daemon has it.
fn digest(table: &[u8], state: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(table);
    hasher.write(state);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use temperd::wire::engine::Load;

    use super::*;

    fn identity() -> Identity {
        with(4)
    }

    fn with(slots: i32) -> Identity {
        // Any file will do.
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").to_owned();
        Identity::of(&Load { model, ..Load::default() }, slots)
    }

    fn one(slot: u32, tokens: &[u32], cells: &[u32]) -> HandedSequence {
        let (tokens, cells) = (tokens.to_vec(), cells.to_vec());
        HandedSequence { slot, tokens, cells, public_prefix: 1, scope: 7, adapter: 0 }
    }

    fn written(sequences: Vec<HandedSequence>, state: &[u8]) -> Vec<u8> {
        let table = encode(&identity(), sequences);
        let mut memory = [&vec![0; HEADER + table.len()], state].concat();
        finish(&mut memory, &table);
        memory
    }

    #[test]
    fn what_was_written_is_read_again() {
        let kept = Kept {
            slot: 2,
            tokens: vec![LlamaToken(5), LlamaToken(6)],
            public: 1,
            scope: 7,
            adapter: 0,
            since: 3.0,
            parked: false,
            named: false,
        };
        let memory = written(vec![sequence(&kept, &[900, 4]), one(0, &[5], &[900])], b"state");
        let (handed, state) = read(&memory, &identity()).expect("it fits");
        assert_eq!(state, b"state");
        let again = super::kept(&handed, 10).expect("tokens");
        assert_eq!((again.len(), again[0].slot, &again[0].tokens), (2, 2, &kept.tokens));
        assert_eq!((again[0].public, again[0].scope, again[0].parked), (1, 7, false));
        assert_eq!(names(&handed), HashMap::from([(2, vec![0, 1]), (0, vec![0])]));
        assert!(super::kept(&handed, 6).is_err());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for sequences in [
            vec![one(4, &[1], &[1])],
            vec![one(0, &[1], &[1]), one(0, &[1], &[2])],
            vec![one(0, &[], &[])],
            vec![one(0, &[1, 2], &[1])],
            vec![one(0, &[1, 2], &[1, 1])],
        ] {
            let memory = written(sequences, b"state");
            assert!(read(&memory, &identity()).is_err_and(|error| error.contains("contradicts")));
        }
        assert!(read(&written(Vec::new(), b"s"), &with(5)).is_err_and(|error| error.contains("number of sequences")));
    }

    proptest! {
        #[test]
        fn no_change_goes_unseen_and_no_bytes_are_too_much(
            bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            prop_assert!(read(&bytes, &identity()).is_err());
            let mut memory = written(vec![one(1, &[1, 2], &[1, 2])], &bytes);
            prop_assert!(read(&memory, &identity()).is_ok());
            let at = at.index(memory.len());
            if memory[at] != to {
                memory[at] = to;
                prop_assert!(read(&memory, &identity()).is_err());
            }
            memory.pop();
            prop_assert!(read(&memory, &identity()).is_err());
        }
    }
}
