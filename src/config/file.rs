//! The configuration file as written: types of values and names of keys are checked here, their meaning in
//! [`super::valid`].
//!
//! Keys are read one by one, and not by a derived `Deserialize`, which stops at the first error: an operator gets
//! everything that is wrong in one run, each with its line and the key's full name.

use std::{collections::BTreeMap, fmt, ops::Range};

use toml::de::{DeTable, DeValue};

mod keys;
mod values;

pub use keys::{
    AdapterKeys, EngineKeys, File, GovernorKeys, LimitKeys, LogKeys, MqttKeys, SocketKeys, SystemPromptKeys,
    TelemetryKeys,
};
use values::FromToml;

/// Where a value was written; begins every error about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    name: String,
    line: Option<usize>,
}

impl Place {
    /// A flag of the command line.
    #[must_use]
    pub fn flag(name: &str) -> Self {
        Self { name: name.into(), line: None }
    }

    /// A section that may be there several times.
    #[must_use]
    pub fn section(name: &str, line: usize) -> Self {
        Self { name: name.into(), line: Some(line) }
    }

    /// The text of an error about what was written here.
    #[must_use]
    pub fn error(&self, message: impl fmt::Display) -> String {
        match self.line {
            Some(line) => format!("{}: {message} (line {line})", self.name),
            None => format!("{}: {message}", self.name),
        }
    }
}

/// A value of a key or flag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Setting<T> {
    /// Not written.
    #[default]
    Absent,
    /// Written with a wrong type, which has been reported: neither its default nor its absence is worth an error.
    Bad,
    /// Written.
    Given(T, Place),
}

impl<T> Setting<T> {
    /// `over`, where it is written; else this one.
    #[must_use]
    pub fn overridden(self, over: Option<T>, flag: &str) -> Self {
        match over {
            Some(value) => Self::Given(value, Place::flag(flag)),
            None => self,
        }
    }
}

/// A word or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordOrNumber {
    /// A word.
    Word(String),
    /// A number.
    Number(i64),
}

/// A number, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number(pub String);

/// Reads the file's text. `None`: it is no TOML at all, and what it means cannot be checked.
pub fn parse(text: &str, errors: &mut Vec<String>) -> Option<File> {
    read(text, errors).map(|(file, _)| file)
}

/// As [`parse`]; gives the full names of all known keys too.
pub(super) fn read(text: &str, errors: &mut Vec<String>) -> Option<(File, Vec<String>)> {
    let lines = Lines::new(text);
    let (document, faults) = DeTable::parse_recoverable(text);
    if !faults.is_empty() {
        errors.extend(faults.iter().map(|fault| match fault.span() {
            Some(span) => format!("malformed TOML: {} (line {})", one_line(fault.message()), lines.of(&span)),
            None => format!("malformed TOML: {}", one_line(fault.message())),
        }));
        return None;
    }
    let mut reader = Reader {
        sections: BTreeMap::new(),
        section: "",
        known: Vec::new(),
        found: Vec::new(),
        several: BTreeMap::new(),
    };
    for (name, value) in document.into_inner() {
        let line = lines.of(&name.span());
        let name = name.into_inner().into_owned();
        let keys = match value.into_inner() {
            DeValue::Table(table) if !SEVERAL.contains(&name.as_str()) => written(table, &lines),
            DeValue::Array(tables) if SEVERAL.contains(&name.as_str()) => {
                for table in tables {
                    let line = lines.of(&table.span());
                    match table.into_inner() {
                        DeValue::Table(table) => {
                            reader.several.entry(name.clone()).or_default().push((line, written(table, &lines)));
                        }
                        other => reader.stray(name.clone(), line, &other),
                    }
                }
                continue;
            }
            other => {
                reader.stray(name, line, &other);
                continue;
            }
        };
        reader.sections.insert(name, (line, keys));
    }
    let file = reader.file();
    let known = reader.finish(errors);
    Some((file, known))
}

const SECTIONS: [&str; 7] = ["engine", "socket", "mqtt", "limits", "governor", "telemetry", "log"];
/// The sections that may be there several times.
const SEVERAL: [&str; 2] = [ADAPTER, SYSTEM_PROMPT];
const ADAPTER: &str = "adapter";
const SYSTEM_PROMPT: &str = "system_prompt";
/// Sections of later versions.
const LATER: [&str; 2] = ["http", "profile"];
const NOT_YET: &str = "not available yet; leave it out";

type Keys<'i> = BTreeMap<String, Written<'i>>;

fn written<'i>(table: DeTable<'i>, lines: &Lines) -> Keys<'i> {
    let keys = table.into_iter().map(|(key, value)| {
        (key.get_ref().to_string(), Written { line: lines.of(&key.span()), value: value.into_inner() })
    });
    keys.collect()
}

struct Written<'i> {
    line: usize,
    value: DeValue<'i>,
}

/// Takes keys out of the sections; what is left in the end is unknown.
struct Reader<'i> {
    sections: BTreeMap<String, (usize, Keys<'i>)>,
    section: &'static str,
    /// Each of those that may be there several times, with its line.
    several: BTreeMap<String, Vec<(usize, Keys<'i>)>>,
    known: Vec<String>,
    /// Errors with their lines, to be sorted.
    found: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn file(&mut self) -> File {
        self.section = "engine";
        let engine = EngineKeys {
            model: self.get("model"),
            context: self.get("context"),
            parallel: self.get("parallel"),
            gpu_layers: self.get("gpu_layers"),
            kv_type: self.get("kv_type"),
            threads: self.get("threads"),
            threads_batch: self.get("threads_batch"),
            n_batch: self.get("n_batch"),
            n_ubatch: self.get("n_ubatch"),
            load_mode: self.get("load_mode"),
            flash_attention: self.get("flash_attention"),
            batch_invariant: self.get("batch_invariant"),
            share_prefix: self.get("share_prefix"),
            lookup: self.get("lookup"),
            step_target_ms: self.get("step_target_ms"),
            idle_unload_s: self.get("idle_unload_s"),
            path: self.get("path"),
        };
        self.section = "socket";
        let socket = SocketKeys {
            path: self.get("path"),
            mode: self.get("mode"),
            group: self.get("group"),
            allow_uids: self.get("allow_uids"),
            gateways: self.get("gateways"),
            raw_prompt: self.get("raw_prompt"),
            read_timeout_s: self.get("read_timeout_s"),
        };
        self.section = "mqtt";
        let mqtt = MqttKeys {
            url: self.get("url"),
            node: self.get("node"),
            user: self.get("user"),
            password_file: self.get("password_file"),
            ca: self.get("ca"),
            cert: self.get("cert"),
            key: self.get("key"),
            response_topics: self.get("response_topics"),
            raw_prompt: self.get("raw_prompt"),
            pool: self.get("pool"),
            keep_alive_s: self.get("keep_alive_s"),
        };
        self.later("inbox");
        self.section = "limits";
        let limits = LimitKeys {
            queue: self.get("queue"),
            payload_bytes: self.get("payload_bytes"),
            deadline_ms: self.get("deadline_ms"),
            share: self.get("share"),
            drain_s: self.get("drain_s"),
            max_tokens: self.get("max_tokens"),
            connections: self.get("connections"),
        };
        self.section = "governor";
        let governor = GovernorKeys {
            reserve_mib: self.get("reserve_mib"),
            critical_mib: self.get("critical_mib"),
            set_point_c: self.get("set_point_c"),
            interval_ms: self.get("interval_ms"),
            memory_ladder: self.get("memory_ladder"),
            thermal_ladder: self.get("thermal_ladder"),
        };
        self.section = "telemetry";
        let telemetry =
            TelemetryKeys { interval_s: self.get("interval_s"), qos: self.get("qos"), format: self.get("format") };
        self.later("home_assistant");
        self.section = "log";
        let log = LogKeys { level: self.get("level"), format: self.get("format") };
        let adapters = self.several(ADAPTER, &["name", "path", "scale"], |reader, line| AdapterKeys {
            line,
            name: reader.get("name"),
            path: reader.get("path"),
            scale: reader.get("scale"),
        });
        let system_prompts = self.several(SYSTEM_PROMPT, &["name", "text"], |reader, line| SystemPromptKeys {
            line,
            name: reader.get("name"),
            text: reader.get("text"),
        });
        File { engine, socket, mqtt, limits, governor, telemetry, log, adapters, system_prompts }
    }

    /// Each section of this name, read as if it were the only one.
    fn several<T>(&mut self, name: &'static str, keys: &[&str], one: impl Fn(&mut Self, usize) -> T) -> Vec<T> {
        self.section = name;
        let sections = self.several.remove(name).unwrap_or_default();
        if sections.is_empty() {
            self.known.extend(keys.iter().map(|key| format!("{name}.{key}")));
        }
        let mut read = Vec::new();
        for (line, keys) in sections {
            self.sections.insert(name.into(), (line, keys));
            read.push(one(self, line));
            if let Some((_, rest)) = self.sections.remove(name) {
                self.unknown(name, rest);
            }
        }
        read
    }

    fn take(&mut self, key: &str) -> Option<Written<'_>> {
        let (_, keys) = self.sections.get_mut(self.section)?;
        keys.remove(key)
    }

    fn get<T: FromToml>(&mut self, key: &str) -> Setting<T> {
        let name = format!("{}.{key}", self.section);
        self.known.push(name.clone());
        let Some(Written { line, value }) = self.take(key) else { return Setting::Absent };
        let place = Place { name, line: Some(line) };
        match T::from_toml(&value) {
            Some(value) => Setting::Given(value, place),
            None => {
                let message = format!("must be {}, is {}", T::EXPECTED, article(value.type_str()));
                self.found.push((line, place.error(message)));
                Setting::Bad
            }
        }
    }

    fn later(&mut self, key: &str) {
        let name = format!("{}.{key}", self.section);
        if let Some(Written { line, .. }) = self.take(key) {
            self.found.push((line, Place { name, line: Some(line) }.error(NOT_YET)));
        }
    }

    /// Something at the top of the file that is no section.
    fn stray(&mut self, name: String, line: usize, value: &DeValue<'_>) {
        if SECTIONS.contains(&name.as_str()) {
            let message = format!("must be a section, `[{name}]`, is {}", article(value.type_str()));
            self.found.push((line, Place { name, line: Some(line) }.error(message)));
        } else if SEVERAL.contains(&name.as_str()) {
            let what = name.replace('_', " ");
            let message =
                format!("must be sections, `[[{name}]]`, one for each {what}, is {}", article(value.type_str()));
            self.found.push((line, Place { name, line: Some(line) }.error(message)));
        } else {
            let keys = BTreeMap::new();
            self.sections.insert(name, (line, keys));
        }
    }

    /// Reports unknown sections and keys; gives back the known ones.
    fn finish(mut self, errors: &mut Vec<String>) -> Vec<String> {
        for (section, (line, keys)) in std::mem::take(&mut self.sections) {
            let shown = section.escape_debug().to_string();
            if LATER.contains(&section.as_str()) {
                self.found.push((line, Place { name: shown, line: Some(line) }.error(NOT_YET)));
            } else if SECTIONS.contains(&section.as_str()) {
                self.unknown(&section, keys);
            } else {
                let message = format!("unknown section or key{}", self.suggestion("", &section));
                self.found.push((line, Place { name: shown, line: Some(line) }.error(message)));
            }
        }
        self.found.sort();
        errors.extend(self.found.into_iter().map(|(_, error)| error));
        self.known
    }

    /// Reports what nobody took of a section.
    fn unknown(&mut self, section: &str, keys: Keys<'_>) {
        for (key, Written { line, .. }) in keys {
            let name = format!("{section}.{}", key.escape_debug());
            let message = format!("unknown key{}", self.suggestion(section, &key));
            self.found.push((line, Place { name, line: Some(line) }.error(message)));
        }
    }

    /// The known name that was probably meant: the same key of another section, else a similar one.
    fn suggestion(&self, section: &str, key: &str) -> String {
        let elsewhere = self.known.iter().find(|known| known.split_once('.').is_some_and(|(_, name)| name == key));
        let candidates: Vec<&str> = match section {
            "" => SECTIONS.to_vec(),
            _ => self.known.iter().filter_map(|known| known.strip_prefix(section)?.strip_prefix('.')).collect(),
        };
        let nearest = candidates
            .into_iter()
            .map(|known| (strsim::jaro_winkler(known, key), known))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|(one, _), (other, _)| one.total_cmp(other));
        match (elsewhere, nearest, section) {
            (Some(known), _, _) => format!("; did you mean `{known}`?"),
            (None, Some((_, known)), "") => format!("; did you mean `[{known}]`?"),
            (None, Some((_, known)), _) => format!("; did you mean `{section}.{known}`?"),
            (None, None, "") => format!("; the sections are {}", SECTIONS.join(", ")),
            (None, None, _) => "; config.example.toml lists all keys".into(),
        }
    }
}

/// Byte offset → line, counted from 1.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    fn of(&self, span: &Range<usize>) -> usize {
        self.0.partition_point(|newline| *newline < span.start) + 1
    }
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

fn one_line(message: &str) -> String {
    message.replace('\n', ", ")
}
