//! From what is written to a checked [`Config`]: ranges, words, and what goes together with what. Pure; files that are
//! named here are not opened.

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive, path::PathBuf, time::Duration};

use log::LevelFilter;

use super::{
    Config, Engine, KvType, Limits, LoadMode, Log, LogFormat, Machine, Overrides, PublishFormat, SharePrefix, Socket,
    Switch, Telemetry,
    file::{EngineKeys, File, LimitKeys, LogKeys, Place, Setting, SocketKeys, TelemetryKeys, WordOrNumber},
};

mod adapters;
mod governor;
mod mqtt;
mod prompts;

/// Bytes of a socket's path: `sun_path` has 108, one of them for the terminator.
const SOCKET_PATH_BYTES: usize = 107;
/// `limits.payload_bytes` must leave room for topic and properties below the packet maximum of 1 MiB.
const PAYLOAD_BYTES: i64 = 1_000_000;
/// Rows of one call where nothing is configured; config.example.toml says why.
const BATCH: u32 = 512;
/// Answer length where nothing is configured.
const MAX_TOKENS: u32 = 1024;

/// Checks everything, and reports everything that is wrong. `None`: something that has no default is missing.
pub fn check(file: File, overrides: Overrides, machine: &Machine, errors: &mut Vec<String>) -> Option<Config> {
    let mut check = Check { errors };
    let model = model(file.engine.model.clone(), overrides.model, &mut check);
    let invariant = file.engine.batch_invariant.clone();
    let engine = engine(file.engine, &mut check);
    let name = model.as_deref().map(Config::model_name);
    if let (Setting::Given(true, place), false) = (invariant, file.adapters.is_empty()) {
        check.error(&place, "does not hold with adapters: leave out either this or every [[adapter]]");
    }
    let adapters = adapters::adapters(file.adapters, name.as_deref(), &mut check);
    let system_prompts = prompts::system_prompts(file.system_prompts, engine.share_prefix, &mut check);
    let path = socket_path(file.socket.path.clone(), overrides.socket, machine, &mut check);
    let socket = socket(file.socket, &mut check);
    let node = mqtt::node(file.mqtt.node.clone().overridden(overrides.node, "--node"), machine, &mut check);
    let mqtt = mqtt::mqtt(file.mqtt, overrides.mqtt, node.as_deref(), &mut check);
    let limits = limits(file.limits, engine.context, &mut check);
    let governor = governor::governor(file.governor, &mut check);
    let telemetry = telemetry(file.telemetry, &mut check);
    let log = log(file.log, &mut check);
    Some(Config {
        engine: Engine { model: model?, adapters, system_prompts, ..engine },
        socket: Socket { path: path?, ..socket },
        mqtt,
        node: node?,
        limits,
        governor,
        telemetry,
        log,
        board_root: overrides.board_root.unwrap_or_else(|| PathBuf::from("/")),
        state_directory: machine.state_directory.clone(),
    })
}

fn model(setting: Setting<String>, flag: Option<PathBuf>, check: &mut Check<'_>) -> Option<PathBuf> {
    match (flag, setting) {
        (Some(path), _) => check.not_empty(path, &Place::flag("--model")),
        (None, Setting::Given(path, place)) => check.not_empty(path.into(), &place),
        (None, Setting::Bad) => None,
        (None, Setting::Absent) => {
            check.say("no model is named: give `--model FILE.gguf`, or `engine.model` in the configuration".into());
            None
        }
    }
}

/// All but the model.
fn engine(keys: EngineKeys, check: &mut Check<'_>) -> Engine {
    let share_prefix = check.word(
        keys.share_prefix,
        &[("system", SharePrefix::System), ("client", SharePrefix::Client), ("all", SharePrefix::All)],
    );
    let context = check.number(keys.context, 256..=1_048_576).or(8192_u32);
    let parallel = check.number(keys.parallel, 1..=64).or(8_u32);
    let n_batch = check.number(keys.n_batch, 1..=65_536);
    if let Given(n, place) = &n_batch {
        if *n > context {
            check.error(place, format_args!("is {n}, must not be over engine.context, {context}"));
        } else if *n < parallel {
            check.error(
                place,
                format_args!("is {n}, must be at least engine.parallel, {parallel}: a step has one row per sequence"),
            );
        }
    }
    let n_batch = n_batch.or(BATCH.min(context));
    let n_ubatch = check.number(keys.n_ubatch, 1..=65_536);
    if let Given(n, place) = &n_ubatch
        && *n > n_batch
    {
        check.error(place, format_args!("is {n}, must not be over engine.n_batch, {n_batch}"));
    }
    let flash_attention =
        check.word(keys.flash_attention, &[("auto", Switch::Auto), ("on", Switch::On), ("off", Switch::Off)]);
    let flash_attention = flash_attention.or(Switch::Auto);
    let kv_type =
        check.word(keys.kv_type, &[("f16", KvType::F16), ("q8_0", KvType::Q8_0), ("f16/q8_0", KvType::F16Q8_0)]);
    if let Given(kind, place) = &kv_type
        && *kind != KvType::F16
        && flash_attention == Switch::Off
    {
        check.error(
            place,
            "V in q8_0 needs flash attention: set engine.flash_attention to \"on\" or \"auto\", or this to \"f16\"",
        );
    }
    let gpu_layers = gpu_layers(keys.gpu_layers, check);
    let batch_invariant = matches!(keys.batch_invariant, Setting::Given(true, _));
    if batch_invariant {
        batch_invariant_holds(&kv_type, flash_attention, gpu_layers, &keys.batch_invariant, check);
    }
    let default_kv_type = if batch_invariant { KvType::F16Q8_0 } else { KvType::F16 };
    let threads: Option<u32> = check.number(keys.threads, 1..=256).into();
    Engine {
        model: PathBuf::new(),
        context,
        parallel,
        gpu_layers: if batch_invariant { Some(0) } else { gpu_layers },
        kv_type: kv_type.or(default_kv_type),
        threads,
        threads_batch: Option::from(check.number(keys.threads_batch, 1..=256)).or(threads),
        n_batch,
        n_ubatch: n_ubatch.or(BATCH.min(n_batch)),
        load_mode: check
            .word(keys.load_mode, &[("auto", LoadMode::Auto), ("mmap", LoadMode::Mmap), ("read", LoadMode::Read)])
            .or(LoadMode::Auto),
        flash_attention,
        batch_invariant,
        share_prefix: share_prefix.or(SharePrefix::System),
        lookup: keys.lookup.map(|on| on).or(true),
        step_target_ms: check.number(keys.step_target_ms, 1..=10_000).into(),
        idle_unload: Option::from(check.number(keys.idle_unload_s, 1..=604_800))
            .map(|seconds: u32| Duration::from_secs(seconds.into())),
        adapters: Vec::new(),
        system_prompts: Vec::new(),
        path: check.path(keys.path),
    }
}

/// What `engine.batch_invariant` needs, where it is set otherwise.
fn batch_invariant_holds(
    kv_type: &Checked<KvType>,
    flash_attention: Switch,
    gpu_layers: Option<u32>,
    setting: &Setting<bool>,
    check: &mut Check<'_>,
) {
    let Setting::Given(_, place) = setting else { return };
    if let Given(KvType::F16, place) = kv_type {
        check.error(
            place,
            "is \"f16\", with engine.batch_invariant must be \"f16/q8_0\" (the default then) or \"q8_0\"",
        );
    }
    if flash_attention == Switch::Off {
        check.error(place, "needs flash attention: set engine.flash_attention to \"on\" or \"auto\"");
    }
    if gpu_layers.is_some_and(|layers| layers > 0) {
        check.error(place, "holds on a CPU only: set engine.gpu_layers to 0");
    }
}

fn gpu_layers(setting: Setting<WordOrNumber>, check: &mut Check<'_>) -> Option<u32> {
    match setting {
        Setting::Given(WordOrNumber::Word(word), place) if word != "auto" => {
            check.error(&place, format_args!("is {word:?}, must be \"auto\" or a whole number"));
            None
        }
        Setting::Given(WordOrNumber::Number(n), place) => {
            Option::from(check.number(Setting::Given(n, place), 0..=1000))
        }
        _ => None,
    }
}

fn socket_path(
    setting: Setting<String>,
    flag: Option<PathBuf>,
    machine: &Machine,
    check: &mut Check<'_>,
) -> Option<PathBuf> {
    match (flag, setting, &machine.default_socket) {
        (Some(path), _, _) => check.socket_path(path, &Place::flag("--socket")),
        (None, Setting::Given(path, place), _) => check.socket_path(path.into(), &place),
        (None, Setting::Bad, _) => None,
        (None, Setting::Absent, Some(path)) => check.socket_path(path.clone(), &Place::flag("the default socket")),
        (None, Setting::Absent, None) => {
            check.say(
                "no place for the socket: /run/temperd is not writable and XDG_RUNTIME_DIR is not set; give \
                 `--socket PATH`, or `socket.path` in the configuration"
                    .into(),
            );
            None
        }
    }
}

/// All but the path.
fn socket(keys: SocketKeys, check: &mut Check<'_>) -> Socket {
    let mode = match keys.mode {
        Setting::Given(text, place) => check.mode(&text, &place),
        _ => None,
    };
    let allow_uids = check.uids(keys.allow_uids);
    let gateways = check.uids(keys.gateways);
    if let (Given(gateways, place), Given(allowed, _)) = (&gateways, &allow_uids)
        && let Some(uid) = gateways.difference(allowed).next()
    {
        check.error(place, format_args!("uid {uid} could never connect: add it to socket.allow_uids"));
    }
    Socket {
        path: PathBuf::new(),
        mode: mode.unwrap_or(0o660),
        group: check.group(keys.group),
        allow_uids: allow_uids.into(),
        gateways: gateways.or(BTreeSet::new()),
        raw_prompt: keys.raw_prompt.map(|on| on).or(true),
        read_timeout: Duration::from_secs(check.number::<u32>(keys.read_timeout_s, 1..=3600).or(30).into()),
    }
}

fn limits(keys: LimitKeys, context: u32, check: &mut Check<'_>) -> Limits {
    let max_tokens = check.number(keys.max_tokens, 1..=1_048_576);
    if let Given(n, place) = &max_tokens
        && *n > context
    {
        check.error(place, format_args!("is {n}, must not be over engine.context, {context}"));
    }
    let seconds = |checked: Checked<u32>, default| Duration::from_secs(checked.or(default).into());
    Limits {
        queue: check.number(keys.queue, 1..=4096).or(64),
        payload_bytes: check.number(keys.payload_bytes, 1024..=PAYLOAD_BYTES).or(262_144),
        deadline: Duration::from_millis(check.number(keys.deadline_ms, 1000..=86_400_000).or(600_000)),
        share: check.number(keys.share, 1..=100).or(50),
        drain: seconds(check.number(keys.drain_s, 0..=3600), 30),
        max_tokens: max_tokens.or(MAX_TOKENS.min(context)),
        connections: check.number(keys.connections, 1..=65_536).or(256),
    }
}

fn telemetry(keys: TelemetryKeys, check: &mut Check<'_>) -> Telemetry {
    Telemetry {
        interval: Duration::from_secs(check.number(keys.interval_s, 1..=86_400).or(30)),
        qos: check.number(keys.qos, 0..=1).or(0),
        format: check
            .word(keys.format, &[("json", PublishFormat::Json), ("protobuf", PublishFormat::Protobuf)])
            .or(PublishFormat::Json),
    }
}

fn log(keys: LogKeys, check: &mut Check<'_>) -> Log {
    let levels = [
        ("off", LevelFilter::Off),
        ("error", LevelFilter::Error),
        ("warn", LevelFilter::Warn),
        ("info", LevelFilter::Info),
        ("debug", LevelFilter::Debug),
        ("trace", LevelFilter::Trace),
    ];
    Log {
        level: check.word(keys.level, &levels).or(LevelFilter::Info),
        format: check.word(keys.format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]).or(LogFormat::Text),
    }
}

/// A value that has passed its own check; cross-checks name its place.
enum Checked<T> {
    /// Absent, or reported.
    Default,
    Given(T, Place),
}

use Checked::Given;

impl<T> Checked<T> {
    fn or(self, default: T) -> T {
        match self {
            Given(value, _) => value,
            Self::Default => default,
        }
    }
}

impl<T> From<Checked<T>> for Option<T> {
    fn from(checked: Checked<T>) -> Self {
        match checked {
            Given(value, _) => Some(value),
            Checked::Default => None,
        }
    }
}

impl<T> Setting<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Checked<U> {
        match self {
            Self::Given(value, place) => Given(change(value), place),
            _ => Checked::Default,
        }
    }
}

/// Checks of single values; each reports what is wrong.
struct Check<'a> {
    errors: &'a mut Vec<String>,
}

impl Check<'_> {
    fn say(&mut self, error: String) {
        self.errors.push(error);
    }

    fn error(&mut self, place: &Place, message: impl Display) {
        self.say(place.error(message));
    }

    fn number<T: TryFrom<i64>>(&mut self, setting: Setting<i64>, range: RangeInclusive<i64>) -> Checked<T> {
        let Setting::Given(n, place) = setting else { return Checked::Default };
        match T::try_from(n) {
            Ok(value) if range.contains(&n) => Given(value, place),
            _ => {
                self.error(&place, format_args!("is {n}, must be {} to {}", range.start(), range.end()));
                Checked::Default
            }
        }
    }

    fn word<T: Copy>(&mut self, setting: Setting<String>, words: &[(&str, T)]) -> Checked<T> {
        let Setting::Given(word, place) = setting else { return Checked::Default };
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == word) {
            return Given(*value, place);
        }
        let names: Vec<_> = words.iter().map(|(name, _)| format!("{name:?}")).collect();
        self.error(&place, format_args!("is {word:?}, must be one of {}", names.join(", ")));
        Checked::Default
    }

    fn not_empty(&mut self, path: PathBuf, place: &Place) -> Option<PathBuf> {
        if path.as_os_str().is_empty() {
            self.error(place, "must not be empty");
            return None;
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            self.error(place, "must not hold a NUL character");
            return None;
        }
        Some(path)
    }

    fn path(&mut self, setting: Setting<String>) -> Option<PathBuf> {
        match setting {
            Setting::Given(path, place) => self.not_empty(path.into(), &place),
            _ => None,
        }
    }

    fn socket_path(&mut self, path: PathBuf, place: &Place) -> Option<PathBuf> {
        let path = self.not_empty(path, place)?;
        let bytes = path.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES {
            self.error(place, format_args!("has {bytes} bytes, a socket's path must have at most {SOCKET_PATH_BYTES}"));
            return None;
        }
        Some(path)
    }

    fn mode(&mut self, text: &str, place: &Place) -> Option<u32> {
        let digits = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if digits && mode <= 0o777 => Some(mode),
            _ => {
                self.error(place, format_args!("is {text:?}, must be octal, \"0000\" to \"0777\", as in \"0660\""));
                None
            }
        }
    }

    fn group(&mut self, setting: Setting<WordOrNumber>) -> Option<String> {
        match setting {
            Setting::Given(WordOrNumber::Word(name), place) => {
                if name.is_empty() || name.contains('\0') {
                    self.error(&place, "must be a group's name or number");
                    return None;
                }
                Some(name)
            }
            Setting::Given(WordOrNumber::Number(n), place) => self.uid(n, &place).map(|gid| gid.to_string()),
            _ => None,
        }
    }

    fn uids(&mut self, setting: Setting<Vec<i64>>) -> Checked<BTreeSet<u32>> {
        let Setting::Given(list, place) = setting else { return Checked::Default };
        let uids: Vec<_> = list.into_iter().map(|n| self.uid(n, &place)).collect();
        match uids.into_iter().collect() {
            Some(uids) => Given(uids, place),
            None => Checked::Default,
        }
    }

    /// The highest number means "no change" to the kernel, it is nobody's.
    fn uid(&mut self, n: i64, place: &Place) -> Option<u32> {
        let uid = u32::try_from(n).ok().filter(|uid| *uid != u32::MAX);
        if uid.is_none() {
            self.error(place, format_args!("is {n}, must be 0 to {}", u32::MAX - 1));
        }
        uid
    }
}
