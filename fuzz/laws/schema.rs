//! A JSON schema.

use serde::de::IgnoredAny;
use temperd::constrain::Constraint;

use super::walk;

/// Compiles a schema, and has an answer written by it.
pub fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(answer) = walk::answer(&Constraint::Schema(text.into()), walk::seed(data)) {
        let read = serde_json::from_slice::<IgnoredAny>(&answer);
        assert!(read.is_ok(), "no JSON: {:?}", String::from_utf8_lossy(&answer));
    }
}
