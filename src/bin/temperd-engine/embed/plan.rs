//! What goes into the next slice of a job. Pure.

/// How far a job has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// The text that comes next.
    pub text: usize,
    /// Where its tokens begin.
    pub start: usize,
    /// How many of them have been read.
    pub read: usize,
}

/// What a slice may hold.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Tokens.
    pub tokens: usize,
    /// Tokens of the context, those of the text already begun among them; no text is longer.
    pub cells: usize,
    /// Texts.
    pub texts: usize,
    /// Texts are not divided; the longest has room in a slice.
    pub whole: bool,
}

/// A run of tokens of one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The text.
    pub text: usize,
    /// Where its tokens begin.
    pub start: usize,
    /// How many of them were read before.
    pub from: usize,
    /// How many are read now, at least one.
    pub count: usize,
    /// Whether the text ends with them.
    pub last: bool,
}

impl Part {
    /// Where the job stands after it.
    pub fn end(&self) -> Place {
        if self.last {
            Place { text: self.text + 1, start: self.start + self.from + self.count, read: 0 }
        } else {
            Place { text: self.text, start: self.start, read: self.from + self.count }
        }
    }
}

/// The next parts, in the order of the texts. Only the last one of a slice can leave its text unfinished, so the first
/// of the next slice goes on with it, and a context of `cells` tokens is never short.
pub fn plan(lengths: &[u32], mut place: Place, room: Room) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut tokens, mut cells) = (room.tokens.max(1), room.cells);
    for length in lengths.iter().skip(place.text).take(room.texts) {
        let rest = (*length as usize).saturating_sub(place.read);
        let count = rest.min(tokens).min(cells.saturating_sub(place.read));
        if count == 0 || (room.whole && count < rest) {
            break;
        }
        let Place { text, start, read } = place;
        let part = Part { text, start, from: read, count, last: count == rest };
        tokens -= count;
        cells -= read + count;
        place = part.end();
        parts.push(part);
        if !part.last {
            break;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_share_a_slice_and_the_last_is_divided() {
        let room = Room { tokens: 8, cells: 10, texts: 4, whole: false };
        let first = plan(&[3, 2, 7, 1], Place::default(), room);
        let brief: Vec<_> = first.iter().map(|part| (part.text, part.from, part.count, part.last)).collect();
        assert_eq!(brief, [(0, 0, 3, true), (1, 0, 2, true), (2, 0, 3, false)]);
        let place = first[2].end();
        assert_eq!(place, Place { text: 2, start: 5, read: 3 });
        let second = plan(&[3, 2, 7, 1], place, room);
        let brief: Vec<_> = second.iter().map(|part| (part.text, part.start, part.from, part.count)).collect();
        assert_eq!(brief, [(2, 5, 3, 4), (3, 12, 0, 1)]);
    }

    #[test]
    fn whole_texts_are_not_divided() {
        let room = Room { tokens: 8, cells: 8, texts: 4, whole: true };
        let parts = plan(&[3, 6, 8], Place::default(), room);
        assert_eq!(parts.iter().map(|part| (part.count, part.last)).collect::<Vec<_>>(), [(3, true)]);
    }

    proptest! {
        #[test]
        fn every_token_is_read_once_in_order_and_within_the_room(
            lengths in prop::collection::vec(1_u32..40, 1..30),
            tokens in prop::collection::vec(1_usize..50, 1..10),
            spare in 0_usize..40,
            texts in 1_usize..6,
            whole in any::<bool>(),
        ) {
            let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
            let cells = longest + spare;
            let mut place = Place::default();
            let mut read = 0;
            for round in 0.. {
                if place.text >= lengths.len() {
                    break;
                }
                let tokens = if whole { longest } else { tokens[round % tokens.len()] };
                let parts = plan(&lengths, place, Room { tokens, cells, texts, whole });
                prop_assert!(!parts.is_empty() && parts.len() <= texts);
                prop_assert!(parts.iter().map(|part| part.count).sum::<usize>() <= tokens);
                prop_assert!(parts.iter().map(|part| part.from + part.count).sum::<usize>() <= cells);
                for part in parts {
                    prop_assert_eq!(part.start + part.from, read);
                    prop_assert!(part.count > 0 && (!whole || part.last));
                    read += part.count;
                    place = part.end();
                }
            }
            prop_assert_eq!(read, lengths.iter().sum::<u32>() as usize);
        }
    }
}
