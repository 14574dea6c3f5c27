//! The key-value part of a header: a handful of keys is kept, all others are skipped.

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use super::{
    ELEMENTS, KEPT_NUMBERS,
    reader::{Fault, Reader},
};

/// Keys that are kept as they are.
const KEYS: [&str; 7] = [
    "general.architecture",
    "general.name",
    "general.type",
    "general.alignment",
    "adapter.type",
    "tokenizer.chat_template",
    "tokenizer.ggml.model",
];
/// Keys that are kept below the name of an architecture.
const OF_ARCHITECTURE: [&str; 9] = [
    "context_length",
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.kv_lora_rank",
    "ssm.state_size",
];
/// Keys that are kept in all; a file of one architecture has fewer.
const KEPT: usize = 64;
/// Bytes of one value of an f16 cache.
const F16_BYTES: u64 = 2;
/// Where a file does not say how tensors are aligned.
const ALIGNMENT: u64 = 32;

/// A value that is kept.
#[derive(Debug)]
enum Value {
    Text(String),
    Number(u64),
    Numbers(Vec<u64>),
}

/// The keys that are kept.
#[derive(Debug, Default)]
pub(super) struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn read<R: Read + Seek>(reader: &mut Reader<R>, entries: u64) -> Result<Self, Fault> {
        let mut kept = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.name()?;
            let value = value(reader, &key)?;
            let wanted = KEYS.contains(&key.as_str())
                || key.split_once('.').is_some_and(|(_, rest)| OF_ARCHITECTURE.contains(&rest));
            if let Some(value) = value.filter(|_| wanted && kept.len() < KEPT) {
                kept.insert(key, value);
            }
        }
        Ok(Self(kept))
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.0.get(key)? {
            Value::Text(text) => Some(text.clone()),
            Value::Number(_) | Value::Numbers(_) => None,
        }
    }

    /// A number below the architecture's name.
    pub(super) fn of_architecture(&self, key: &str) -> Option<u64> {
        match self.below(key)? {
            Value::Number(number) => Some(*number),
            Value::Text(_) | Value::Numbers(_) => None,
        }
    }

    fn below(&self, key: &str) -> Option<&Value> {
        self.0.get(&format!("{}.{key}", self.text("general.architecture")?))
    }

    /// Tensors begin at multiples of this many bytes.
    pub(super) fn alignment(&self) -> Result<u64, Fault> {
        match self.0.get("general.alignment") {
            None => Ok(ALIGNMENT),
            Some(Value::Number(bytes)) if bytes.is_power_of_two() && *bytes <= 1024 * 1024 => Ok(*bytes),
            Some(_) => {
                Err(Fault::Corrupt { offset: 0, what: "general.alignment is no power of two up to 1 MiB".into() })
            }
        }
    }

    /// Bytes of an f16 cache that one token takes over all layers.
    pub(super) fn kv_bytes_per_token(&self) -> Option<u64> {
        // A compressed or a recurrent state is not counted in heads.
        if self.below("attention.kv_lora_rank").is_some() || self.below("ssm.state_size").is_some() {
            return None;
        }
        let layers = self.of_architecture("block_count")?;
        let by_heads =
            || self.of_architecture("embedding_length")?.checked_div(self.of_architecture("attention.head_count")?);
        let key = self.of_architecture("attention.key_length").or_else(by_heads)?;
        let value = self.of_architecture("attention.value_length").or_else(by_heads)?;
        let heads = match self.below("attention.head_count_kv").or_else(|| self.below("attention.head_count"))? {
            Value::Number(heads) => heads.checked_mul(layers)?,
            Value::Numbers(heads) if heads.len() as u64 == layers => {
                heads.iter().try_fold(0_u64, |sum, heads| sum.checked_add(*heads))?
            }
            Value::Text(_) | Value::Numbers(_) => return None,
        };
        heads.checked_mul(key.checked_add(value)?)?.checked_mul(F16_BYTES)
    }
}

/// Reads a value; `None` where it is of a kind that nothing here needs.
fn value<R: Read + Seek>(reader: &mut Reader<R>, key: &str) -> Result<Option<Value>, Fault> {
    let kind = reader.u32()?;
    match kind {
        STRING => reader.text().map(|text| Some(Value::Text(text))),
        ARRAY => array(reader, key),
        _ => number(reader, kind, key).map(|number| number.map(Value::Number)),
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn array<R: Read + Seek>(reader: &mut Reader<R>, key: &str) -> Result<Option<Value>, Fault> {
    let kind = reader.u32()?;
    let count = reader.count("elements in an array", ELEMENTS)?;
    if kind == STRING {
        for _ in 0..count {
            reader.skip_text()?;
        }
        return Ok(None);
    }
    let width = width(kind).ok_or_else(|| unknown(reader, kind, key))?;
    if count > KEPT_NUMBERS {
        // No overflow: both factors are small.
        reader.skip(count * width)?;
        return Ok(None);
    }
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.extend(number(reader, kind, key)?);
    }
    Ok((numbers.len() as u64 == count).then_some(Value::Numbers(numbers)))
}

/// Reads a number; `None` for what is no whole number from 0.
fn number<R: Read + Seek>(reader: &mut Reader<R>, kind: u32, key: &str) -> Result<Option<u64>, Fault> {
    Ok(match kind {
        0 => Some(u8::from_le_bytes(reader.bytes()?).into()),
        1 => u64::try_from(i8::from_le_bytes(reader.bytes()?)).ok(),
        2 => Some(u16::from_le_bytes(reader.bytes()?).into()),
        3 => u64::try_from(i16::from_le_bytes(reader.bytes()?)).ok(),
        4 => Some(reader.u32()?.into()),
        5 => u64::try_from(i32::from_le_bytes(reader.bytes()?)).ok(),
        10 => Some(reader.u64()?),
        11 => u64::try_from(i64::from_le_bytes(reader.bytes()?)).ok(),
        _ => {
            let width = width(kind).ok_or_else(|| unknown(reader, kind, key))?;
            reader.skip(width)?;
            None
        }
    })
}

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn unknown<R: Read + Seek>(reader: &Reader<R>, kind: u32, key: &str) -> Fault {
    // A key is the file's and may hold anything.
    let key: String = key.chars().take(64).collect();
    reader.corrupt(format!("`{}` is of the unknown type {kind}", key.escape_debug()))
}
