use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::request::ErrorCode;

fn answer(text: &str) -> v1::Final {
    v1::Final {
        id: "7".into(),
        node: "edge".into(),
        outcome: "completed".into(),
        finish_reason: Some("stop".into()),
        message: Some(v1::Message { role: "assistant".into(), content: text.into(), ..v1::Message::default() }),
        usage: Some(v1::Usage { prompt_tokens: 10, completion_tokens: 100, cached_tokens: 0 }),
        timings: Some(v1::Timings { queued_ms: 1, ttft_ms: Some(20), total_ms: 1000 }),
        ..v1::Final::default()
    }
}

fn reply_to(format: Format, max_bytes: Option<u32>) -> ReplyTo {
    ReplyTo {
        topic: "t".into(),
        format,
        correlation: Some(Bytes::from_static(b"\x00mark")),
        expires: None,
        max_bytes,
        embeds: false,
    }
}

fn property<'a>(message: &'a super::Message, name: &str) -> Option<&'a str> {
    message.user.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

#[test]
fn the_answer_comes_in_the_form_of_the_question() {
    let now = Instant::now();
    let json = reply_to(Format::Json, None).last(answer("Yes."), now);
    let read: v1::Final = wire::from_json(&json.payload).unwrap();
    assert_eq!(read, answer("Yes."));
    assert_eq!((json.content_type, json.utf8), ("application/json", true));
    assert_eq!(json.correlation.as_deref(), Some(&b"\x00mark"[..]));
    assert_eq!((property(&json, "outcome"), property(&json, "id")), (Some("completed"), Some("7")));

    let protobuf = reply_to(Format::Protobuf, None).last(answer("Yes."), now);
    assert_eq!(v1::Final::decode(protobuf.payload).unwrap(), answer("Yes."));
    assert!(!protobuf.utf8);

    let text = reply_to(Format::Text, None).last(answer("Yes."), now);
    assert_eq!(text.payload, "Yes.");
}

#[test]
fn errors_are_text_for_devices_that_speak_text() {
    let error = RequestError::new(ErrorCode::QueueFull, "the queue is full").retry_after(500);
    let message = reply_to(Format::Text, None).refused("7", "edge", &error, Instant::now());
    assert_eq!(message.payload, "error: queue_full: the queue is full");
    assert_eq!((property(&message, "outcome"), property(&message, "code")), (Some("refused"), Some("queue_full")));
}

#[test]
fn chunks_are_numbered_and_expendable() {
    let chunk = v1::Chunk { id: "7".into(), seq: 3, delta: "Ye".into(), ..v1::Chunk::default() };
    let message = reply_to(Format::Json, None).chunk(chunk, Instant::now());
    assert_eq!((message.qos, property(&message, "seq")), (Qos::AtMostOnce, Some("3")));
}

#[test]
fn an_id_that_a_broker_would_choke_on_is_in_the_payload_only() {
    let mut last = answer("Yes.");
    last.id = "a\u{FFFF}".into();
    let message = reply_to(Format::Json, None).last(last, Instant::now());
    assert_eq!(property(&message, "id"), None);
    assert_eq!(wire::from_json::<v1::Final>(&message.payload).unwrap().id, "a\u{FFFF}");
}

#[test]
fn an_answer_outlives_its_request_for_a_moment() {
    let now = Instant::now();
    let reply = ReplyTo { expires: Some(now), ..reply_to(Format::Json, None) };
    assert_eq!(reply.last(answer("x"), now).seconds_left(now), Some(10));
    let reply = ReplyTo { expires: Some(now + Duration::from_millis(60_200)), ..reply };
    assert_eq!(reply.last(answer("x"), now).seconds_left(now), Some(61));
}

#[test]
fn texts_are_cut_after_a_sentence_else_a_word_else_a_character() {
    let text = "The pump runs. It is warm, though: 3.5 degrees over";
    assert_eq!(&text[..cut(text, 30)], "The pump runs.");
    assert_eq!(&text[..cut(text, 39)], "The pump runs.");
    let text = "no sentence ends in here at all";
    assert_eq!(&text[..cut(text, 14)], "no sentence");
    assert_eq!(&text[..cut(text, 11)], "no sentence");
    assert_eq!(cut("onelongword", 5), 5);
    assert_eq!(&"泵正常。温度高"[..cut("泵正常。温度高", 15)], "泵正常。");
    assert_eq!(cut("whole.", 6), 6);
}

#[test]
fn a_cut_answer_says_so() {
    let text = "The pump is in order. ".repeat(40);
    let message = reply_to(Format::Json, Some(400)).last(answer(&text), Instant::now());
    let read: v1::Final = wire::from_json(&message.payload).unwrap();
    assert!(message.payload.len() <= 400);
    assert_eq!(read.finish_reason.as_deref(), Some("reply_bytes"));
    assert!(read.message.unwrap().content.ends_with("order."));
    assert!(read.usage.is_some());
    assert_eq!(property(&message, "finish_reason"), Some("reply_bytes"));
}

#[test]
fn log_probabilities_go_before_any_text() {
    let mut last = answer("Yes.");
    last.logprobs = vec![v1::TokenLogprob { token: "Yes".into(), ..v1::TokenLogprob::default() }; 50];
    let message = reply_to(Format::Json, Some(500)).last(last, Instant::now());
    let read: v1::Final = wire::from_json(&message.payload).unwrap();
    assert_eq!(read.message.unwrap().content, "Yes.");
    assert_eq!(read.finish_reason.as_deref(), Some("reply_bytes"));
}

proptest! {
    /// Quotes, control characters and long UTF-8 characters grow by different amounts in each form.
    #[test]
    fn no_reply_is_longer_than_its_device_can_take(
        text in "([a-z]{1,8}[ .!\"\\\\\n\t\u{1}ä汉🙂]{0,3}){0,120}", max in 256u32..1200, which in 0usize..3, failed: bool, id in "[\"a-z]{0,20}",
    ) {
        let format = [Format::Json, Format::Protobuf, Format::Text][which];
        let mut last = answer(&text);
        last.id = id;
        if failed {
            last.message = None;
            last.error = Some(v1::Error { code: "internal".into(), message: text.clone(), ..v1::Error::default() });
        }
        let whole = encode_final(format, &mut last.clone(), None);
        let message = reply_to(format, Some(max)).last(last.clone(), Instant::now());
        prop_assert!(message.payload.len() <= max as usize);
        prop_assert!(whole.len() > max as usize || message.payload == whole, "cut without need");
        if format == Format::Json && !failed {
            let read: v1::Final = wire::from_json(&message.payload).unwrap();
            let kept = read.message.unwrap().content;
            prop_assert!(text.starts_with(&kept));
            prop_assert_eq!(read.finish_reason.as_deref() == Some("reply_bytes"), whole.len() > max as usize);
        }
    }

    #[test]
    fn the_longest_prefix_is_found(text in "[aä汉🙂]{0,60}", limit in 0usize..200) {
        let found = longest(&text, |length| length <= limit).unwrap();
        let expected = (0..=text.len().min(limit)).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn whatever_becomes_of_embeddings_is_told_in_their_own_form() {
    for format in [Format::Json, Format::Protobuf, Format::Text] {
        let reply = ReplyTo { embeds: true, ..reply_to(format, None) };
        let read = |message: &Message| match format {
            Format::Protobuf => v1::EmbedReply::decode(&message.payload[..]).expect("protobuf"),
            _ => wire::from_json(&message.payload).expect("JSON"),
        };
        let embeddings = vec![v1::Embedding { values: vec![0.6, -0.8] }];
        let whole = v1::EmbedReply { id: "7".into(), outcome: "completed".into(), embeddings, ..Default::default() };
        assert_eq!(read(&reply.embedded(whole.clone(), Instant::now())), whole);
        let error = RequestError::invalid("input", "must hold at least one text");
        let refused = read(&reply.refused("7", "edge", &error, Instant::now()));
        assert_eq!((refused.id.as_str(), refused.outcome.as_str()), ("7", "refused"));
        assert_eq!(refused.error.expect("an error").code, "invalid_request");
    }
}
