//! From a payload to a checked request, in the three forms that devices speak. Pure.

use prost::Message as _;

use super::topics::{Op, Target};
use crate::{
    request::{
        ErrorCode, Request, RequestError, WayIn,
        check::{self, Bounds},
    },
    wire::{self, v1},
};

/// Bytes of an id that is repeated in an error.
const ID_BYTES: usize = 128;

/// How a payload is written; the answer is written the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The JSON mapping of the schema.
    Json,
    /// Protobuf.
    Protobuf,
    /// The payload is the question, the reply the answer.
    Text,
}

impl Format {
    /// All content types that are taken and given.
    pub const CONTENT_TYPES: [&str; 3] =
        [Self::Json.content_type(), Self::Protobuf.content_type(), Self::Text.content_type()];

    /// As MQTT 5 names it.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/x-protobuf",
            Self::Text => "text/plain",
        }
    }

    /// Whether it is UTF-8 throughout.
    #[must_use]
    pub fn is_utf8(self) -> bool {
        self != Self::Protobuf
    }

    /// What a payload is, by its content type (parameters such as `charset` are ignored) or, where none is given, by
    /// its first byte. `Err` is the form for the answer to a type that is not known.
    ///
    /// # Errors
    /// A content type that is none of the three.
    pub fn of(content_type: Option<&str>, payload: &[u8]) -> Result<Self, Self> {
        let sniffed = match payload.trim_ascii_start().first() {
            Some(b'{') => Self::Json,
            _ => Self::Text,
        };
        let name = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if name.is_empty() {
            return Ok(sniffed);
        }
        [Self::Json, Self::Protobuf, Self::Text]
            .into_iter()
            .find(|format| format.content_type().eq_ignore_ascii_case(name))
            .ok_or(sniffed)
    }
}

/// What the node allows.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Limits of requests.
    pub bounds: &'a Bounds,
    /// Whether raw prompts are taken.
    pub raw_prompt: bool,
    /// The node's name, which is part of every answer.
    pub node: &'a str,
}

/// What a device wants.
#[derive(Debug)]
pub enum Asked {
    /// A job for the engine.
    Job(Box<Request>),
    /// The end of a job.
    Cancel(String),
    /// The status.
    Status,
}

/// A request that is not even looked at by the dispatcher.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The request's id, where it could be read.
    pub id: String,
    /// Why.
    pub error: RequestError,
}

/// Reads a request.
///
/// # Errors
/// Everything that is wrong with it, with its id where that can be read.
pub fn decode(target: &Target, format: Format, payload: &[u8], rules: Rules<'_>) -> Result<Asked, Rejected> {
    let limit = rules.bounds.payload_bytes;
    if payload.len() > limit {
        let text = format!("the payload has {} bytes, the limit is {limit}", payload.len());
        let error = RequestError::new(ErrorCode::PayloadTooLarge, text).with_numbers(limit, payload.len());
        return Err(Rejected { id: id_of(format, payload), error });
    }
    read(target, format, payload, rules).map_err(|error| Rejected { id: id_of(format, payload), error })
}

fn read(target: &Target, format: Format, payload: &[u8], rules: Rules<'_>) -> Result<Asked, RequestError> {
    let client = target.client()?;
    match target.op {
        Op::Chat => {
            let request = match format {
                Format::Text => question(text(payload)?),
                _ => parse(format, payload)?,
            };
            let request = check::chat(request, client, WayIn::Mqtt, rules.bounds)?;
            job(request, format, rules.node)
        }
        Op::Complete if !rules.raw_prompt => Err(RequestError::new(
            ErrorCode::Forbidden,
            "raw prompts are not taken over MQTT here; use chat, or have the operator set mqtt.raw_prompt",
        )),
        Op::Complete => {
            let request = match format {
                Format::Text => v1::CompleteRequest { prompt: text(payload)?, ..v1::CompleteRequest::default() },
                _ => parse(format, payload)?,
            };
            let request = check::complete(request, client, WayIn::Mqtt, rules.bounds)?;
            job(request, format, rules.node)
        }
        Op::Embed => {
            let request = match format {
                Format::Text => v1::EmbedRequest { input: vec![text(payload)?], ..v1::EmbedRequest::default() },
                _ => parse(format, payload)?,
            };
            let request = check::embed(request, client, WayIn::Mqtt, rules.bounds)?;
            Ok(Asked::Job(Box::new(request)))
        }
        Op::Cancel => cancel(format, payload),
        Op::Status => match format {
            Format::Text => Ok(Asked::Status),
            _ if payload.trim_ascii().is_empty() => Ok(Asked::Status),
            _ => parse::<v1::StatusRequest>(format, payload).map(|_| Asked::Status),
        },
    }
}

fn cancel(format: Format, payload: &[u8]) -> Result<Asked, RequestError> {
    let id = match format {
        Format::Text => text(payload)?.trim().to_owned(),
        _ => parse::<v1::CancelRequest>(format, payload)?.id,
    };
    if id.is_empty() {
        return Err(RequestError::invalid("id", "must name the request to cancel"));
    }
    Ok(Asked::Cancel(id))
}

/// The last check, which needs the encoding: an answer must fit at least without its text.
fn job(request: Request, format: Format, node: &str) -> Result<Asked, RequestError> {
    if let Some(limit) = request.max_reply_bytes {
        let least = super::reply::least_bytes(format, &request.id, node);
        let limit = limit as usize;
        if limit < least {
            let text = format_args!("is {limit}, an answer with this id needs {least} without its text");
            return Err(RequestError::invalid("max_reply_bytes", text).with_numbers(least, limit));
        }
    }
    Ok(Asked::Job(Box::new(request)))
}

fn question(content: String) -> v1::ChatRequest {
    let message = v1::Message { role: "user".into(), content, ..v1::Message::default() };
    v1::ChatRequest { messages: vec![message], ..v1::ChatRequest::default() }
}

fn text(payload: &[u8]) -> Result<String, RequestError> {
    if payload.is_empty() {
        return Err(RequestError::new(ErrorCode::InvalidRequest, "the payload is empty"));
    }
    String::from_utf8(payload.to_vec()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let mut error = RequestError::new(
            ErrorCode::InvalidRequest,
            format!("the payload is not valid UTF-8 from byte {at}; protobuf needs its content type"),
        );
        error.actual = u32::try_from(at).ok();
        error
    })
}

fn parse<M>(format: Format, payload: &[u8]) -> Result<M, RequestError>
where
    M: prost::Message + prost::Name + Default + serde::de::DeserializeOwned,
{
    let invalid = |text: String| RequestError::new(ErrorCode::InvalidRequest, text);
    match format {
        Format::Protobuf => match wire::strict::unknown_field::<M>(payload) {
            Some(unknown) => Err(invalid(unknown)),
            None => M::decode(payload).map_err(|error| invalid(format!("malformed protobuf: {error}"))),
        },
        Format::Json | Format::Text => wire::from_json(payload).map_err(invalid),
    }
}

/// The id alone, of a request that may be wrong in everything else; empty where it cannot be read.
#[must_use]
pub fn id_of(format: Format, payload: &[u8]) -> String {
    /// Field 1 of every request.
    #[derive(Clone, PartialEq, prost::Message, serde::Deserialize)]
    struct OnlyId {
        #[prost(string, tag = "1")]
        #[serde(default)]
        id: String,
    }
    let read = match format {
        Format::Json => serde_json::from_slice::<OnlyId>(payload).ok(),
        Format::Protobuf => OnlyId::decode(payload).ok(),
        Format::Text => None,
    };
    read.map(|read| read.id).filter(|id| id.len() <= ID_BYTES && !id.chars().any(char::is_control)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::{Client, Input};

    const BOUNDS: Bounds = Bounds { context: 2048, payload_bytes: 1000 };
    const RULES: Rules<'_> = Rules { bounds: &BOUNDS, raw_prompt: false, node: "edge" };

    fn ask(op: Op, content_type: Option<&str>, payload: &[u8]) -> Result<Asked, Rejected> {
        let format = Format::of(content_type, payload).expect("a known type");
        decode(&Target { op, segment: Some("pump".into()) }, format, payload, RULES)
    }

    fn rejected(op: Op, content_type: Option<&str>, payload: &[u8]) -> (ErrorCode, String) {
        let Rejected { id, error } = ask(op, content_type, payload).expect_err("it is wrong");
        (error.code, id)
    }

    #[test]
    fn the_content_type_or_the_first_byte_decides() {
        assert_eq!(Format::of(Some("Application/JSON; charset=utf-8"), b""), Ok(Format::Json));
        assert_eq!(Format::of(Some("text/plain"), b"{}"), Ok(Format::Text));
        assert_eq!(Format::of(Some("application/x-protobuf"), b""), Ok(Format::Protobuf));
        assert_eq!(Format::of(None, b" \n{\"id\":\"1\"}"), Ok(Format::Json));
        assert_eq!(Format::of(Some(""), b"Is the pump ok?"), Ok(Format::Text));
        assert_eq!(Format::of(Some("image/png"), b"{}"), Err(Format::Json));
        assert_eq!(Format::of(Some("image/png"), b"x"), Err(Format::Text));
    }

    #[test]
    fn one_question_in_three_forms() {
        let message = v1::Message { role: "user".into(), content: "Is it ok?".into(), ..v1::Message::default() };
        let request = v1::ChatRequest { id: "7".into(), messages: vec![message], ..v1::ChatRequest::default() };
        for (content_type, payload) in [
            (None, b"Is it ok?".to_vec()),
            (None, br#"{"id":"7","messages":[{"role":"user","content":"Is it ok?"}]}"#.to_vec()),
            (Some("application/x-protobuf"), request.encode_to_vec()),
        ] {
            let Ok(Asked::Job(job)) = ask(Op::Chat, content_type, &payload) else { panic!("{content_type:?}") };
            assert_eq!(job.client, Client::mqtt(Some("pump")));
            let Input::Chat(turns) = &job.input else { panic!("a conversation") };
            assert_eq!((turns.len(), turns[0].content.as_str()), (1, "Is it ok?"));
        }
    }

    #[test]
    fn texts_for_embeddings_in_three_forms() {
        let request = v1::EmbedRequest { input: vec!["Is it ok?".into()], ..v1::EmbedRequest::default() };
        for (content_type, payload) in [
            (None, b"Is it ok?".to_vec()),
            (None, br#"{"input":["Is it ok?"]}"#.to_vec()),
            (Some("application/x-protobuf"), request.encode_to_vec()),
        ] {
            let Ok(Asked::Job(job)) = ask(Op::Embed, content_type, &payload) else { panic!("{content_type:?}") };
            assert_eq!(job.input, Input::Texts(vec!["Is it ok?".into()]));
        }
    }

    #[test]
    fn bad_input_names_its_error_and_keeps_its_id() {
        use ErrorCode::{Forbidden, InvalidRequest, PayloadTooLarge};
        assert_eq!(rejected(Op::Chat, None, b"{\"id\":"), (InvalidRequest, String::new()));
        assert_eq!(rejected(Op::Chat, None, br#"{"id":"4","mood":1}"#), (InvalidRequest, "4".into()));
        assert_eq!(rejected(Op::Chat, None, br#"{"id":"4","messages":7}"#), (InvalidRequest, "4".into()));
        assert_eq!(rejected(Op::Chat, None, br#"{"id":"4"}"#), (InvalidRequest, "4".into()));
        assert_eq!(rejected(Op::Chat, None, b"caf\xe9"), (InvalidRequest, String::new()));
        assert_eq!(rejected(Op::Chat, None, b""), (InvalidRequest, String::new()));
        assert_eq!(rejected(Op::Chat, Some("application/x-protobuf"), b"\xff\xff"), (InvalidRequest, String::new()));
        // Its id, and field 999 as a varint.
        let unknown = b"\x0a\x014\xb8\x3e\x01";
        assert_eq!(rejected(Op::Chat, Some("application/x-protobuf"), unknown), (InvalidRequest, "4".into()));
        assert_eq!(rejected(Op::Status, Some("application/x-protobuf"), unknown).0, InvalidRequest);
        assert_eq!(rejected(Op::Chat, None, &[b'x'; 1001]).0, PayloadTooLarge);
        assert_eq!(rejected(Op::Complete, None, br#"{"id":"4","prompt":"x"}"#), (Forbidden, "4".into()));
        assert_eq!(rejected(Op::Embed, None, br#"{"id":"4","input":[]}"#), (InvalidRequest, "4".into()));
        assert_eq!(rejected(Op::Cancel, None, b"{}"), (InvalidRequest, String::new()));
    }

    #[test]
    fn a_reply_limit_below_the_bare_answer_is_refused_with_both_numbers() {
        let payload = format!(
            r#"{{"id":"{}","messages":[{{"role":"user","content":"x"}}],"max_reply_bytes":256}}"#,
            "\\\"".repeat(128)
        );
        let Rejected { error, .. } = ask(Op::Chat, None, payload.as_bytes()).expect_err("too small");
        assert_eq!(error.param.as_deref(), Some("max_reply_bytes"));
        assert!(error.limit > error.actual);
    }

    #[test]
    fn cancel_and_status_in_every_form() {
        for (content_type, payload) in
            [(None, &b"7\n"[..]), (None, br#"{"id":"7"}"#), (Some("application/x-protobuf"), b"\x0a\x017")]
        {
            assert!(matches!(ask(Op::Cancel, content_type, payload), Ok(Asked::Cancel(id)) if id == "7"));
        }
        for (content_type, payload) in
            [(None, &b""[..]), (None, b"{}"), (Some("application/json"), b""), (None, b"how are you")]
        {
            assert!(matches!(ask(Op::Status, content_type, payload), Ok(Asked::Status)));
        }
        assert_eq!(rejected(Op::Status, None, b"{\"x\":1}").0, ErrorCode::InvalidRequest);
    }

    proptest! {
        #[test]
        fn no_payload_panics_and_no_error_repeats_it(
            payload in prop::collection::vec(any::<u8>(), 0..200), secret in "[a-z]{12}", which in 0usize..3,
        ) {
            let content_type = Format::CONTENT_TYPES[which];
            for op in Op::ALL {
                let _ = ask(op, Some(content_type), &payload);
            }
            let text = format!(r#"{{"messages":[{{"role":"{secret}","content":{{"{secret}":"{secret}"}}}}],"seed":"{secret}"}}"#);
            let Rejected { error, .. } = ask(Op::Chat, Some("application/json"), text.as_bytes()).expect_err("it is wrong");
            prop_assert!(!error.to_string().contains(&secret));
        }
    }
}
