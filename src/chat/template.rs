//! The chat template of a GGUF, rendered by minijinja as Hugging Face's `apply_chat_template` would.
//!
//! A template comes with the model and is trusted as the model is; it still cannot run forever (a limit on steps),
//! recurse without end or write without end. What it builds in variables meanwhile is not limited.

use std::{collections::HashSet, fmt, io, sync::Arc};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value, context,
    value::{Kwargs, ViaDeserialize},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize as _;

use crate::request::Role;

/// Steps of one rendering: a template that walks over 1,024 messages takes some 50,000.
const STEPS: u64 = 1_000_000;
/// What a template may add to the messages, and how often it may write them.
const OWN_BYTES: usize = 1024 * 1024;
const TIMES: usize = 4;

const NAME: &str = "chat_template";

/// Answers `strftime_now`.
pub(super) type Clock = Arc<dyn Fn() -> jiff::Zoned + Send + Sync>;

/// A compiled template.
pub(super) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    reserved: HashSet<char>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

/// Why a rendering failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// `raise_exception`, with its text, which may hold text of a message.
    Raised(String),
    Steps {
        limit: u64,
    },
    Length {
        limit: usize,
    },
    Other {
        what: String,
        line: usize,
    },
}

impl Template {
    pub(super) fn new(source: &str, bos: &str, eos: &str, clock: Clock) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(STEPS));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: String| strftime(&clock(), &format));
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, without_generation_tags(source))?;
        let reserved = source.chars().chain(bos.chars()).chain(eos.chars()).filter(|c| !c.is_ascii()).collect();
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned(), reserved })
    }

    /// Characters that the template writes by itself.
    pub(super) fn reserved(&self) -> &HashSet<char> {
        &self.reserved
    }

    /// Renders a conversation up to the point where the model answers.
    pub(super) fn render(&self, messages: impl Iterator<Item = (Role, String)>) -> Result<String, Failure> {
        let mut bytes = 0;
        let messages: Vec<Value> = messages
            .map(|(role, content)| {
                bytes += content.len();
                context! { role => role.as_str(), content => content }
            })
            .collect();
        let limit = OWN_BYTES.saturating_add(bytes.saturating_mul(TIMES));
        let mut output = Bounded { bytes: Vec::new(), limit, full: false };
        let context = context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
            tools => (),
            documents => (),
        };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut output).map(|_| ()));
        match rendered {
            Ok(()) => String::from_utf8(output.bytes)
                .map_err(|_| Failure::Other { what: "output is not UTF-8".into(), line: 0 }),
            Err(_) if output.full => Err(Failure::Length { limit }),
            Err(error) => Err(failure(&error)),
        }
    }
}

fn failure(error: &Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(text)) = inner.downcast_ref() {
            return Failure::Raised(text.clone());
        }
        if inner.downcast_ref::<Error>().is_some_and(|inner| inner.kind() == ErrorKind::OutOfFuel) {
            return Failure::Steps { limit: STEPS };
        }
        cause = inner.source();
    }
    // The detail may quote a value, which may be a message: only the kind is told.
    Failure::Other { what: error.kind().to_string(), line: error.line().unwrap_or_default() }
}

/// A template's own refusal, on its way through minijinja's errors.
#[derive(Debug, thiserror::Error)]
#[error("raise_exception")]
struct Raised(String);

fn raise_exception(text: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(text)))
}

fn strftime(now: &jiff::Zoned, format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, "strftime_now").with_source(error))
}

/// Python's `json.dumps(…, ensure_ascii=False)`: minijinja's own filter escapes for HTML and writes no spaces.
fn tojson(value: ViaDeserialize<serde_json::Value>, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut json = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.0.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        None => value.0.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)),
    };
    written
        .map_err(io::Error::other)
        .and_then(|()| String::from_utf8(json).map_err(io::Error::other))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))
}

/// JSON with Python's separators.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Takes a rendering up to its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > self.limit {
            self.full = true;
            return Err(io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hugging Face's `{% generation %}` block marks what a training loss counts and writes nothing; a block that is always
/// taken stands in for it.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        result.push_str(before);
        result.push_str("{%");
        let Some((inside, after)) = tag.split_once("%}") else {
            rest = tag;
            break;
        };
        let name = inside.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        match name {
            "generation" => result.push_str(&inside.replace(name, "if true")),
            "endgeneration" => result.push_str(&inside.replace(name, "endif")),
            _ => result.push_str(inside),
        }
        result.push_str("%}");
        rest = after;
    }
    result.push_str(rest);
    result
}
