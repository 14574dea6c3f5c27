//! Requests in JSON, through the functions that the socket and MQTT call: the first byte chooses which, a digit in seeds.

use temperd::{
    request::{Client, Request, RequestError, WayIn, check},
    serve::{
        mqtt::{
            codec::{self, Asked, Format, Rejected, Rules},
            topics::{Op, Target},
        },
        openai::{embeddings, request as openai},
    },
    wire::{self, v1},
};

use super::request::{self, BOUNDS};

/// Reads a body and checks what it says.
pub fn holds(data: &[u8]) {
    let Some((way, body)) = data.split_first() else { return };
    match way % 8 {
        0 => socket(body, |body| {
            let asked = openai::chat(body, BOUNDS.context)?;
            mapped(&asked.request);
            check::chat(asked.request, Client::uid(1), WayIn::Http, &BOUNDS)
        }),
        1 => socket(body, |body| {
            let asked = openai::completion(body, BOUNDS.context)?;
            mapped(&asked.request);
            check::complete(asked.request, Client::uid(1), WayIn::Http, &BOUNDS)
        }),
        2 => socket(body, |body| {
            let (asked, _form) = embeddings::read(body)?;
            mapped(&asked.request);
            check::embed(asked.request, Client::uid(1), WayIn::Http, &BOUNDS)
        }),
        way => mqtt(Op::ALL[usize::from(way) - 3], Format::Json, body),
    }
}

fn socket(body: &[u8], read: impl FnOnce(&[u8]) -> Result<Request, RequestError>) {
    match read(body) {
        Ok(taken) => request::taken(&taken),
        Err(error) => request::refused(&error, body),
    }
}

/// A message is the same after a way through JSON and through protobuf.
pub fn mapped<M>(message: &M)
where
    M: prost::Message + prost::Name + Default + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    // A number that is none equals nothing.
    #[allow(clippy::eq_op, reason = "not where it holds a NaN")]
    if message != message {
        return;
    }
    let json = wire::to_json(message);
    let read = wire::from_json::<M>(&json);
    assert!(read.as_ref() == Ok(message), "JSON does not hold all of it: {:?}", read.err());
    let bytes = message.encode_to_vec();
    assert!(M::decode(bytes.as_slice()).as_ref() == Ok(message), "protobuf does not hold all of it");
    assert_eq!(wire::strict::unknown_field::<M>(&bytes), None, "what we write is known");
}

/// A payload that a device published.
pub fn mqtt(op: Op, format: Format, payload: &[u8]) {
    let rules = Rules { bounds: &BOUNDS, raw_prompt: true, node: "edge" };
    let target = Target { op, segment: Some("pump".into()) };
    match codec::decode(&target, format, payload, rules) {
        Ok(Asked::Job(job)) => {
            assert!(op.is_job(), "{op:?} is no job");
            request::taken(&job);
            let room = codec::id_of(format, payload);
            assert!(room.is_empty() || room == job.id, "an id is read in one way only");
        }
        Ok(Asked::Cancel(id)) => assert!(op == Op::Cancel && !id.is_empty(), "{op:?}"),
        Ok(Asked::Status) => assert_eq!(op, Op::Status),
        Err(Rejected { id, error }) => {
            assert!(id.len() <= 128 && !id.chars().any(char::is_control), "a bad id is not repeated");
            request::refused(&error, payload);
        }
    }
    if let (Op::Chat, Format::Json) = (op, format)
        && let Ok(message) = wire::from_json::<v1::ChatRequest>(payload)
    {
        mapped(&message);
    }
}
