//! From the bytes of tokens to text that may be sent: cut only between whole characters, and never past what may still
//! become a stop string. Pure.

/// The text of one answer as it grows.
pub struct Text {
    stops: Vec<String>,
    /// Bytes at the end that do not make a whole character yet.
    bytes: Vec<u8>,
    /// Whole characters not yet sent: they may be the beginning of a stop string.
    held: String,
}

/// What a token brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grown {
    /// Text to send now.
    pub text: String,
    /// Whether a stop string is complete; it is not in the text, and nothing may be pushed after it.
    pub stopped: bool,
}

impl Text {
    /// An empty answer that ends at the first of `stops` to be complete. Empty stop strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, bytes: Vec::new(), held: String::new() }
    }

    /// Adds the bytes of one token.
    pub fn push(&mut self, bytes: &[u8]) -> Grown {
        self.bytes.extend_from_slice(bytes);
        self.decode(false);
        self.grown(false)
    }

    /// Ends the answer: what was held back, with U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> Grown {
        self.decode(true);
        self.grown(true)
    }

    fn decode(&mut self, last: bool) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.held.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let incomplete = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if incomplete && chunks.peek().is_none() && !last {
                self.bytes.extend_from_slice(invalid);
            } else {
                self.held.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    fn grown(&mut self, last: bool) -> Grown {
        if let Some(start) = self.stop() {
            self.held.truncate(start);
            return Grown { text: std::mem::take(&mut self.held), stopped: true };
        }
        let rest = if last { self.held.len() } else { self.held.len() - self.may_become_stop() };
        let held = self.held.split_off(rest);
        Grown { text: std::mem::replace(&mut self.held, held), stopped: false }
    }

    /// Where the stop string begins that is complete first. To go by its end, not its beginning, makes the answer
    /// independent of how the text came in tokens.
    fn stop(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// Length of the longest end of the held text that is the beginning of a stop string.
    fn may_become_stop(&self) -> usize {
        let beginnings = |stop: &String| -> usize {
            let lengths = stop.char_indices().map(|(at, _)| at).rev();
            let mut fitting = lengths.filter(|&at| stop.get(..at).is_some_and(|begin| self.held.ends_with(begin)));
            fitting.next().unwrap_or_default()
        };
        self.stops.iter().map(beginnings).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text as it comes out, and whether a stop string ended it.
    fn stream<'a>(tokens: impl IntoIterator<Item = &'a [u8]>, stops: &[String]) -> (Vec<String>, bool) {
        let mut text = Text::new(stops.iter().cloned());
        let mut sent = Vec::new();
        for token in tokens {
            let grown = text.push(token);
            sent.push(grown.text);
            if grown.stopped {
                return (sent, true);
            }
        }
        let grown = text.finish();
        sent.push(grown.text);
        (sent, grown.stopped)
    }

    #[test]
    fn characters_are_never_broken() {
        let crab = "🦀".as_bytes();
        let (sent, _) = stream([&crab[..1], &crab[1..3], &crab[3..], b"!"], &[]);
        assert_eq!(sent, ["", "", "🦀", "!", ""]);
    }

    #[test]
    fn invalid_bytes_become_replacement_characters() {
        assert_eq!(stream([&b"a\xff"[..], b"b"], &[]).0.concat(), "a\u{fffd}b");
        assert_eq!(stream([&b"a\xf0\x9f"[..]], &[]).0, ["a", "\u{fffd}"]);
        assert_eq!(stream([&b"\xe4\xb8"[..], b"x"], &[]).0.concat(), "\u{fffd}x");
    }

    #[test]
    fn a_stop_string_is_held_back_across_tokens_and_never_sent() {
        let stops = ["</s>".to_owned(), "STOP".to_owned()];
        let (sent, stopped) = stream([&b"one <"[..], b"b> S", b"TO", b"P and"], &stops);
        assert_eq!((sent.concat().as_str(), stopped), ("one <b> ", true));
        assert_eq!(sent, ["one ", "<b> ", "", ""]);
    }

    #[test]
    fn the_stop_string_that_is_complete_first_counts() {
        let stops = ["abcd".to_owned(), "bc".to_owned()];
        assert_eq!(stream([&b"abcd"[..]], &stops).0.concat(), "a");
        assert_eq!(stream([&b"a"[..], b"b", b"c", b"d"], &stops).0.concat(), "a");
    }

    #[test]
    fn what_was_held_is_sent_at_the_end() {
        let (sent, stopped) = stream([&b"wait </"[..]], &["</s>".to_owned()]);
        assert_eq!((sent.concat().as_str(), stopped), ("wait </", false));
    }

    /// A short alphabet, so that stop strings do occur, with characters of one to four bytes.
    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(vec!["a", "b", "é", "語", "🦀", "\u{fffd}"]), 0..40)
            .prop_map(|parts| parts.concat())
    }

    fn stops() -> impl Strategy<Value = Vec<String>> {
        let stop = proptest::collection::vec(proptest::sample::select(vec!["a", "b", "é", "語", "🦀"]), 0..4);
        proptest::collection::vec(stop.prop_map(|parts| parts.concat()), 0..4)
    }

    fn up_to_stop(text: &str, stops: &[String]) -> String {
        let ends = stops.iter().filter(|stop| !stop.is_empty());
        let ends = ends.filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
        ends.min().map_or_else(|| text.to_owned(), |(_, start)| text[..start].to_owned())
    }

    fn split<'a>(bytes: &'a [u8], cuts: &[proptest::sample::Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.push(bytes.len());
        at.sort_unstable();
        let mut from = 0;
        at.into_iter()
            .map(|to| {
                let part = &bytes[from..to];
                from = to;
                part
            })
            .collect()
    }

    proptest! {
        #[test]
        fn however_it_is_split_the_text_up_to_the_first_stop_comes_out(
            text in text(), stops in stops(), cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..60),
        ) {
            let (sent, stopped) = stream(split(text.as_bytes(), &cuts), &stops);
            let expected = up_to_stop(&text, &stops);
            prop_assert_eq!(stopped, expected.len() < text.len());
            prop_assert_eq!(sent.concat(), expected);
        }

        #[test]
        fn any_bytes_come_out_as_they_would_in_one_piece(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..40),
        ) {
            let (sent, _) = stream(split(&bytes, &cuts), &[]);
            prop_assert_eq!(sent.concat(), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
