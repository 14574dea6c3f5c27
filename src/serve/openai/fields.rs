//! A JSON object that is taken apart field by field: `null` equals absent, every error names its field (OpenAI's
//! `param`), no error repeats a value, and what nobody took is an error too.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use crate::{
    request::{ErrorCode, RequestError},
    wire,
};

/// The fields that have not been taken yet.
pub struct Fields {
    /// What goes before the names of the fields: empty, or for example `messages[0].`.
    at: String,
    map: Map<String, Value>,
}

/// A field that OpenAI's interface has and this one does not, with the values that change nothing.
pub struct Neutral {
    /// The field.
    pub name: &'static str,
    /// Whether the value changes nothing.
    pub is: fn(&Value) -> bool,
    /// What the error says of any other.
    pub otherwise: &'static str,
}

impl Fields {
    /// Reads the body of a request.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let map = wire::from_json(body).map_err(|error| RequestError::new(ErrorCode::InvalidRequest, error))?;
        Ok(Self::new(String::new(), map))
    }

    /// Goes on with an object inside the body.
    pub fn new(at: String, map: Map<String, Value>) -> Self {
        Self { at, map }
    }

    /// The full name of a field.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.at)
    }

    /// Takes a field.
    pub fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, RequestError> {
        match self.map.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_path_to_error::deserialize(value).map(Some).map_err(|error| wrong(self.name(field), &error))
            }
        }
    }

    /// Takes a field that must be there.
    pub fn require<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, RequestError> {
        self.take(field)?.ok_or_else(|| RequestError::invalid(&self.name(field), "is required"))
    }

    /// Drops the fields of the list where they are neutral.
    pub fn neutral(&mut self, list: &[Neutral]) -> Result<(), RequestError> {
        for neutral in list {
            match self.map.remove(neutral.name) {
                None | Some(Value::Null) => {}
                Some(value) if (neutral.is)(&value) => {}
                Some(_) => return Err(RequestError::invalid(&self.name(neutral.name), neutral.otherwise)),
            }
        }
        Ok(())
    }

    /// Ends the reading: what is left is unknown.
    pub fn finish(self) -> Result<(), RequestError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) if wire::is_plain(name) => Err(RequestError::invalid(&self.name(name), "unknown field")),
            Some(_) => Err(RequestError::new(ErrorCode::InvalidRequest, format!("{}: unknown field", self.at))),
        }
    }
}

/// serde's texts quote the value; what they expected of it is all that is kept. Of the path, indices alone are: keys
/// are the client's.
fn wrong(mut param: String, error: &serde_path_to_error::Error<serde_json::Error>) -> RequestError {
    for segment in error.path() {
        match segment {
            Segment::Seq { index } => param.push_str(&format!("[{index}]")),
            _ => break,
        }
    }
    let text = error.inner().to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => RequestError::invalid(&param, format_args!("wrong type or value, expected {expected}")),
        None => RequestError::invalid(&param, "wrong type or value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn errors_name_the_field_and_not_the_value() {
        let error = fields(r#"{"stop": ["a", 3]}"#).take::<Vec<String>>("stop").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stop[1]"));
        let error = fields(r#"{"seed": "secret, expected secret"}"#).take::<i64>("seed").unwrap_err();
        assert_eq!(error.message, "seed: wrong type or value, expected i64");
        let error = fields(r#"{"bias": {"secret": 1}}"#).take::<std::collections::HashMap<u32, f32>>("bias");
        let error = error.unwrap_err();
        assert!(!error.message.contains("secret"), "{error}");
        assert_eq!(error.param.as_deref(), Some("bias"));
        let error = fields("{}").require::<String>("model").unwrap_err();
        assert_eq!(error.message, "model: is required");
    }

    #[test]
    fn what_nobody_took_is_unknown() {
        assert!(fields(r#"{"x": null}"#).finish().is_ok());
        assert_eq!(fields(r#"{"x": 1}"#).finish().unwrap_err().param.as_deref(), Some("x"));
        let error = fields(r#"{"my secret": 1}"#).finish().unwrap_err();
        assert!(!error.message.contains("secret"), "{error}");
    }

    #[test]
    fn malformed_bodies_are_invalid_requests() {
        for body in [&b""[..], b"{", b"[]", b"3", b"{} {}", b"{\"a\": \"\xff\"}", b"\xff"] {
            let error = Fields::parse(body).err().unwrap();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{body:?}");
        }
    }
}
