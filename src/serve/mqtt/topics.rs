//! The topics of a node: their names, what an incoming one asks for, and where an answer may go. Pure.
//!
//! Over MQTT a subscriber never learns who published. Identity is therefore a topic segment that the broker's ACL
//! binds to the login, and every rule about clients is a rule about topics.

use std::fmt;

use super::filter;
use crate::request::{Client, ErrorCode, RequestError};

const ROOT: &str = "temperd/v1";
/// Bytes of a response topic: long enough for any scheme, short enough to be kept by the thousand.
pub const TOPIC_BYTES: usize = 512;
/// Bytes of a client segment.
const SEGMENT_BYTES: usize = 64;
/// What [`Client::mqtt`] calls a device without a segment; nobody may take it as a name.
const ANONYMOUS: &str = "anonymous";

/// What a request topic asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Answer a conversation.
    Chat,
    /// Continue a raw prompt.
    Complete,
    /// Vectors of texts.
    Embed,
    /// End a request of the same client.
    Cancel,
    /// The status in force.
    Status,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Complete, Self::Embed, Self::Cancel, Self::Status];

    /// As topics write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Complete => "complete",
            Self::Embed => "embed",
            Self::Cancel => "cancel",
            Self::Status => "status",
        }
    }

    /// Whether it may take long and must not be lost: subscribed at QoS 1. The others are subscribed at QoS 0, which
    /// Receive Maximum does not hold back, so that a cancel gets past the jobs that it is to end.
    #[must_use]
    pub fn is_job(self) -> bool {
        matches!(self, Self::Chat | Self::Complete | Self::Embed)
    }
}

/// A request topic, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What is asked for.
    pub op: Op,
    /// The client segment as it stands in the topic; not checked yet.
    pub segment: Option<String>,
}

impl Target {
    /// Who asks.
    ///
    /// # Errors
    /// `invalid_request` for a segment that cannot be a client's name.
    pub fn client(&self) -> Result<Client, RequestError> {
        match self.segment.as_deref() {
            None => Ok(Client::mqtt(None)),
            Some(segment) if is_segment(segment) => Ok(Client::mqtt(Some(segment))),
            Some(_) => Err(RequestError::new(
                ErrorCode::InvalidRequest,
                format!(
                    "the client segment of the topic must have 1 to {SEGMENT_BYTES} of the characters A-Z a-z 0-9 _ . - : @ \
                     and not be `{ANONYMOUS}`"
                ),
            )),
        }
    }
}

fn is_segment(segment: &str) -> bool {
    (1..=SEGMENT_BYTES).contains(&segment.len())
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-:@".contains(&byte))
        && segment != ANONYMOUS
}

/// The topics of one node, and those of its pool, where it is in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
    pool: Option<Pool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pool {
    name: String,
    base: String,
}

impl Topics {
    /// `node` is a checked node name: `[a-z0-9-]`, and neither `clients` nor `pool`; so is `pool`, where each is fine.
    #[must_use]
    pub fn new(node: &str, pool: Option<&str>) -> Self {
        let pool = pool.map(|name| Pool { name: name.into(), base: format!("{ROOT}/pool/{name}") });
        Self { base: format!("{ROOT}/{node}"), pool }
    }

    /// Retained: `online`, `draining`, `stopped`, or `offline` by last will.
    #[must_use]
    pub fn availability(&self) -> String {
        format!("{}/availability", self.base)
    }

    /// Retained: what this node is and what it takes.
    #[must_use]
    pub fn info(&self) -> String {
        format!("{}/info", self.base)
    }

    /// Retained: the status without what changes with every request.
    #[must_use]
    pub fn state(&self) -> String {
        format!("{}/state", self.base)
    }

    /// By interval.
    #[must_use]
    pub fn telemetry(&self) -> String {
        format!("{}/telemetry", self.base)
    }

    /// What has happened, as it happens.
    #[must_use]
    pub fn event(&self) -> String {
        format!("{}/event", self.base)
    }

    /// The two filters of an operation: without and with a client segment.
    #[must_use]
    pub fn request_filters(&self, op: Op) -> [String; 2] {
        filters(&self.base, op)
    }

    /// The filters of the pool, without and with a client segment, as shared subscriptions: the broker gives each
    /// request to one of the boxes. Empty without a pool.
    #[must_use]
    pub fn pool_filters(&self) -> Vec<String> {
        let shared = |pool: &Pool| filters(&pool.base, Op::Chat).map(|filter| format!("$share/{}/{filter}", pool.name));
        self.pool.as_ref().map(shared).into_iter().flatten().collect()
    }

    /// Where an answer goes that names no response topic of its own.
    #[must_use]
    pub fn response(&self, target: &Target) -> String {
        let op = target.op.as_str();
        match &target.segment {
            Some(segment) => format!("{}/response/{op}/{segment}", self.base),
            None => format!("{}/response/{op}", self.base),
        }
    }

    /// Takes an incoming topic apart; `None` for one that is not a request to this node.
    #[must_use]
    pub fn parse(&self, topic: &str) -> Option<Target> {
        parse(&self.base, topic)
    }

    /// Takes an incoming topic apart; `None` for one that is not a request to the pool.
    #[must_use]
    pub fn parse_pool(&self, topic: &str) -> Option<Target> {
        parse(&self.pool.as_ref()?.base, topic).filter(|target| target.op == Op::Chat)
    }
}

fn filters(base: &str, op: Op) -> [String; 2] {
    let topic = format!("{base}/request/{}", op.as_str());
    let with_segment = format!("{topic}/+");
    [topic, with_segment]
}

fn parse(base: &str, topic: &str) -> Option<Target> {
    let rest = topic.strip_prefix(base)?.strip_prefix("/request/")?;
    let (op, segment) = match rest.split_once('/') {
        Some((op, segment)) if !segment.contains('/') => (op, Some(segment.to_owned())),
        Some(_) => return None,
        None => (rest, None),
    };
    let op = Op::ALL.into_iter().find(|known| known.as_str() == op)?;
    Some(Target { op, segment })
}

/// Whether an answer to `target` may be published to the response topic that its request names. Whoever may ask must
/// not thereby publish anywhere in our name: the topic has to match `allowed`; inside `temperd/v1` only the response
/// trees of nodes and the trees of clients are open at all; and a client with a name gets answers in its own place
/// only, never in another client's.
///
/// # Errors
/// `topic_not_allowed`; the message never repeats the topic.
pub fn check_response(topic: &str, target: &Target, allowed: &[String]) -> Result<(), RequestError> {
    let refuse = |why: &dyn fmt::Display| {
        Err(RequestError::new(ErrorCode::TopicNotAllowed, format!("the response topic {why}")))
    };
    if topic.is_empty() || topic.len() > TOPIC_BYTES {
        return refuse(&format_args!("must have 1 to {TOPIC_BYTES} bytes"))
            .map_err(|error| error.with_numbers(TOPIC_BYTES, topic.len()));
    }
    if topic.contains(['+', '#']) {
        return refuse(&"must not contain the wildcards + and #");
    }
    if topic.starts_with('$') {
        return refuse(&"must not begin with $");
    }
    if !is_clean(topic) {
        return refuse(&"must not contain control characters");
    }
    if let Some(inside) = topic.strip_prefix(ROOT).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
        let levels: Vec<&str> = inside.split('/').skip(1).collect();
        let owner = match levels.as_slice() {
            ["clients", owner, ..] => Some(*owner),
            ["clients"] | ["pool", ..] => return refuse(&"lies in a tree that belongs to temperd itself"),
            [_node, "response", _op, owner, ..] => Some(*owner),
            [_node, "response", ..] => None,
            _ => return refuse(&"lies in a tree that belongs to temperd itself"),
        };
        if let (Some(owner), Some(segment)) = (owner, target.segment.as_deref())
            && owner != segment
        {
            return refuse(&"belongs to another client");
        }
    }
    if !allowed.iter().any(|pattern| filter::matches(pattern, topic)) {
        return refuse(&"matches none of the filters in mqtt.response_topics");
    }
    Ok(())
}

/// Whether a broker takes the text in a packet. Brokers close the connection over control characters and Unicode
/// non-characters; a message that holds one would be resent, and close it, for ever.
#[must_use]
pub fn is_clean(text: &str) -> bool {
    !text.chars().any(|c| {
        let code = u32::from(c);
        c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(segment: Option<&str>) -> Target {
        Target { op: Op::Chat, segment: segment.map(Into::into) }
    }

    fn defaults() -> Vec<String> {
        vec!["temperd/v1/edge-7/response/#".into(), "temperd/v1/clients/+/#".into()]
    }

    #[test]
    fn request_topics_are_taken_apart() {
        let topics = Topics::new("edge-7", None);
        assert_eq!(topics.parse("temperd/v1/edge-7/request/chat"), Some(target(None)));
        assert_eq!(topics.parse("temperd/v1/edge-7/request/chat/pump"), Some(target(Some("pump"))));
        for foreign in [
            "temperd/v1/edge-7/request/chat/pump/x",
            "temperd/v1/edge-7/request/dance",
            "temperd/v1/edge-70/request/chat",
            "temperd/v1/edge-7/response/chat",
            "",
        ] {
            assert_eq!(topics.parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn requests_to_the_pool_are_its_own_and_only_chat() {
        let topics = Topics::new("edge-7", Some("plant"));
        assert_eq!(
            topics.pool_filters(),
            ["$share/plant/temperd/v1/pool/plant/request/chat", "$share/plant/temperd/v1/pool/plant/request/chat/+"]
        );
        assert_eq!(topics.parse_pool("temperd/v1/pool/plant/request/chat"), Some(target(None)));
        assert_eq!(topics.parse_pool("temperd/v1/pool/plant/request/chat/pump"), Some(target(Some("pump"))));
        for foreign in [
            "temperd/v1/pool/plant/request/embed",
            "temperd/v1/pool/plant/request/cancel/pump",
            "temperd/v1/pool/other/request/chat",
            "temperd/v1/edge-7/request/chat",
        ] {
            assert_eq!(topics.parse_pool(foreign), None, "{foreign}");
        }
        assert_eq!(topics.parse("temperd/v1/pool/plant/request/chat"), None);
        let alone = Topics::new("edge-7", None);
        assert!(alone.pool_filters().is_empty() && alone.parse_pool("temperd/v1/pool/plant/request/chat").is_none());
    }

    #[test]
    fn bad_segments_have_no_client_and_anonymous_cannot_be_taken() {
        for bad in ["", "anonymous", "a b", "ä", &"x".repeat(65)] {
            let error = target(Some(bad)).client().unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{bad}");
        }
        assert_eq!(target(Some("pump-1")).client().unwrap(), Client::mqtt(Some("pump-1")));
        assert_eq!(target(None).client().unwrap(), Client::mqtt(None));
    }

    #[test]
    fn answers_go_only_where_they_may() {
        let wide = vec!["#".to_owned()];
        for (topic, allowed) in [
            ("temperd/v1/clients/x/answers", &defaults()),
            ("temperd/v1/edge-7/response/chat/x", &defaults()),
            ("temperd/v1/edge-7/response", &defaults()),
            ("plant/answers", &wide),
            ("temperd/v2/edge-7/request/chat", &wide),
            ("temperd/v11", &wide),
        ] {
            assert_eq!(check_response(topic, &target(None), allowed), Ok(()), "{topic}");
        }
        for topic in [
            "",
            "plant/+/answers",
            "plant/#",
            "$SYS/broker",
            "a\0b",
            "a\u{FFFF}b",
            &"x".repeat(513),
            "temperd/v1/edge-7/request/chat",
            "temperd/v1/edge-7/request",
            "temperd/v1/other/request/chat/x",
            "temperd/v1/pool/p/request/chat",
            "temperd/v1/edge-7/availability",
            "temperd/v1/edge-7/state",
            "temperd/v1/other/telemetry",
            "temperd/v1/clients",
            "temperd/v1/",
            "temperd/v1",
        ] {
            let error = check_response(topic, &target(None), &wide).unwrap_err();
            assert_eq!(error.code, ErrorCode::TopicNotAllowed, "{topic}");
        }
        assert!(check_response("plant/answers", &target(None), &defaults()).is_err());
    }

    #[test]
    fn a_named_client_cannot_have_answers_sent_to_another() {
        let b = target(Some("b"));
        assert!(check_response("temperd/v1/clients/a/x", &b, &defaults()).is_err());
        assert!(check_response("temperd/v1/edge-7/response/chat/a", &b, &defaults()).is_err());
        assert!(check_response("temperd/v1/clients/b/x", &b, &defaults()).is_ok());
        assert!(check_response("temperd/v1/edge-7/response/chat/b", &b, &defaults()).is_ok());
    }

    proptest! {
        #[test]
        fn what_may_be_answered_to_is_never_a_request_or_a_wildcard(
            topic in "(temperd/v1/)?[a-z+#$]{0,9}(/(request|response|state|clients|pool|[a-z+#]{0,4})){0,4}",
        ) {
            if check_response(&topic, &target(None), &["#".to_owned()]).is_ok() {
                prop_assert!(!topic.contains(['+', '#']) && !topic.starts_with('$'));
                let levels: Vec<_> = topic.split('/').collect();
                let node_tree = matches!(levels.as_slice(), ["temperd", "v1", node, ..] if *node != "clients");
                prop_assert!(!node_tree || levels.get(3) == Some(&"response"));
            }
        }

        #[test]
        fn the_default_response_topic_is_its_own_client(segment in "[a-z0-9.-]{1,20}") {
            let topics = Topics::new("edge-7", None);
            let asked = target(Some(&segment));
            prop_assert_eq!(check_response(&topics.response(&asked), &asked, &defaults()), Ok(()));
            let [_, filter] = topics.request_filters(Op::Chat);
            let request = filter.replace('+', &segment);
            prop_assert_eq!(topics.parse(&request), Some(asked));
        }
    }
}
