//! Protobuf requests without fields that we do not know. Decoders skip unknown fields, so that a client that sets a
//! field of a later schema would get an answer to something else than it asked; JSON refuses them as well.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _, Value};

use super::v1::FILE_DESCRIPTOR_SET;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the descriptors that build.rs compiled"));

/// The first unknown field of a message of type `M`, as a sentence; none where there is none. Of bytes that are no such
/// message at all it may say either: their decoder refuses them.
#[must_use]
pub fn unknown_field<M: prost::Name>(bytes: &[u8]) -> Option<String> {
    in_message(POOL.get_message_by_name(&M::full_name())?, bytes)
}

/// The same for the request of a gRPC method, by the path of its URL: `/package.Service/Method`.
#[must_use]
pub fn unknown_field_of_call(path: &str, message: &[u8]) -> Option<String> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let method = POOL.get_service_by_name(service)?.methods().find(|known| known.name() == method)?;
    in_message(method.input(), message)
}

fn in_message(descriptor: MessageDescriptor, bytes: &[u8]) -> Option<String> {
    let message = DynamicMessage::decode(descriptor, bytes).ok()?;
    let (number, inside) = find(&message)?;
    Some(format!("unknown field with number {number} in a {inside}; proto/temperd/v1 lists those of this version"))
}

/// Number of the field, and name of the message that it stands in.
fn find(message: &DynamicMessage) -> Option<(u32, String)> {
    if let Some(unknown) = message.unknown_fields().next() {
        return Some((unknown.number(), message.descriptor().name().to_owned()));
    }
    message.fields().find_map(|(_, value)| find_in(value))
}

fn find_in(value: &Value) -> Option<(u32, String)> {
    match value {
        Value::Message(message) => find(message),
        Value::List(values) => values.iter().find_map(find_in),
        Value::Map(values) => values.values().find_map(find_in),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::wire::v1::{ChatRequest, Message};

    /// Field 999 as a varint, which no message has.
    const STRANGE: [u8; 3] = [0xb8, 0x3e, 0x01];

    fn question() -> ChatRequest {
        let message = Message { role: "user".into(), content: "Why?".into(), ..Message::default() };
        let logit_bias = [(1_u32, 2.0_f32)].into_iter().collect();
        ChatRequest { messages: vec![message], logit_bias, ..ChatRequest::default() }
    }

    #[test]
    fn known_fields_pass() {
        let bytes = question().encode_to_vec();
        assert_eq!(unknown_field::<ChatRequest>(&bytes), None);
        assert_eq!(unknown_field_of_call("/temperd.v1.Inference/Chat", &bytes), None);
    }

    #[test]
    fn an_unknown_field_is_found_wherever_it_stands() {
        let outer = [question().encode_to_vec(), STRANGE.to_vec()].concat();
        let said = unknown_field::<ChatRequest>(&outer).expect("it is found");
        assert!(said.starts_with("unknown field with number 999 in a ChatRequest"), "{said}");
        assert_eq!(unknown_field_of_call("/temperd.v1.Inference/Chat", &outer).as_ref(), Some(&said));

        let message = [question().messages[0].encode_to_vec(), STRANGE.to_vec()].concat();
        // Field 2 is `messages`.
        let inner = [vec![0x12, u8::try_from(message.len()).unwrap()], message].concat();
        let said = unknown_field::<ChatRequest>(&inner).expect("it is found");
        assert!(said.starts_with("unknown field with number 999 in a Message"), "{said}");
    }

    #[test]
    fn what_is_no_message_is_left_to_its_decoder() {
        assert_eq!(unknown_field::<ChatRequest>(&[0xff, 0xff]), None);
        assert_eq!(unknown_field_of_call("/temperd.v1.Inference/Dance", &STRANGE), None);
        assert_eq!(unknown_field_of_call("nonsense", &STRANGE), None);
    }
}
