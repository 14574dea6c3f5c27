//! MQTT topic filters, as section 4.7 of the MQTT 5 specification defines them. Pure.

/// Whether a filter covers a topic. Filters that begin with a wildcard do not cover topics that begin with `$`; `a/#`
/// covers `a` itself.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut filter = filter.split('/');
    let mut topic = topic.split('/');
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_specification() {
        for (filter, topic, covered) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "sport", true),
            ("#", "$SYS/broker", false),
            ("+/broker", "$SYS/broker", false),
            ("$SYS/#", "$SYS/broker", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), covered, "{filter} on {topic}");
        }
    }

    proptest! {
        #[test]
        fn a_topic_covers_itself_and_widening_keeps_it(levels in prop::collection::vec("[a-z]{0,3}", 1..6), at in 0usize..6) {
            let topic = levels.join("/");
            prop_assert!(matches(&topic, &topic));
            let mut wide = levels.clone();
            if let Some(level) = wide.get_mut(at) {
                *level = "+".into();
            }
            prop_assert!(matches(&wide.join("/"), &topic));
            wide.truncate(at.min(levels.len()));
            wide.push("#".into());
            prop_assert!(matches(&wide.join("/"), &topic));
        }
    }
}
