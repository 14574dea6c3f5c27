//! Configuration: a file and flags become one checked [`Config`], all errors at once, before anything else happens.
//!
//! [`file`] is the TOML as written, [`valid`] cross-checks it. Keys, defaults and reasons stand in
//! `config.example.toml`, which a test compares with the code.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::governor::{Bytes, Celsius, Ladder};

pub mod file;
pub mod machine;
pub mod valid;

/// The checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[engine]`
    pub engine: Engine,
    /// `[socket]`
    pub socket: Socket,
    /// `[mqtt]`; `None` without a broker.
    pub mqtt: Option<Mqtt>,
    /// Name of this box in topics and finals.
    pub node: String,
    /// `[limits]`
    pub limits: Limits,
    /// `[governor]`
    pub governor: Governor,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[log]`
    pub log: Log,
    /// Where board readings come from; `/` but for tests.
    pub board_root: PathBuf,
    /// What outlives the process is kept here; `None`: nothing is.
    pub state_directory: Option<PathBuf>,
}

impl Config {
    /// What a model is called: its file's name without the ending.
    #[must_use]
    pub fn model_name(path: &Path) -> String {
        path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The model and how it is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    /// The GGUF file.
    pub model: PathBuf,
    /// Tokens of the KV cache that all sequences share.
    pub context: u32,
    /// Sequences decoded at once.
    pub parallel: u32,
    /// Layers on the GPU; `None` is `"auto"`.
    pub gpu_layers: Option<u32>,
    /// Types of keys and values.
    pub kv_type: KvType,
    /// Threads of a decode step with one row per sequence; `None`: measured once nothing runs.
    pub threads: Option<u32>,
    /// Threads of a step that reads a prompt; `None`: one for each strong core.
    pub threads_batch: Option<u32>,
    /// Most tokens of one call.
    pub n_batch: u32,
    /// Most tokens that are computed at once.
    pub n_ubatch: u32,
    /// How the file is read.
    pub load_mode: LoadMode,
    /// Flash attention.
    pub flash_attention: Switch,
    /// Whether results do not depend on what else runs.
    pub batch_invariant: bool,
    /// Who shares cached prefixes.
    pub share_prefix: SharePrefix,
    /// Whether tokens are drafted from what a sequence has read and written.
    pub lookup: bool,
    /// How long running answers may wait for a step in which prompts are read too, in milliseconds.
    pub step_target_ms: Option<u32>,
    /// How long nobody asks anything before the model is unloaded; `None`: it stays.
    pub idle_unload: Option<Duration>,
    /// LoRA adapters of the model.
    pub adapters: Vec<Adapter>,
    /// Texts that are kept read.
    pub system_prompts: Vec<SystemPrompt>,
    /// The engine's binary; `None`: looked for as [`crate::engine::locate`] says.
    pub path: Option<PathBuf>,
}

/// `[[adapter]]`: a LoRA adapter that a request may choose by its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What requests call it.
    pub name: String,
    /// The GGUF file.
    pub path: PathBuf,
    /// How much of it is added to the model; 0 is nothing.
    pub scale: f32,
}

/// `[[system_prompt]]`: a text of the operator's that is kept read, for requests with that system message.
#[derive(Clone, PartialEq, Eq)]
pub struct SystemPrompt {
    /// What its image is called.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl std::fmt::Debug for SystemPrompt {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{} of {} bytes", self.name, self.text.len())
    }
}

/// Who shares cached prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharePrefix {
    /// Everybody the operator's text, and each client its own.
    System,
    /// Each client its own.
    Client,
    /// Everybody everything.
    All,
}

impl SharePrefix {
    /// Whether the operator's text is everybody's.
    #[must_use]
    pub fn public(self) -> bool {
        self != Self::Client
    }
}

/// Types of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ggml's")]
pub enum KvType {
    F16,
    Q8_0,
    /// K in f16, V in q8_0.
    F16Q8_0,
}

impl KvType {
    /// As the configuration and the status write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::F16Q8_0 => "f16/q8_0",
        }
    }

    /// ggml's names of K and V.
    #[must_use]
    pub fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::F16 => ("f16", "f16"),
            Self::Q8_0 => ("q8_0", "q8_0"),
            Self::F16Q8_0 => ("f16", "q8_0"),
        }
    }
}

/// How the model file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// llama.cpp's own choice: mapped on a CPU or a discrete GPU, read on an integrated one.
    Auto,
    /// Mapped: pages are reclaimable.
    Mmap,
    /// Read into memory.
    Read,
}

impl LoadMode {
    /// As the configuration and the status write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mmap => "mmap",
            Self::Read => "read",
        }
    }
}

/// Something that may be left to llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they say it")]
pub enum Switch {
    Auto,
    On,
    Off,
}

impl Switch {
    /// As the configuration and the status write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// The Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Its group, by name or number; `None` leaves it.
    pub group: Option<String>,
    /// Uids that may connect; `None`: whoever the mode lets in.
    pub allow_uids: Option<BTreeSet<u32>>,
    /// Uids whose requests carry OpenAI's `user` as the client.
    pub gateways: BTreeSet<u32>,
    /// Whether raw prompts are taken.
    pub raw_prompt: bool,
    /// How long the head of a request may take to arrive, and its body after it.
    pub read_timeout: Duration,
}

/// The broker and our place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// Host of the broker.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// Whether TLS is spoken (`mqtts://`).
    pub tls: bool,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password; one trailing newline is dropped.
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that are trusted; `None` with TLS: the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of the client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Topic filters that an answer may be published to.
    pub response_topics: Vec<String>,
    /// Whether raw prompts are taken.
    pub raw_prompt: bool,
    /// The pool whose requests this box takes beside its own.
    pub pool: Option<String>,
    /// Between two signs of life; at least 5 s.
    pub keep_alive: Duration,
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait.
    pub queue: u32,
    /// Bytes of one payload.
    pub payload_bytes: usize,
    /// Deadline of a request that names none.
    pub deadline: Duration,
    /// Requests of one client, waiting and running, in percent of queue and slots.
    pub share: u32,
    /// How long running requests may finish when the daemon stops.
    pub drain: Duration,
    /// Answer length of a request that names none.
    pub max_tokens: u32,
    /// Connections to the socket.
    pub connections: u32,
}

/// What the governor keeps to; [`crate::governor::Limits::new`] adds what the board is.
#[derive(Debug, Clone, PartialEq)]
pub struct Governor {
    /// Memory that stays available to others; `None`: by the memory of the board.
    pub reserve: Option<Bytes>,
    /// Less is an emergency; `None`: by the memory of the board, and below the reserve.
    pub critical: Option<Bytes>,
    /// Temperature that is steered for; `None`: below the board's lowest throttling trip.
    pub set_point: Option<Celsius>,
    /// Between two looks at the board.
    pub interval: Duration,
    /// Steps against low memory.
    pub memory_ladder: Ladder,
    /// Steps against heat.
    pub thermal_ladder: Ladder,
}

impl Default for Governor {
    fn default() -> Self {
        Self {
            reserve: None,
            critical: None,
            set_point: None,
            interval: Duration::from_millis(500),
            memory_ladder: Ladder::memory(),
            thermal_ladder: Ladder::thermal(),
        }
    }
}

/// What is published about the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// Between two messages.
    pub interval: Duration,
    /// 0 or 1.
    pub qos: u8,
    /// Of what is published without being asked: info, state, telemetry.
    pub format: PublishFormat,
}

/// Encoding of published messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFormat {
    /// The JSON mapping of the schema.
    Json,
    /// Protobuf.
    Protobuf,
}

/// The log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is written.
    pub level: log::LevelFilter,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line adds to, or puts in place of, the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the flags of `temperd run`")]
pub struct Overrides {
    pub model: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub mqtt: Option<String>,
    pub node: Option<String>,
    pub board_root: Option<PathBuf>,
}

/// What the defaults depend on; read once by the caller, so that the check itself does no I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Host name.
    pub hostname: String,
    /// The socket in `/run/temperd` where that is writable, else in `$XDG_RUNTIME_DIR`; `None` without either.
    pub default_socket: Option<PathBuf>,
    /// `$STATE_DIRECTORY`, which systemd sets, else `temperd` in `$XDG_STATE_HOME` or `~/.local/state`; `None` without any.
    pub state_directory: Option<PathBuf>,
}

/// Every error of a configuration, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Reads and checks a configuration.
///
/// # Errors
/// All that is wrong with file and flags; the caller exits with 78.
pub fn load(path: Option<&Path>, overrides: Overrides, machine: &Machine) -> Result<Config, ConfigErrors> {
    let text = match path {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| ConfigErrors(vec![format!("configuration {}: {error}", path.display())]))?,
    };
    parse(&text, overrides, machine)
}

/// Checks a configuration given as text.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, overrides: Overrides, machine: &Machine) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let config = file::parse(text, &mut errors).and_then(|file| valid::check(file, overrides, machine, &mut errors));
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(ConfigErrors(errors)),
    }
}

#[cfg(test)]
mod tests;
