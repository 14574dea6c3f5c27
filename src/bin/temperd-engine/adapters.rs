//! Whose turn it is. llama.cpp applies an adapter to a whole context, so a step serves the sequences of one adapter only;
//! those of the others pause. Each change has a cost (a new graph is laid out), so each adapter works for a slice of time
//! before the next that waits has its turn. Pure: the time comes in as seconds.

/// An adapter by its place in the configuration and its scale, as one number; [`NONE`] is the model as it is.
pub type Group = u64;

/// Sequences without an adapter.
pub const NONE: Group = 0;

/// How long one adapter works while another waits.
const SLICE: f64 = 0.25;
/// A slice is at least this many times the cost of a change, so that changes take a tenth of the time at most.
const COSTS: f64 = 9.0;
/// The slice of an adapter whose most important sequence has one priority more, or less, than that of any other.
const LONGER: f64 = 4.0;
/// Weight of a new reading of the cost.
const FRESH: f64 = 0.3;

/// The group of an adapter by its number, from 1, and its scale. Scale 0 is the model as it is.
pub fn group(adapter: u32, scale: f32) -> Group {
    if adapter == 0 || scale == 0.0 { NONE } else { u64::from(adapter) << 32 | u64::from(scale.to_bits()) }
}

/// The adapter's number and scale of a group; `None` for the model as it is.
pub fn adapter(group: Group) -> Option<(u32, f32)> {
    let (number, scale) = (u32::try_from(group >> 32).ok()?, u32::try_from(group & u64::from(u32::MAX)).ok()?);
    (number > 0).then(|| (number, f32::from_bits(scale)))
}

/// One sequence that has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its adapter.
    pub group: Group,
    /// Greater is more important.
    pub priority: i32,
}

/// The turn of the adapters.
#[derive(Debug)]
pub struct Turns {
    current: Group,
    since: f64,
    /// Seconds of a change, as measured.
    cost: f64,
    /// Those that have had a turn, the latest last: as many as there are adapters. One that has nothing to do keeps its
    /// place, else it would come before those that wait each time it comes again.
    served: Vec<Group>,
}

impl Turns {
    /// Begins with the model as it is.
    pub fn new() -> Self {
        Self { current: NONE, since: 0.0, cost: 0.0, served: Vec::new() }
    }

    /// Whose step is the next one. The turn goes on to the one that has not had it for the longest time; of those that
    /// never had it, to the one that came first. `members` is in order of arrival.
    pub fn next(&mut self, now: f64, members: &[Member]) -> Group {
        let here = top(members, |group| group == self.current);
        let others = top(members, |group| group != self.current);
        let stays = match (here, others) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(here), Some(others)) => now - self.since < self.slice(here, others),
        };
        if stays {
            // Alone, it has no slice to use up: that begins once another waits.
            if others.is_none() {
                self.since = now;
            }
            return self.current;
        }
        let waited = |group: Group| self.served.iter().position(|other| *other == group).map_or(0, |at| at + 1);
        let waiting = members.iter().map(|member| member.group).filter(|group| *group != self.current);
        if let Some(next) = waiting.min_by_key(|group| waited(*group)) {
            self.served.retain(|group| *group != self.current && *group != next);
            self.served.push(self.current);
            (self.current, self.since) = (next, now);
        }
        self.current
    }

    /// Takes in what a change has cost.
    pub fn changed(&mut self, seconds: f64) {
        if seconds.is_finite() {
            let seconds = seconds.max(0.0);
            self.cost = if self.cost == 0.0 { seconds } else { self.cost + (seconds - self.cost) * FRESH };
        }
    }

    fn slice(&self, here: i32, others: i32) -> f64 {
        let weight = match here.cmp(&others) {
            std::cmp::Ordering::Less => 1.0 / LONGER,
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => LONGER,
        };
        (SLICE * weight).max(self.cost * COSTS)
    }
}

/// The highest priority among the members of some groups.
fn top(members: &[Member], of: impl Fn(Group) -> bool) -> Option<i32> {
    members.iter().filter(|member| of(member.group)).map(|member| member.priority).max()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(list: &[(Group, i32)]) -> Vec<Member> {
        list.iter().map(|&(group, priority)| Member { group, priority }).collect()
    }

    #[test]
    fn a_group_is_number_and_scale_and_scale_0_is_the_model_itself() {
        assert_eq!(adapter(group(3, 0.5)), Some((3, 0.5)));
        assert_eq!(adapter(group(3, -1.0)), Some((3, -1.0)));
        assert_ne!(group(3, 0.5), group(3, 1.0));
        assert_eq!((group(3, 0.0), group(3, -0.0), group(0, 1.0)), (NONE, NONE, NONE));
        assert_eq!(adapter(NONE), None);
    }

    #[test]
    fn it_goes_round_by_slices_and_at_once_where_nothing_is_to_do() {
        let mut turns = Turns::new();
        let all = members(&[(5, 0), (NONE, 0), (7, 0)]);
        assert_eq!(turns.next(0.0, &all), NONE);
        assert_eq!(turns.next(0.2, &all), NONE);
        assert_eq!(turns.next(0.25, &all), 5);
        assert_eq!(turns.next(0.49, &all), 5);
        assert_eq!(turns.next(0.5, &all), 7);
        assert_eq!(turns.next(0.6, &members(&[(5, 0), (NONE, 0)])), NONE);
        assert_eq!(turns.next(0.85, &all), 5);
        assert_eq!(turns.next(9.0, &[]), 5);
        assert_eq!(turns.next(9.1, &members(&[(7, 0)])), 7);
    }

    #[test]
    fn one_that_comes_waits_a_whole_slice_of_the_one_that_was_alone() {
        let mut turns = Turns::new();
        assert_eq!(turns.next(0.0, &members(&[(NONE, 0)])), NONE);
        assert_eq!(turns.next(99.0, &members(&[(NONE, 0)])), NONE);
        assert_eq!(turns.next(99.1, &members(&[(NONE, 0), (5, 0)])), NONE);
        assert_eq!(turns.next(99.3, &members(&[(NONE, 0), (5, 0)])), 5);
    }

    #[test]
    fn priority_makes_slices_longer_and_shorter() {
        let mut turns = Turns::new();
        let both = members(&[(NONE, -1), (5, 0)]);
        assert_eq!(turns.next(0.1, &both), 5);
        assert_eq!(turns.next(1.0, &both), 5);
        assert_eq!(turns.next(1.11, &both), NONE);
    }

    #[test]
    fn a_costly_change_makes_slices_longer() {
        let mut turns = Turns::new();
        turns.changed(0.1);
        let both = members(&[(NONE, 0), (5, 0)]);
        assert_eq!(turns.next(0.8, &both), NONE);
        assert_eq!(turns.next(0.91, &both), 5);
    }

    proptest! {
        /// Whoever has work has a turn, at the latest after a longest slice of each other.
        #[test]
        fn nobody_starves(
            list in prop::collection::vec((0u64..5, -1i32..2), 1..12),
            step in 0.001f64..0.2,
            cost in 0.0f64..0.05,
        ) {
            let all = members(&list);
            let mut turns = Turns::new();
            turns.changed(cost);
            let longest = SLICE * LONGER + step;
            let mut last = [0.0; 5];
            let mut now = 0.0;
            while now < 30.0 {
                let group = turns.next(now, &all);
                prop_assert!(all.iter().any(|member| member.group == group));
                last[usize::try_from(group).unwrap()] = now;
                for member in &all {
                    let waited = now - last[usize::try_from(member.group).unwrap()];
                    prop_assert!(waited <= longest * 4.0 + step, "{} waits {waited} s", member.group);
                }
                now += step;
            }
        }

        /// However others come and go: the turn is with one that has work, and one that waits has it in the end.
        #[test]
        fn comings_and_goings_starve_nobody(
            rounds in prop::collection::vec(prop::collection::vec((0u64..4, -1i32..2), 0..6), 1..80),
            pause in 0.01f64..1.0,
        ) {
            let mut turns = Turns::new();
            let (mut now, mut last) = (0.0, 0.0);
            for mut round in rounds {
                now += pause;
                round.push((9, -1));
                let all = members(&round);
                let group = turns.next(now, &all);
                prop_assert!(all.iter().any(|member| member.group == group));
                if group == 9 {
                    last = now;
                }
                prop_assert!(now - last <= (SLICE * LONGER + pause) * 4.0 + pause);
            }
        }
    }
}
