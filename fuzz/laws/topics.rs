//! Topics and filters: lines of a request's topic, its response topic, and the filters that answers may go to.

use temperd::serve::mqtt::{
    filter,
    topics::{self, TOPIC_BYTES, Target, Topics},
};

/// Takes topics apart, and looks where answers may go.
pub fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let (Some(request), Some(response)) = (lines.next(), lines.next()) else { return };
    let allowed: Vec<String> = lines.map(str::to_owned).collect();
    let node = Topics::new("edge-7", Some("plant"));
    let target = node.parse(request);
    if node.parse_pool(request).is_some() {
        assert!(target.is_none(), "it is the pool's or the node's");
        let filters = node.pool_filters();
        let mut filters = filters.iter().filter_map(|one| one.strip_prefix("$share/plant/"));
        assert!(filters.any(|one| filter::matches(one, request)), "what is subscribed to covers it");
    }
    if let Some(target) = &target {
        let tail = target.segment.as_ref().map(|segment| format!("/{segment}")).unwrap_or_default();
        let whole = format!("temperd/v1/edge-7/request/{}{tail}", target.op.as_str());
        assert_eq!(whole, request, "a topic is taken apart without a loss");
        let filters = node.request_filters(target.op);
        assert!(filters.iter().any(|one| filter::matches(one, request)), "what is subscribed to covers it");
        if target.client().is_ok() {
            let own = node.response(target);
            let allowed = ["temperd/v1/edge-7/response/#".to_owned()];
            assert!(topics::check_response(&own, target, &allowed).is_ok(), "its own place: {own}");
        }
    }
    for target in [target, Some(Target { op: topics::Op::Chat, segment: None })].into_iter().flatten() {
        match topics::check_response(response, &target, &allowed) {
            Ok(()) => may_be_answered_to(response, &target, &allowed),
            Err(error) => assert!(
                response.len() < 24 || !error.message.contains(response),
                "the topic is repeated: {}",
                error.message
            ),
        }
    }
    for one in &allowed {
        assert_eq!(filter::matches(one, response), covers(one, response), "{one:?} on {response:?}");
    }
}

fn may_be_answered_to(topic: &str, target: &Target, allowed: &[String]) {
    assert!((1..=TOPIC_BYTES).contains(&topic.len()) && topics::is_clean(topic), "{topic:?}");
    assert!(!topic.contains(['+', '#']) && !topic.starts_with('$'), "{topic:?}");
    assert!(allowed.iter().any(|one| covers(one, topic)), "{topic:?} of {allowed:?}");
    let levels: Vec<&str> = topic.split('/').collect();
    if let ["temperd", "v1", inside @ ..] = levels.as_slice() {
        let owner = match inside {
            ["clients", owner, ..] => Some(*owner),
            [_, "response", rest @ ..] => rest.get(1).copied(),
            _ => panic!("{topic:?} lies in a tree of our own"),
        };
        let other = owner.zip(target.segment.as_deref()).is_some_and(|(owner, segment)| owner != segment);
        assert!(!other, "{topic:?} is another's");
    }
}

/// Section 4.7 of the MQTT 5 specification once more, level by level from the end of what is fixed.
fn covers(filter: &str, topic: &str) -> bool {
    fn levels(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#", ..], _) | ([], []) => true,
            ([one, filter @ ..], [level, topic @ ..]) => (*one == "+" || one == level) && levels(filter, topic),
            _ => false,
        }
    }
    let own = topic.starts_with('$') && filter.starts_with(['+', '#']);
    !own && levels(&filter.split('/').collect::<Vec<_>>(), &topic.split('/').collect::<Vec<_>>())
}
