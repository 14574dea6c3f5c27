//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::Value;

use super::{
    Checked, REQUEST_ID,
    answer::{self, write},
    fields::Fields,
    request::{self, Asked},
};
use crate::{
    request::{RequestError, WayIn, check},
    serve::{
        http::{self, error},
        unix::{Peer, Shared},
    },
    wire::v1,
};

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As JSON numbers.
    Float,
    /// Their bytes, little-endian, as base64: what OpenAI's Python client asks for by itself.
    Base64,
}

/// What of a request the schema has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// `encoding_format`.
    pub encoding: Encoding,
    /// Numbers of a vector that are expected.
    pub dimensions: Option<u32>,
}

/// Answers one request.
pub(super) async fn serve(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    let checked = read(&body).and_then(|(asked, form)| {
        let embed = |request, client, bounds: &_| check::embed(request, client, WayIn::Http, bounds);
        let checked = asked.check(&shared, peer, embed)?;
        // While no model has been loaded, the answer itself shows its length.
        shared.dispatcher.embedding_length().map_or(Ok(()), |length| dimensions(form.dimensions, length))?;
        Ok((checked, form))
    });
    let (Checked { request, model, .. }, form) = match checked {
        Ok(checked) => checked,
        Err(error) => return http::refuse(&shared, peer, &error, None),
    };
    let ticket = match shared.dispatcher.submit(request).await {
        Ok(ticket) => ticket,
        Err(error) => return error::response(&error),
    };
    let request_id = HeaderValue::from_str(ticket.id());
    let reply = ticket.embedded().await;
    let length = reply.embeddings.first().map_or(0, |embedding| embedding.values.len());
    let failure = answer::failure_of(&reply.outcome, reply.error.as_ref(), reply.retry_after_ms)
        .or_else(|| dimensions(form.dimensions, u32::try_from(length).unwrap_or(u32::MAX)).err());
    let mut response = match failure {
        Some(error) => error::response(&error),
        None => ([(header::CONTENT_TYPE, "application/json")], written(&reply, &model, form.encoding)).into_response(),
    };
    if let Ok(id) = request_id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Reads the body.
pub fn read(body: &[u8]) -> Result<(Asked<v1::EmbedRequest>, Form), RequestError> {
    let mut fields = Fields::parse(body)?;
    let input = match fields.require("input")? {
        Value::String(text) => vec![text],
        Value::Array(values) => values.into_iter().enumerate().map(text).collect::<Result<_, _>>()?,
        _ => return Err(RequestError::invalid("input", "must be a string or an array of strings")),
    };
    let encoding = match fields.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => return Err(RequestError::invalid("encoding_format", "must be float or base64")),
    };
    let form = Form { encoding, dimensions: fields.take("dimensions")? };
    let model = fields.require("model")?;
    let user = request::user(&mut fields)?;
    let request = v1::EmbedRequest {
        id: fields.take("id")?.unwrap_or_default(),
        input,
        priority: fields.take("priority")?,
        deadline_ms: fields.take("deadline_ms")?,
    };
    fields.finish()?;
    Ok((Asked { request, model, user, include_usage: false }, form))
}

fn text((index, value): (usize, Value)) -> Result<String, RequestError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(_) | Value::Array(_) => {
            Err(RequestError::invalid("input", "tokens are not taken; send the text itself"))
        }
        _ => Err(RequestError::invalid(&format!("input[{index}]"), "must be a string")),
    }
}

/// A vector is never cut: that would need a model trained for it.
fn dimensions(asked: Option<u32>, length: u32) -> Result<(), RequestError> {
    match asked.filter(|asked| *asked != length) {
        None => Ok(()),
        Some(asked) => {
            let text = format_args!("is {asked}, this model's embeddings have {length}; leave the field out");
            Err(RequestError::invalid("dimensions", text).with_numbers(length as usize, asked as usize))
        }
    }
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Numbers<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers<'a> {
    Float(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

fn written(reply: &v1::EmbedReply, model: &str, encoding: Encoding) -> Vec<u8> {
    let data = reply.embeddings.iter().enumerate().map(|(index, embedding)| Item {
        object: "embedding",
        index,
        embedding: match encoding {
            Encoding::Float => Numbers::Float(&embedding.values),
            Encoding::Base64 => Numbers::Base64(base64(&embedding.values)),
        },
    });
    let prompt_tokens = reply.usage.as_ref().map_or(0, |usage| usage.prompt_tokens);
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
    write(&List { object: "list", data: data.collect(), model, usage })
}

fn base64(values: &[f32]) -> String {
    STANDARD.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str) -> (Vec<String>, Form) {
        let (asked, form) = read(body.as_bytes()).expect("a good request");
        (asked.request.input, form)
    }

    fn param(body: &str) -> Option<String> {
        read(body.as_bytes()).expect_err("it is wrong").param
    }

    #[test]
    fn one_text_or_several() {
        let (input, form) = asked(r#"{"model": "m", "input": "a"}"#);
        assert_eq!((input, form), (vec!["a".into()], Form { encoding: Encoding::Float, dimensions: None }));
        let (input, form) =
            asked(r#"{"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4, "user": "u"}"#);
        assert_eq!(input, ["a", "b"]);
        assert_eq!(form, Form { encoding: Encoding::Base64, dimensions: Some(4) });
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(param(r#"{"model": "m"}"#).as_deref(), Some("input"));
        for input in ["7", "[1, 2]", "[[1, 2]]", "{}"] {
            assert_eq!(param(&format!(r#"{{"model": "m", "input": {input}}}"#)).as_deref(), Some("input"), "{input}");
        }
        assert_eq!(param(r#"{"model": "m", "input": ["a", true]}"#).as_deref(), Some("input[1]"));
        assert_eq!(param(r#"{"input": "a"}"#).as_deref(), Some("model"));
        for (field, value) in [("encoding_format", "\"int8\""), ("dimensions", "-1"), ("mood", "1"), ("user", "\"\"")] {
            let body = format!(r#"{{"model": "m", "input": "a", "{field}": {value}}}"#);
            assert_eq!(param(&body).as_deref(), Some(field));
        }
    }

    #[test]
    fn dimensions_must_be_the_models() {
        assert!(dimensions(None, 576).is_ok() && dimensions(Some(576), 576).is_ok());
        let error = dimensions(Some(256), 576).expect_err("too few");
        assert_eq!((error.param.as_deref(), error.limit, error.actual), (Some("dimensions"), Some(576), Some(256)));
    }

    #[test]
    fn numbers_are_written_in_both_forms() {
        let reply = v1::EmbedReply {
            embeddings: vec![v1::Embedding { values: vec![1.0, -0.5] }],
            usage: Some(v1::Usage { prompt_tokens: 3, ..v1::Usage::default() }),
            ..v1::EmbedReply::default()
        };
        let json = |encoding| String::from_utf8(written(&reply, "m", encoding)).expect("UTF-8");
        assert_eq!(
            json(Encoding::Float),
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0,-0.5]}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}}"#
        );
        assert!(json(Encoding::Base64).contains(r#""embedding":"AACAPwAAAL8=""#));
    }
}
