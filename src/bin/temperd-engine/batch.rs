//! What goes into the next decode step. Pure, and apart from the loop, so that it can be refined by itself.

/// What a sequence has to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Prompt tokens not yet read, at least one.
    Prompt(usize),
    /// The token sampled last.
    Token,
}

/// A share of a step: `count` tokens of the sequence at `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Place in the list given to [`plan`].
    pub index: usize,
    /// Tokens, at least one.
    pub count: usize,
}

/// One token for every sequence that answers, then prompt tokens in order of arrival, up to `room` in all. So a prompt
/// delays others by one step at most, and the earliest prompt is the first to be answered. `due` is in order of
/// arrival; `parts` is reused by the caller and overwritten.
pub fn plan(due: &[Due], room: usize, parts: &mut Vec<Part>) {
    parts.clear();
    let mut left = room;
    for (index, due) in due.iter().enumerate() {
        if *due == Due::Token && left > 0 {
            parts.push(Part { index, count: 1 });
            left -= 1;
        }
    }
    for (index, due) in due.iter().enumerate() {
        if let Due::Prompt(rest) = *due {
            let count = rest.min(left);
            if count > 0 {
                parts.push(Part { index, count });
                left -= count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(due: &[Due], room: usize) -> Vec<(usize, usize)> {
        let mut parts = vec![Part { index: 9, count: 9 }];
        plan(due, room, &mut parts);
        parts.iter().map(|part| (part.index, part.count)).collect()
    }

    #[test]
    fn answers_go_before_prompts_and_prompts_by_arrival() {
        let due = [Due::Prompt(5), Due::Token, Due::Prompt(9), Due::Token];
        assert_eq!(planned(&due, 10), [(1, 1), (3, 1), (0, 5), (2, 3)]);
        assert_eq!(planned(&due, 7), [(1, 1), (3, 1), (0, 5)]);
        assert_eq!(planned(&due, 2), [(1, 1), (3, 1)]);
        assert_eq!(planned(&[], 8), []);
    }

    proptest! {
        #[test]
        fn a_step_is_full_or_holds_all_there_is(
            due in proptest::collection::vec(prop_oneof![Just(Due::Token), (1usize..50).prop_map(Due::Prompt)], 0..20),
            room in 1usize..100,
        ) {
            let parts = planned(&due, room);
            let all: usize = due.iter().map(|due| match due { Due::Token => 1, Due::Prompt(n) => *n }).sum();
            prop_assert_eq!(parts.iter().map(|part| part.1).sum::<usize>(), all.min(room));
            let mut seen: Vec<usize> = parts.iter().map(|part| part.0).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), parts.len());
        }
    }
}
