//! What is sent of an answer, and when it ends. Pure.

use temperd::wire::engine::Finished;

use crate::text::Text;

/// An answer as it grows.
pub struct Answer {
    text: Text,
    stop_tokens: Vec<u32>,
    /// Tokens it may still have.
    left: u32,
}

/// What became of one sampled token.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Text to send now.
    pub text: String,
    /// Whether the token belongs to the answer; the one that ends it does not.
    pub counts: bool,
    /// Why the answer has ended, if it has: "stop" or "length".
    pub end: Option<&'static str>,
}

impl Answer {
    /// An empty answer of at most `max` tokens.
    pub fn new(stop: Vec<String>, stop_tokens: Vec<u32>, max: u32) -> Self {
        Self { text: Text::new(stop), stop_tokens, left: max }
    }

    /// Tokens it may still have.
    pub fn left(&self) -> usize {
        self.left as usize
    }

    /// Whether it may have any token at all.
    pub fn may_begin(&self) -> bool {
        self.left > 0
    }

    /// Takes a sampled token that is rendered as `bytes`. `ends` is whether it ends the answer by the model's own
    /// rule, `full` whether the context has no room for it.
    pub fn take(&mut self, token: u32, bytes: &[u8], ends: bool, full: bool) -> Taken {
        if ends || self.stop_tokens.contains(&token) {
            return Taken { text: self.text.finish().text, counts: false, end: Some("stop") };
        }
        self.left = self.left.saturating_sub(1);
        let mut grown = self.text.push(bytes);
        let mut end = grown.stopped.then_some("stop");
        if end.is_none() && (self.left == 0 || full) {
            let rest = self.text.finish();
            grown.text.push_str(&rest.text);
            end = Some(if rest.stopped { "stop" } else { "length" });
        }
        Taken { text: grown.text, counts: true, end }
    }

    /// What was held back, where the answer ends from outside.
    pub fn rest(&mut self) -> String {
        self.text.finish().text
    }
}

/// The end of a sequence.
pub fn finished(reason: &str, error: Option<String>) -> Finished {
    Finished { reason: reason.to_owned(), error, ..Finished::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_token_is_not_rendered_nor_counted() {
        let mut answer = Answer::new(Vec::new(), vec![3], 9);
        assert_eq!(answer.take(1, b"a", false, false), Taken { text: "a".into(), counts: true, end: None });
        assert_eq!(answer.take(3, b"</s>", false, false), Taken { end: Some("stop"), ..Taken::default() });
        assert_eq!(answer.take(4, b"<eos>", true, false), Taken { end: Some("stop"), ..Taken::default() });
    }

    #[test]
    fn the_limit_counts_tokens_and_sends_what_was_held() {
        let mut answer = Answer::new(vec!["bc".into()], Vec::new(), 2);
        assert_eq!(answer.take(1, b"a", false, false), Taken { text: "a".into(), counts: true, end: None });
        assert_eq!(answer.take(1, b"b", false, false), Taken { text: "b".into(), counts: true, end: Some("length") });
    }

    #[test]
    fn a_full_context_ends_with_length_and_a_stop_string_with_stop() {
        let mut answer = Answer::new(vec!["bc".into()], Vec::new(), 9);
        assert_eq!(answer.take(1, b"ab", false, false), Taken { text: "a".into(), counts: true, end: None });
        assert_eq!(answer.take(1, b"c", false, true), Taken { text: String::new(), counts: true, end: Some("stop") });
        let mut answer = Answer::new(Vec::new(), Vec::new(), 9);
        assert_eq!(answer.take(1, b"a", false, true).end, Some("length"));
    }
}
