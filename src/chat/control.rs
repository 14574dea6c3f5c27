//! The control tokens of a vocabulary, and a text split at them.

use std::{collections::HashMap, fmt};

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

use crate::wire::engine::{ControlToken, Segment, Vocabulary};

/// What a text is split at.
///
/// Control tokens, and user-defined ones that look like control tokens: files exist that declare `<|im_start|>` as
/// user-defined. Other user-defined tokens (runs of line feeds, `<think>`) are text to the model's maker and to its
/// tokenizer alike. Tokens with white space at an edge are never split at: white space of messages is not disguised.
pub(super) struct ControlTokens {
    tokens: Vec<ControlToken>,
    finder: AhoCorasick,
    /// User-defined tokens among them: the tokenizer would find those in plain segments too.
    guarded: AhoCorasick,
    ids: HashMap<String, u32>,
}

impl fmt::Debug for ControlTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControlTokens({})", self.tokens.len())
    }
}

impl ControlTokens {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, BuildError> {
        let mut ids = HashMap::new();
        let mut tokens = Vec::new();
        for token in &vocabulary.control_tokens {
            let text = token.text.as_str();
            if text.is_empty() || ids.contains_key(text) {
                continue;
            }
            ids.insert(text.to_owned(), token.id);
            let splits = !token.user_defined
                || looks_like_control(text)
                || [&vocabulary.bos, &vocabulary.eos].iter().any(|end| end.as_str() == text);
            if splits && text.trim() == text {
                tokens.push(token.clone());
            }
        }
        let finder = find(tokens.iter().map(|token| token.text.as_str()))?;
        let guarded = find(tokens.iter().filter(|token| token.user_defined).map(|token| token.text.as_str()))?;
        Ok(Self { tokens, finder, guarded, ids })
    }

    /// The id of a token whose text is exactly this.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The text of a token by its place in this list.
    pub(super) fn text(&self, place: usize) -> &str {
        self.tokens.get(place).map(|token| token.text.as_str()).unwrap_or_default()
    }

    /// The texts of all tokens that are split at.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|token| token.text.as_str())
    }

    /// The places of the tokens that a text spells out, in order; of several at one spot the longest.
    pub(super) fn found<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.finder.find_iter(text).map(|found| found.pattern().as_usize())
    }

    /// A text in pieces: what is between two control tokens, and the control tokens.
    pub(super) fn pieces<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Piece<'a>> + 'a {
        let mut end = 0;
        let mut found = self.finder.find_iter(text);
        let mut last = false;
        std::iter::from_fn(move || {
            if last {
                return None;
            }
            let next = found.next();
            let between = text.get(end..next.as_ref().map_or(text.len(), |found| found.start())).unwrap_or_default();
            let control = next.map(|found| {
                end = found.end();
                Piece::Control(found.pattern().as_usize())
            });
            last = control.is_none();
            Some([Some(Piece::Text(between)), control])
        })
        .flatten()
        .flatten()
    }

    /// A rendered text as segments; `reveal` gives the plain text of what is between two control tokens.
    ///
    /// A tokenizer that puts a space in front of a segment by itself gets one space less there, where there is one: the
    /// template's own. This holds behind a control token only; at the beginning of a prompt the makers' tokenizers add
    /// theirs to what is written.
    pub(super) fn segments(&self, text: &str, space_prefix: bool, reveal: impl Fn(&str) -> String) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut before: Option<&ControlToken> = None;
        let mut pieces = self.pieces(text).peekable();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Control(place) => {
                    before = self.tokens.get(place);
                    segments.push(Segment { text: self.text(place).to_owned(), special: true });
                }
                Piece::Text(between) => {
                    let plain = reveal(between);
                    let mut plain = plain.as_str();
                    if before.is_some_and(|token| token.strip_after) {
                        plain = plain.trim_start_matches(is_space);
                    } else if space_prefix && before.is_some() {
                        plain = plain.strip_prefix(' ').unwrap_or(plain);
                    }
                    if let Some(Piece::Control(next)) = pieces.peek()
                        && self.tokens.get(*next).is_some_and(|token| token.strip_before)
                    {
                        plain = plain.trim_end_matches(is_space);
                    }
                    self.push_plain(&mut segments, plain);
                }
            }
        }
        segments
    }

    /// Adds plain text. A user-defined control token in it, which the tokenizer would parse, is cut in two.
    fn push_plain(&self, segments: &mut Vec<Segment>, mut plain: &str) {
        while let Some(found) = self.guarded.find(plain) {
            let first = plain.get(found.start()..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
            let (head, rest) = plain.split_at(found.start() + first);
            segments.push(Segment { text: head.to_owned(), special: false });
            plain = rest;
        }
        if !plain.is_empty() {
            segments.push(Segment { text: plain.to_owned(), special: false });
        }
    }
}

/// A part of a text, see [`ControlTokens::pieces`].
pub(super) enum Piece<'a> {
    /// Between two control tokens; may be empty.
    Text(&'a str),
    /// The place of a token.
    Control(usize),
}

fn find<'a>(texts: impl Iterator<Item = &'a str>) -> Result<AhoCorasick, BuildError> {
    AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts)
}

/// C's `isspace`, as the tokenizer uses it.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// The rule by which llama.cpp's converter tells control tokens in vocabularies that do not mark them, and Mistral's
/// upper-case form.
fn looks_like_control(text: &str) -> bool {
    let within = |open, close| text.len() > 2 && text.starts_with(open) && text.ends_with(close);
    let upper = |c: char| c.is_ascii_uppercase() || matches!(c, '_' | '/' | '[' | ']');
    within("<|", "|>")
        || within("<｜", "｜>")
        || (within("[", "]") && text.chars().all(upper))
        || matches!(text, "<s>" | "</s>" | "<bos>" | "<eos>" | "<pad>" | "<mask>" | "<start_of_turn>" | "<end_of_turn>")
}
