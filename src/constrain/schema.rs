//! A JSON schema on its way to llguidance: bounded, and compiled with our options.

use llguidance::{JsonCompileOptions, api::TopLevelGrammar};
use serde_json::{Map, Value};

/// Levels of arrays and objects in a schema, and references: the compiler recurses through both.
const NESTING: usize = 48;
const REFERENCES: usize = 128;
/// One space, or one line end with so much before the next character: a model that would rather write white space for
/// ever than the end cannot.
const WHITE_SPACE: &str = r"( |\n {0,32}|\n\t{0,8})";
/// llguidance's own options, which it would take from the schema.
const OPTIONS: &str = "x-guidance";

/// The grammar of a schema.
pub(super) fn grammar(text: &str) -> Result<TopLevelGrammar, String> {
    let mut schema: Map<String, Value> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    let references = schema.values().try_fold(0, |sum, value| Ok::<_, String>(sum + references(value, 1)?))?
        + usize::from(schema.contains_key("$ref"));
    if references > REFERENCES {
        return Err(format!("the schema has {references} references, at most {REFERENCES} are taken"));
    }
    if schema.contains_key(OPTIONS) {
        return Err(format!("`{OPTIONS}` is not taken"));
    }
    let options = JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.into()), ..JsonCompileOptions::default() };
    schema.insert(OPTIONS.into(), serde_json::to_value(options).map_err(|error| error.to_string())?);
    Ok(TopLevelGrammar::from_json_schema(schema.into()))
}

/// serde's texts quote the schema; where it is wrong is enough.
fn malformed(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => "the schema must be a JSON object".to_owned(),
        _ => format!("the schema is malformed JSON: line {}, column {}", error.line(), error.column()),
    }
}

/// References within a value at this level.
fn references(value: &Value, level: usize) -> Result<usize, String> {
    if level > NESTING {
        return Err(format!("the schema is nested deeper than {NESTING} levels"));
    }
    let sum = |sum, value: &Value| Ok(sum + references(value, level + 1)?);
    match value {
        Value::Array(values) => values.iter().try_fold(0, sum),
        Value::Object(map) => map.values().try_fold(usize::from(map.contains_key("$ref")), sum),
        _ => Ok(0),
    }
}
