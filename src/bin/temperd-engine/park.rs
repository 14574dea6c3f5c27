//! Who runs where the KV cache has not room for all, and who is copied out of it. Pure.
//!
//! A sequence that makes steps goes on as long as the cells that it fills fit: many an answer ends long before it is as long
//! as it may be. One that waits comes (back) only where all it may come to fill fits too, so that nobody comes and goes.
//! Both go by urgency: greater priority, then earlier arrival. Who runs is found anew in that order each time, so that
//! whether one may run depends on the more urgent ones alone: none starves behind smaller ones.

use std::cmp::Reverse;

/// Parked copies may take this part of the context: what a step down gives back is then still within a tenth of what it
/// promised, since copies are memory too.
const COPIES: usize = 16;

/// A sequence.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Greater is more urgent.
    pub priority: i32,
    /// Whether it makes steps now.
    pub runs: bool,
}

/// Cells that one more sequence adds to those that run already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adds {
    /// At once.
    pub now: usize,
    /// Until its end.
    pub most: usize,
}

/// Cells that there may be.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// At most.
    pub context: usize,
    /// Without more memory than is allowed at present.
    pub ceiling: usize,
}

/// Places in `members`, which is in order of arrival, the most urgent first.
pub fn urgency(members: &[Member]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|at| (Reverse(members.get(*at).map(|member| member.priority)), *at));
    order
}

/// Which of them make steps from now on. `adds` says what the sequence of a place adds to those of some others. The most
/// urgent one may have more memory than is allowed at present, so that something always gets on.
pub fn who_runs(members: &[Member], room: Room, adds: impl Fn(&[usize], usize) -> Adds) -> Vec<bool> {
    let mut runs = vec![false; members.len()];
    let mut chosen = Vec::new();
    let mut sum = Adds::default();
    for at in urgency(members) {
        let Some(member) = members.get(at) else { continue };
        let more = adds(&chosen, at);
        let fits = if member.runs {
            sum.now + more.now <= room.context
        } else {
            sum.most + more.most <= room.ceiling || (chosen.is_empty() && more.most <= room.context)
        };
        if fits && let Some(run) = runs.get_mut(at) {
            *run = true;
            sum = Adds { now: sum.now + more.now, most: sum.most + more.most };
            chosen.push(at);
        }
    }
    runs
}

/// Whether a copy of `own` cells is kept while the sequence waits, beside those of `copied`; else they are read again. Copying
/// a token takes a small part of the time of reading it, so memory alone decides.
pub fn copies(own: usize, copied: usize, context: usize) -> bool {
    own > 0 && own + copied <= context / COPIES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(priority: i32, runs: bool) -> Member {
        Member { priority, runs }
    }

    /// Sequences by what they fill now and at most, without anything in common.
    fn plain(cells: &[(usize, usize)]) -> impl Fn(&[usize], usize) -> Adds {
        move |_, at| Adds { now: cells[at].0, most: cells[at].1 }
    }

    const ROOM: Room = Room { context: 100, ceiling: 100 };

    #[test]
    fn the_least_urgent_go_and_those_that_fit_stay() {
        let members = [member(0, true), member(1, true), member(0, true), member(-1, true)];
        assert_eq!(urgency(&members), [1, 0, 2, 3]);
        let cells = [(40, 90), (40, 90), (40, 90), (20, 90)];
        assert_eq!(who_runs(&members, ROOM, plain(&cells)), [true, true, false, true]);
    }

    #[test]
    fn one_that_waits_comes_back_where_its_end_fits_too_and_never_before_a_more_urgent_one() {
        let waiting = [member(0, true), member(0, false), member(0, false)];
        assert_eq!(who_runs(&waiting, ROOM, plain(&[(10, 50), (10, 51), (10, 50)])), [true, false, true]);
        assert_eq!(who_runs(&waiting, ROOM, plain(&[(10, 50), (10, 50), (10, 50)])), [true, true, false]);
        // It takes the place of one that runs.
        let urgent = [member(0, true), member(1, false)];
        assert_eq!(who_runs(&urgent, ROOM, plain(&[(60, 60), (50, 90)])), [false, true]);
    }

    #[test]
    fn one_alone_may_have_what_memory_does_not_allow_the_others() {
        let room = Room { context: 100, ceiling: 20 };
        let waiting = [member(0, false), member(0, false)];
        assert_eq!(who_runs(&waiting, room, plain(&[(10, 100), (1, 1)])), [true, false]);
        assert_eq!(who_runs(&waiting, room, plain(&[(10, 101), (1, 20)])), [false, true]);
    }

    #[test]
    fn copies_take_a_small_part_of_the_context() {
        assert!(copies(256, 0, 4096));
        assert!(!copies(257, 0, 4096));
        assert!(!copies(56, 201, 4096));
        assert!(!copies(0, 0, 4096));
    }

    #[derive(Debug, Clone)]
    struct Guest {
        priority: i32,
        family: usize,
        prefix: usize,
        own: usize,
        left: usize,
        runs: bool,
    }

    fn guests() -> impl Strategy<Value = Vec<Guest>> {
        let guest = (-1i32..2, 0usize..3, 0usize..60, 1usize..60, 0usize..60, any::<bool>());
        let guest = guest.prop_map(|(priority, family, prefix, own, left, runs)| Guest {
            priority,
            family,
            prefix,
            own,
            left,
            runs,
        });
        prop::collection::vec(guest, 1..12)
    }

    /// What is held in common by those of one family counts once.
    fn adds(guests: &[Guest], chosen: &[usize], at: usize) -> Adds {
        let new = &guests[at];
        let family = chosen.iter().map(|at| &guests[*at]).filter(|other| other.family == new.family);
        let shared = family.map(|other| other.prefix.min(new.prefix)).max().unwrap_or(0);
        let now = new.prefix - shared + new.own;
        Adds { now, most: now + new.left }
    }

    fn members(guests: &[Guest]) -> Vec<Member> {
        guests.iter().map(|guest| member(guest.priority, guest.runs)).collect()
    }

    /// Cells that those who run fill.
    fn filled(guests: &[Guest], runs: &[bool]) -> usize {
        let prefix = |family| {
            let of = guests.iter().zip(runs).filter(|(guest, runs)| **runs && guest.family == family);
            of.map(|(guest, _)| guest.prefix).max().unwrap_or(0)
        };
        let own = guests.iter().zip(runs).filter(|(_, runs)| **runs).map(|(guest, _)| guest.own);
        own.sum::<usize>() + (0..3).map(prefix).sum::<usize>()
    }

    proptest! {
        #[test]
        fn they_fit_the_most_urgent_goes_first_and_one_alone_runs(
            guests in guests(), context in 1usize..400, less in 0usize..200,
        ) {
            let room = Room { context, ceiling: context.saturating_sub(less) };
            let members = members(&guests);
            let runs = who_runs(&members, room, |chosen, at| adds(&guests, chosen, at));
            prop_assert!(filled(&guests, &runs) <= context);
            let order = urgency(&members);
            let first = adds(&guests, &[], order[0]);
            prop_assert!(runs[order[0]] || first.most > context);
            // Without the less urgent ones nothing is otherwise: nobody waits for one of those.
            let mut alone = members.clone();
            let last = *order.last().unwrap();
            alone.remove(last);
            let mut others = guests.clone();
            others.remove(last);
            let mut without = who_runs(&alone, room, |chosen, at| adds(&others, chosen, at));
            without.insert(last, runs[last]);
            prop_assert_eq!(without, runs);
        }

        /// Everyone whose whole answer fits the context comes to its end, whatever the rest of it does.
        #[test]
        fn nobody_starves(guests in guests(), context in 60usize..400, less in 0usize..200) {
            let room = Room { context, ceiling: context.saturating_sub(less) };
            let mut guests = guests;
            guests.retain(|guest| guest.prefix + guest.own + guest.left <= context);
            let mut rounds = 0;
            while !guests.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 2000, "{guests:?}");
                let members = members(&guests);
                let runs = who_runs(&members, room, |chosen, at| adds(&guests, chosen, at));
                prop_assert!(runs.contains(&true));
                for (guest, runs) in guests.iter_mut().zip(&runs) {
                    guest.runs = *runs;
                }
                // Each of them writes a token, the least urgent ones only while there are cells.
                for at in urgency(&members) {
                    let going: Vec<bool> = guests.iter().map(|guest| guest.runs).collect();
                    let full = filled(&guests, &going) >= context;
                    let guest = &mut guests[at];
                    if guest.runs && guest.left > 0 && !full {
                        (guest.own, guest.left) = (guest.own + 1, guest.left - 1);
                    } else if guest.runs && guest.left > 0 && going.iter().filter(|runs| **runs).count() > 1 {
                        let last = urgency(&members).into_iter().rev().find(|at| going[*at]).unwrap();
                        guests[last].runs = false;
                    }
                }
                guests.retain(|guest| !guest.runs || guest.left > 0);
            }
        }
    }
}
