//! Generated types of `proto/`, their JSON mapping, and the limits on what comes in.

use serde::{Serialize, de::DeserializeOwned};
use serde_path_to_error::Segment;

pub mod strict;

/// Package `temperd.v1`: what clients see, in protobuf and JSON.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("temperd.v1");
    include!(concat!(env!("OUT_DIR"), "/temperd.v1.serde.rs"));

    /// The compiled `.proto` files, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/temperd.v1.bin"));
}

/// Package `temperd.engine.v1`: frames between daemon and engine.
#[allow(missing_docs, clippy::all)]
pub mod engine {
    tonic::include_proto!("temperd.engine.v1");
}

/// Version of this daemon, as status and telemetry give it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Reads the JSON form of a message. The error names the field and never repeats a value from the text.
///
/// # Errors
/// Malformed JSON, unknown fields and wrong types.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| json_error(&error))?;
    deserializer.end().map_err(|error| format!("malformed JSON: line {}, column {}", error.line(), error.column()))?;
    Ok(value)
}

/// serde's own texts quote the offending value, which may be a prompt: unknown fields and type names are kept, values
/// are not.
fn json_error(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let inner = error.inner();
    let at = format!("line {}, column {}", inner.line(), inner.column());
    let path = shown(error.path());
    if !inner.is_data() {
        return format!("malformed JSON: {at}");
    }
    let text = inner.to_string();
    let field = if path.is_empty() { path } else { format!("`{path}`: ") };
    if let Some(rest) = text.strip_prefix("unknown field `") {
        let name = rest.split('`').next().unwrap_or_default();
        let name = if is_plain(name) { format!("unknown field `{name}`") } else { "unknown field".into() };
        return format!("{name} at {at}");
    }
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => {
            let expected = expected.split(" at line ").next().unwrap_or(expected);
            format!("{field}wrong type or value, expected {expected} at {at}")
        }
        None => format!("{field}wrong type or value at {at}"),
    }
}

/// Where a value stands, as far as it is told by plain names: those in a map are the client's own.
fn shown(path: &serde_path_to_error::Path) -> String {
    let mut shown = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => shown.push_str(&format!("[{index}]")),
            Segment::Map { key } if is_plain(key) => {
                let dot = if shown.is_empty() { "" } else { "." };
                shown.push_str(&format!("{dot}{key}"));
            }
            _ => break,
        }
    }
    shown
}

/// Whether it looks like a name. One that is the client's own may hold anything, and is repeated in no error then.
pub(crate) fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// Writes the JSON form of a message.
#[must_use]
pub fn to_json<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("generated messages have string keys and no failing serialisers")
}
