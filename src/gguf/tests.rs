//! Headers made by hand, cut, bent, and the real model.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{Fault, GgufError, Summary, Weights, inspect, summary};

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn entry(bytes: &mut Vec<u8>, key: &str, kind: u32, value: &[u8]) {
    text(bytes, key);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
}

fn text_entry(bytes: &mut Vec<u8>, key: &str, value: &str) {
    let mut encoded = Vec::new();
    text(&mut encoded, value);
    entry(bytes, key, 8, &encoded);
}

fn number_entry(bytes: &mut Vec<u8>, key: &str, value: u32) {
    entry(bytes, key, 4, &value.to_le_bytes());
}

fn tensor(bytes: &mut Vec<u8>, name: &str, shape: &[u64], kind: u32, offset: u64) {
    text(bytes, name);
    bytes.extend(u32::try_from(shape.len()).expect("few dimensions").to_le_bytes());
    for length in shape {
        bytes.extend(length.to_le_bytes());
    }
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
}

/// A small model: a Q4_K matrix of 256 x 2 (288 bytes) and an F32 row of 5 (20 bytes).
fn header() -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(11_u64.to_le_bytes());
    text_entry(&mut bytes, "general.architecture", "llama");
    text_entry(&mut bytes, "general.name", "Tiny");
    number_entry(&mut bytes, "llama.context_length", 128);
    number_entry(&mut bytes, "llama.block_count", 2);
    number_entry(&mut bytes, "llama.embedding_length", 64);
    number_entry(&mut bytes, "llama.attention.head_count", 4);
    number_entry(&mut bytes, "llama.attention.head_count_kv", 2);
    text_entry(&mut bytes, "tokenizer.ggml.model", "llama");
    text_entry(&mut bytes, "tokenizer.chat_template", &"{{ x }}".repeat(1000));
    let mut tokens = 8_u32.to_le_bytes().to_vec();
    tokens.extend(2_u64.to_le_bytes());
    text(&mut tokens, "<s>");
    text(&mut tokens, "</s>");
    entry(&mut bytes, "tokenizer.ggml.tokens", 9, &tokens);
    let mut scores = 6_u32.to_le_bytes().to_vec();
    scores.extend(2_u64.to_le_bytes());
    scores.extend([0; 8]);
    entry(&mut bytes, "tokenizer.ggml.scores", 9, &scores);
    tensor(&mut bytes, "blk.1.a", &[256, 2], 12, 0);
    tensor(&mut bytes, "output_norm.weight", &[5], 0, 288);
    bytes
}

fn model() -> Vec<u8> {
    let mut bytes = header();
    bytes.resize(bytes.len().next_multiple_of(32) + 288 + 20, 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Summary, Fault> {
    summary(Cursor::new(bytes), bytes.len() as u64)
}

#[test]
fn a_header_is_summed_up() {
    let bytes = model();
    let expected = Summary {
        architecture: Some("llama".into()),
        name: Some("Tiny".into()),
        kind: None,
        adapter: None,
        chat_template: true,
        tokenizer: Some("llama".into()),
        context_length: Some(128),
        block_count: Some(2),
        tensors: 2,
        file_bytes: bytes.len() as u64,
        needed_bytes: bytes.len() as u64,
        // 2 layers x 2 heads x (16 + 16) values x 2 bytes.
        kv_bytes_per_token: Some(256),
        weights: Weights { layers: vec![0, 288], output: 20, ..Weights::default() },
    };
    assert_eq!(read(&bytes).expect("is a model"), expected);
}

#[test]
fn a_cut_file_says_what_it_needs() {
    let bytes = model();
    let whole = bytes.len() as u64;
    for length in 4..bytes.len() {
        match read(&bytes[..length]) {
            Err(Fault::Truncated { needed }) => {
                assert!(needed > length as u64 && needed <= whole);
                assert!(length < header().len() || needed == whole);
            }
            other => panic!("{length} bytes of {whole}: {other:?}"),
        }
    }
    assert!(matches!(read(b"GGU"), Err(Fault::NotGguf)));
    assert!(matches!(read(b"PK\x03\x04 and so on"), Err(Fault::NotGguf)));
    assert!(matches!(read(b"GGUF\x01\0\0\0"), Err(Fault::Version(1))));
    assert!(matches!(read(b"GGUF\0\0\0\x03"), Err(Fault::Version(_))));
}

#[test]
fn announced_sizes_are_not_believed() {
    for bent in [
        [&b"GGUF\x03\0\0\0"[..], &u64::MAX.to_le_bytes(), &0_u64.to_le_bytes()].concat(),
        [&b"GGUF\x03\0\0\0"[..], &0_u64.to_le_bytes(), &u64::MAX.to_le_bytes()].concat(),
        [&b"GGUF\x03\0\0\0"[..], &0_u64.to_le_bytes(), &1_u64.to_le_bytes(), &u64::MAX.to_le_bytes()].concat(),
    ] {
        assert!(matches!(read(&bent), Err(Fault::Corrupt { .. })));
    }
    let start = [&b"GGUF\x03\0\0\0"[..], &1_u64.to_le_bytes(), &0_u64.to_le_bytes()].concat();
    let bend = |shape: &[u64], kind, offset| {
        let mut bytes = start.clone();
        tensor(&mut bytes, "a\n\u{7}", shape, kind, offset);
        read(&bytes)
    };
    for fault in [
        bend(&[u64::MAX, u64::MAX], 0, 0),
        bend(&[255], 12, 0),
        bend(&[256], 4, 0),
        bend(&[1, 1, 1, 1, 1], 0, 0),
        bend(&[1], 0, 32),
    ] {
        match fault {
            Err(Fault::Corrupt { what, .. }) => assert!(what.contains(r"`a\n\u{7}`"), "{what}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(bend(&[1 << 40], 0, 0), Err(Fault::Truncated { needed }) if needed > 1 << 42));
}

#[test]
fn a_file_that_is_none_is_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(matches!(inspect(&folder.path().join("none.gguf")), Err(GgufError::Missing { .. })));
    assert!(matches!(inspect(folder.path()), Err(GgufError::NotAFile { .. })));
    let path = folder.path().join("cut.gguf");
    let bytes = model();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("is written");
    let error = inspect(&path).expect_err("is cut").to_string();
    assert!(error.contains(&format!("needs {} bytes and has {}", bytes.len(), bytes.len() - 1)), "{error}");
}

#[test]
fn the_real_model() {
    let path = std::env::var_os("TEMPERD_TEST_MODEL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    );
    let summary = inspect(&path).expect("the small model is there (scripts/fetch-model) and whole");
    assert_eq!(summary.architecture.as_deref(), Some("llama"));
    assert_eq!(summary.tokenizer.as_deref(), Some("gpt2"));
    assert!(summary.chat_template);
    assert_eq!((summary.context_length, summary.block_count, summary.tensors), (Some(8192), Some(30), 272));
    // 30 layers x 3 heads x 2 x 64 values x 2 bytes.
    assert_eq!(summary.kv_bytes_per_token, Some(23_040));
    assert_eq!(summary.needed_bytes, summary.file_bytes);
    let weights = &summary.weights;
    assert_eq!((weights.layers.len(), weights.output_matrix), (30, false));
    assert!(weights.layers.iter().sum::<u64>() + weights.embeddings + weights.output <= summary.file_bytes);
}

proptest! {
    #[test]
    fn bent_headers_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = model();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn garbage_never_panics(rest in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = read(&[&b"GGUF\x03\0\0\0"[..], &rest].concat());
    }
}
