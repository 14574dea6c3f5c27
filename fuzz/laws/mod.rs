//! What has to hold for whatever bytes come in: one module per way in, each with a `holds` that panics where it does not.
//! `fuzz_targets` feeds them with what libFuzzer makes up, `tests/corpus.rs` with what is kept in `seeds` and `regressions`.
#![allow(dead_code, reason = "each target takes one module")]

pub mod chat;
pub mod config;
pub mod frames;
pub mod gguf;
pub mod grammar;
pub mod json;
pub mod protobuf;
pub mod request;
pub mod schema;
pub mod seen;
pub mod topics;
pub mod walk;

/// Panics where something does not hold for these bytes.
type Law = fn(&[u8]);

/// Each law, by the name of its target.
pub const ALL: [(&str, Law); 10] = [
    ("chat", chat::holds),
    ("config", config::holds),
    ("frames", frames::holds),
    ("gguf", gguf::holds),
    ("grammar", grammar::holds),
    ("json", json::holds),
    ("protobuf", protobuf::holds),
    ("schema", schema::holds),
    ("seen", seen::holds),
    ("topics", topics::holds),
];
