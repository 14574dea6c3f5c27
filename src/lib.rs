//! temperd: an LLM daemon for edge boxes.
//!
//! Two processes: this library is the daemon and its client, and links no llama.cpp; `temperd-engine`
//! (`src/bin/temperd-engine`) owns model and KV cache and nothing that cannot be rebuilt. ARCHITECTURE.md draws it.
//!
//! | module | owns | never |
//! |---|---|---|
//! | [`wire`] | generated types, size limits, JSON in and out | decides anything |
//! | [`config`] | file and flags → one checked value | touches a socket, a thread or a model |
//! | [`request`] | what a request is, the queue, repeats: pure | reads a clock, does I/O |
//! | [`board`] | readings of the board, below one root | decides anything |
//! | [`chat`] | conversation → prompt | knows who asked |
//! | [`constrain`] | schema or grammar → which tokens may follow | knows a sequence |
//! | [`engine`] | the engine process and its frames | keeps a request |
//! | [`governor`] | the operating point, from readings and time: pure | reads a clock, does I/O |
//! | [`keeper`] | the governor's shell: looks, has it decide, publishes; pins | decides anything |
//! | [`dispatch`] | every request from admission to its one outcome | knows a way in |
//! | [`status`] | the status in force, for everyone to read | |
//! | [`serve`] | the ways in: Unix socket (HTTP, gRPC) and MQTT | holds request state of its own beyond a connection |
//! | [`backoff`] | waits before something is tried again: pure | |
//! | [`units`] | numbers with their unit, where several parts share it | |
//! | [`telemetry`] | metrics and what is published | holds any text |
//! | [`daemon`] | start and shutdown order, signals | anything else |
//! | [`cli`] | the commands | |

#![forbid(unsafe_code)]

pub mod backoff;
pub mod board;
pub mod chat;
pub mod cli;
pub mod config;
pub mod constrain;
pub mod daemon;
pub mod dispatch;
pub mod engine;
pub mod gguf;
pub mod governor;
pub mod keeper;
pub mod request;
pub mod serve;
pub mod status;
pub mod telemetry;
pub mod units;
pub mod wire;
