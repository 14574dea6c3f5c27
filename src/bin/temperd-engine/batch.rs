//! What goes into the next decode step. Pure, and apart from the loop, so that it can be refined by itself.

/// What a sequence has to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Prompt tokens not yet read, at least one.
    Prompt(usize),
    /// The token sampled last, and drafted ones behind it.
    Token {
        /// How many were drafted.
        drafted: usize,
    },
    /// Nothing yet: another sequence is reading what both begin with.
    Nothing,
}

/// One sequence's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// What it has to decode.
    pub due: Due,
    /// Greater goes first.
    pub priority: i32,
}

/// A share of a step: `count` tokens of the sequence at `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Place in the list given to [`plan`].
    pub index: usize,
    /// Tokens, at least one.
    pub count: usize,
}

/// Share of the prompt rows that the prompt first in line has for itself, and share that the one that has waited
/// longest has whatever its priority. The rest goes to the shortest, which are answered soonest.
const FIRST: usize = 2;
const OLDEST: usize = 8;

/// Every sequence that answers has its rows; `room` bounds the prompt rows beside them. They go by priority: within
/// one, the earliest has at least half, so that short ones cannot starve it, and the rest goes to the shortest; an
/// eighth is the earliest of all's, so that neither can higher priorities. `wishes` is in order of arrival; `parts` is
/// reused by the caller and overwritten.
pub fn plan(wishes: &[Wish], room: usize, parts: &mut Vec<Part>) {
    parts.clear();
    for (index, wish) in wishes.iter().enumerate() {
        if let Due::Token { drafted } = wish.due {
            parts.push(Part { index, count: 1 + drafted });
        }
    }
    let mut prompts: Vec<Reading> = Vec::new();
    for (index, wish) in wishes.iter().enumerate() {
        if let Due::Prompt(rest) = wish.due {
            prompts.push(Reading { index, rest, priority: wish.priority, given: 0 });
        }
    }
    let mut left = room;
    if let Some(oldest) = prompts.first_mut() {
        oldest.give(room.div_ceil(OLDEST), &mut left);
    }
    // Stable sorts: equals stay in order of arrival.
    prompts.sort_by_key(|prompt| std::cmp::Reverse(prompt.priority));
    let mut from = 0;
    while let Some(priority) = prompts.get(from).map(|prompt| prompt.priority) {
        let to = from + prompts.iter().skip(from).take_while(|prompt| prompt.priority == priority).count();
        let class = prompts.get_mut(from..to).unwrap_or_default();
        if let Some(first) = class.iter_mut().min_by_key(|prompt| prompt.index) {
            first.give(left.div_ceil(FIRST), &mut left);
        }
        class.sort_by_key(|prompt| (prompt.rest, prompt.index));
        for prompt in class {
            prompt.give(usize::MAX, &mut left);
        }
        from = to;
    }
    prompts.sort_by_key(|prompt| prompt.index);
    parts.extend(prompts.iter().filter(|prompt| prompt.given > 0).map(|p| Part { index: p.index, count: p.given }));
}

struct Reading {
    index: usize,
    rest: usize,
    priority: i32,
    given: usize,
}

impl Reading {
    fn give(&mut self, most: usize, left: &mut usize) {
        let count = most.min(*left).min(self.rest);
        self.given += count;
        self.rest -= count;
        *left -= count;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: Due = Due::Token { drafted: 0 };

    fn planned(dues: &[(Due, i32)], room: usize) -> Vec<(usize, usize)> {
        let wishes: Vec<_> = dues.iter().map(|&(due, priority)| Wish { due, priority }).collect();
        let mut parts = vec![Part { index: 9, count: 9 }];
        plan(&wishes, room, &mut parts);
        parts.iter().map(|part| (part.index, part.count)).collect()
    }

    #[test]
    fn answers_always_go_on_beside_prompts() {
        let dues = [(Due::Prompt(5), 0), (TOKEN, 0), (Due::Prompt(9), 0), (Due::Token { drafted: 3 }, 0)];
        assert_eq!(planned(&dues, 14), [(1, 1), (3, 4), (0, 5), (2, 9)]);
        assert_eq!(planned(&dues, 0), [(1, 1), (3, 4)]);
        assert_eq!(planned(&[(Due::Nothing, 0), (Due::Prompt(2), 0)], 8), [(1, 2)]);
        assert_eq!(planned(&[], 8), []);
    }

    #[test]
    fn the_first_prompt_has_half_and_the_shortest_the_rest() {
        let dues = [(Due::Prompt(1000), 0), (Due::Prompt(300), 0), (Due::Prompt(20), 0)];
        // 8 for the oldest, half of the 56 left for the first, 20 for the shortest, the rest for the next.
        assert_eq!(planned(&dues, 64), [(0, 36), (1, 8), (2, 20)]);
    }

    #[test]
    fn priorities_go_first_but_leave_the_oldest_an_eighth() {
        let dues = [(Due::Prompt(1000), -1), (Due::Prompt(1000), 1), (Due::Prompt(10), 0)];
        assert_eq!(planned(&dues, 64), [(0, 8), (1, 56)]);
    }

    proptest! {
        #[test]
        fn a_step_is_full_or_holds_all_there_is_and_the_oldest_gets_on(
            dues in proptest::collection::vec((
                prop_oneof![
                    (0usize..5).prop_map(|drafted| Due::Token { drafted }),
                    (1usize..50).prop_map(Due::Prompt),
                    Just(Due::Nothing),
                ], -1i32..2), 0..20),
            room in 1usize..100,
        ) {
            let parts = planned(&dues, room);
            let count = |index: usize| parts.iter().filter(|part| part.0 == index).map(|part| part.1).sum::<usize>();
            let mut prompts = (0, 0);
            for (index, (due, _)) in dues.iter().enumerate() {
                match due {
                    Due::Token { drafted } => prop_assert_eq!(count(index), 1 + drafted),
                    Due::Prompt(rest) => {
                        prop_assert!(count(index) <= *rest);
                        prop_assert!(prompts.0 > 0 || count(index) > 0);
                        prompts = (prompts.0 + rest, prompts.1 + count(index));
                    }
                    Due::Nothing => prop_assert_eq!(count(index), 0),
                }
            }
            prop_assert_eq!(prompts.1, prompts.0.min(room));
            prop_assert!(parts.iter().all(|part| part.1 > 0));
        }
    }
}
