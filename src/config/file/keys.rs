//! The keys of each section.

use super::{Number, Setting, WordOrNumber};

/// All keys of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct File {
    pub engine: EngineKeys,
    pub socket: SocketKeys,
    pub mqtt: MqttKeys,
    pub limits: LimitKeys,
    pub governor: GovernorKeys,
    pub telemetry: TelemetryKeys,
    pub log: LogKeys,
    pub adapters: Vec<AdapterKeys>,
    pub system_prompts: Vec<SystemPromptKeys>,
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct EngineKeys {
    pub model: Setting<String>,
    pub context: Setting<i64>,
    pub parallel: Setting<i64>,
    pub gpu_layers: Setting<WordOrNumber>,
    pub kv_type: Setting<String>,
    pub threads: Setting<i64>,
    pub threads_batch: Setting<i64>,
    pub n_batch: Setting<i64>,
    pub n_ubatch: Setting<i64>,
    pub load_mode: Setting<String>,
    pub flash_attention: Setting<String>,
    pub batch_invariant: Setting<bool>,
    pub share_prefix: Setting<String>,
    pub lookup: Setting<bool>,
    pub step_target_ms: Setting<i64>,
    pub idle_unload_s: Setting<i64>,
    pub path: Setting<String>,
}

/// `[socket]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct SocketKeys {
    pub path: Setting<String>,
    pub mode: Setting<String>,
    pub group: Setting<WordOrNumber>,
    pub allow_uids: Setting<Vec<i64>>,
    pub gateways: Setting<Vec<i64>>,
    pub raw_prompt: Setting<bool>,
    pub read_timeout_s: Setting<i64>,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct MqttKeys {
    pub url: Setting<String>,
    pub node: Setting<String>,
    pub user: Setting<String>,
    pub password_file: Setting<String>,
    pub ca: Setting<String>,
    pub cert: Setting<String>,
    pub key: Setting<String>,
    pub response_topics: Setting<Vec<String>>,
    pub raw_prompt: Setting<bool>,
    pub pool: Setting<String>,
    pub keep_alive_s: Setting<i64>,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct LimitKeys {
    pub queue: Setting<i64>,
    pub payload_bytes: Setting<i64>,
    pub deadline_ms: Setting<i64>,
    pub share: Setting<i64>,
    pub drain_s: Setting<i64>,
    pub max_tokens: Setting<i64>,
    pub connections: Setting<i64>,
}

/// `[governor]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct GovernorKeys {
    pub reserve_mib: Setting<i64>,
    pub critical_mib: Setting<i64>,
    pub set_point_c: Setting<i64>,
    pub interval_ms: Setting<i64>,
    pub memory_ladder: Setting<Vec<String>>,
    pub thermal_ladder: Setting<Vec<String>>,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct TelemetryKeys {
    pub interval_s: Setting<i64>,
    pub qos: Setting<i64>,
    pub format: Setting<String>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct LogKeys {
    pub level: Setting<String>,
    pub format: Setting<String>,
}

/// `[[adapter]]`, with the line that it begins at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct AdapterKeys {
    pub line: usize,
    pub name: Setting<String>,
    pub path: Setting<String>,
    pub scale: Setting<Number>,
}

/// `[[system_prompt]]`, with the line that it begins at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the keys are described in config.example.toml")]
pub struct SystemPromptKeys {
    pub line: usize,
    pub name: Setting<String>,
    pub text: Setting<String>,
}
