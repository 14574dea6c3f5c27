//! Requests in protobuf, over MQTT and gRPC: the first byte chooses which, a letter in seeds.

use prost::{Message, Name};
use serde::{Serialize, de::DeserializeOwned};
use temperd::{
    serve::mqtt::{codec::Format, topics::Op},
    wire::{strict, v1},
};

use super::json::{mapped, mqtt};

/// Field 999 as a varint, which no message has.
const STRANGE: [u8; 3] = [0xb8, 0x3e, 0x01];

/// Reads a message and takes it through all its forms.
pub fn holds(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 8 {
        0 => message::<v1::ChatRequest>(body, "/temperd.v1.Inference/Chat", Some(Op::Chat)),
        1 => message::<v1::CompleteRequest>(body, "/temperd.v1.Inference/Complete", Some(Op::Complete)),
        2 => message::<v1::EmbedRequest>(body, "/temperd.v1.Inference/Embed", Some(Op::Embed)),
        3 => message::<v1::CancelRequest>(body, "/temperd.v1.Control/Cancel", Some(Op::Cancel)),
        4 => message::<v1::StatusRequest>(body, "/temperd.v1.Control/Status", Some(Op::Status)),
        5 => message::<v1::SetOperatingPointRequest>(body, "/temperd.v1.Control/SetOperatingPoint", None),
        6 => message::<v1::DeleteSessionRequest>(body, "/temperd.v1.Control/DeleteSession", None),
        // A path that the client makes up.
        _ => {
            let path = String::from_utf8_lossy(body);
            let known = strict::unknown_field_of_call(&path, &STRANGE);
            assert!(known.is_none() || path.starts_with("/temperd.v1."), "{path}");
        }
    }
}

fn message<M>(body: &[u8], path: &str, op: Option<Op>)
where
    M: Message + Name + Default + PartialEq + Serialize + DeserializeOwned,
{
    let unknown = strict::unknown_field::<M>(body);
    assert_eq!(unknown, strict::unknown_field_of_call(path, body), "the same over gRPC");
    if let Ok(message) = M::decode(body) {
        mapped(&message);
        let strange = [body, &STRANGE].concat();
        assert!(
            M::decode(strange.as_slice()).is_err() || strict::unknown_field::<M>(&strange).is_some(),
            "it is overlooked"
        );
    }
    if let Some(op) = op {
        mqtt(op, Format::Protobuf, body);
    }
}
