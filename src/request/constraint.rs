//! What an answer must obey, from the fields of a request. Whether it can be compiled is found out at admission.

use super::RequestError;
use crate::{
    constrain::{BYTES, Constraint},
    wire::v1,
};

/// Any object, as `json_object` asks.
const OBJECT: &str = r#"{"type":"object"}"#;

/// Checks both fields.
///
/// # Errors
/// `invalid_request` naming the field.
pub(super) fn constraint(
    format: Option<v1::ResponseFormat>,
    grammar: Option<String>,
) -> Result<Option<Constraint>, RequestError> {
    let schema = match format {
        None => None,
        Some(v1::ResponseFormat { r#type: kind, schema }) => match (kind.as_str(), schema) {
            ("text", None) => None,
            ("json_object", None) => Some(OBJECT.to_owned()),
            ("json_schema", Some(schema)) => Some(sized("response_format", schema)?),
            ("json_schema", None) => return Err(RequestError::invalid("response_format.schema", "is required")),
            ("text" | "json_object", Some(_)) => {
                return Err(RequestError::invalid("response_format.schema", "needs the type json_schema"));
            }
            _ => {
                let message = "must be text, json_object or json_schema";
                return Err(RequestError::invalid("response_format.type", message));
            }
        },
    };
    match (schema, grammar) {
        (Some(_), Some(_)) => {
            Err(RequestError::invalid("grammar", "cannot stand beside `response_format`; send one of them"))
        }
        (Some(schema), None) => Ok(Some(Constraint::Schema(schema))),
        (None, Some(grammar)) => Ok(Some(Constraint::Grammar(sized("grammar", grammar)?))),
        (None, None) => Ok(None),
    }
}

fn sized(param: &str, text: String) -> Result<String, RequestError> {
    if text.is_empty() {
        return Err(RequestError::invalid(param, "must not be empty"));
    }
    if text.len() > BYTES {
        let message = format_args!("has {} bytes, at most {BYTES} are taken", text.len());
        return Err(RequestError::invalid(param, message).with_numbers(BYTES, text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ErrorCode;

    fn asked(kind: &str, schema: Option<&str>, grammar: Option<&str>) -> Result<Option<Constraint>, RequestError> {
        let format = v1::ResponseFormat { r#type: kind.into(), schema: schema.map(Into::into) };
        constraint(Some(format), grammar.map(Into::into))
    }

    #[test]
    fn each_form_is_known() {
        let grammar = Some(Constraint::Grammar("root ::= \"a\"".into()));
        assert_eq!(constraint(None, None), Ok(None));
        assert_eq!(constraint(None, Some("root ::= \"a\"".into())), Ok(grammar.clone()));
        assert_eq!(asked("text", None, None), Ok(None));
        assert_eq!(asked("text", None, Some("root ::= \"a\"")), Ok(grammar));
        assert_eq!(asked("json_object", None, None), Ok(Some(Constraint::Schema(OBJECT.into()))));
        assert_eq!(asked("json_schema", Some("{}"), None), Ok(Some(Constraint::Schema("{}".into()))));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let param = |asked: Result<_, RequestError>| {
            let error = asked.expect_err("refused");
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            error.param.expect("a field")
        };
        assert_eq!(param(asked("", None, None)), "response_format.type");
        assert_eq!(param(asked("yaml", None, None)), "response_format.type");
        assert_eq!(param(asked("json_schema", None, None)), "response_format.schema");
        assert_eq!(param(asked("json_object", Some("{}"), None)), "response_format.schema");
        assert_eq!(param(asked("json_schema", Some(""), None)), "response_format");
        assert_eq!(param(asked("json_schema", Some("{}"), Some("g"))), "grammar");
        assert_eq!(param(asked("json_object", None, Some("g"))), "grammar");
        assert_eq!(param(asked("text", None, Some(""))), "grammar");
        let error = asked("json_schema", Some(&"x".repeat(BYTES + 1)), None).expect_err("too large");
        assert_eq!((error.limit, error.actual), (Some(65536), Some(65537)));
        assert!(asked("text", None, Some(&"x".repeat(BYTES))).is_ok());
    }
}
