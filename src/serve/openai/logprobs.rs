//! Log probabilities in both of OpenAI's forms.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::wire::v1;

/// OpenAI's own stand-in for a token that is out of reach; JSON has no infinity.
const NEVER: f32 = -9999.0;

/// Of a chat completion.
#[derive(Debug, Serialize)]
pub struct Logprobs<'a> {
    content: Vec<Token<'a>>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Token<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
    top_logprobs: Vec<Alternative<'a>>,
}

#[derive(Debug, Serialize)]
struct Alternative<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> From<&'a [v1::TokenLogprob]> for Logprobs<'a> {
    fn from(tokens: &'a [v1::TokenLogprob]) -> Self {
        let alternative = |top: &'a v1::TopLogprob| Alternative {
            token: &top.token,
            logprob: finite(top.logprob),
            bytes: &top.bytes,
        };
        let token = |token: &'a v1::TokenLogprob| Token {
            token: &token.token,
            logprob: finite(token.logprob),
            bytes: &token.bytes,
            top_logprobs: token.top_logprobs.iter().map(alternative).collect(),
        };
        Self { content: tokens.iter().map(token).collect(), refusal: None }
    }
}

/// Of a completion.
#[derive(Debug, Serialize)]
pub struct TextLogprobs<'a> {
    tokens: Vec<&'a str>,
    token_logprobs: Vec<f32>,
    /// `null` where no alternatives were asked for.
    top_logprobs: Option<Vec<Top<'a>>>,
    text_offset: Vec<usize>,
}

#[derive(Debug)]
struct Top<'a>(&'a [v1::TopLogprob]);

impl Serialize for Top<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for top in self.0 {
            map.serialize_entry(&top.token, &finite(top.logprob))?;
        }
        map.end()
    }
}

impl<'a> TextLogprobs<'a> {
    /// `offset` counts the characters of the answer before these tokens, and is moved on. A character that is made of
    /// several tokens begins at the first of them.
    #[must_use]
    pub fn new(tokens: &'a [v1::TokenLogprob], offset: &mut usize) -> Self {
        let text_offset = tokens.iter().map(|token| {
            let at = *offset;
            // Bytes 10xxxxxx go on with a character, all others begin one.
            *offset += token.bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
            at
        });
        let text_offset = text_offset.collect();
        let alternatives = tokens.iter().any(|token| !token.top_logprobs.is_empty());
        Self {
            tokens: tokens.iter().map(|token| token.token.as_str()).collect(),
            token_logprobs: tokens.iter().map(|token| finite(token.logprob)).collect(),
            top_logprobs: alternatives.then(|| tokens.iter().map(|token| Top(&token.top_logprobs)).collect()),
            text_offset,
        }
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, bytes: &'static [u8], top: &[(&str, f32)]) -> v1::TokenLogprob {
        let top = top.iter().map(|(token, logprob)| v1::TopLogprob {
            token: (*token).into(),
            logprob: *logprob,
            bytes: token.as_bytes().to_vec().into(),
        });
        v1::TokenLogprob { token: text.into(), logprob: -0.5, bytes: bytes.into(), top_logprobs: top.collect() }
    }

    #[test]
    fn chat_form() {
        let tokens = [token("Hé", "Hé".as_bytes(), &[("a", -0.25), ("b", f32::NEG_INFINITY)])];
        assert_eq!(
            serde_json::to_string(&Logprobs::from(&tokens[..])).unwrap(),
            r#"{"content":[{"token":"Hé","logprob":-0.5,"bytes":[72,195,169],"top_logprobs":[{"token":"a","logprob":-0.25,"bytes":[97]},{"token":"b","logprob":-9999.0,"bytes":[98]}]}],"refusal":null}"#
        );
    }

    #[test]
    fn legacy_form_counts_characters_across_chunks() {
        let mut offset = 0;
        let first = [token("Hé", "Hé".as_bytes(), &[]), token("\u{fffd}", b"\xe6\xb0", &[])];
        assert_eq!(
            serde_json::to_string(&TextLogprobs::new(&first, &mut offset)).unwrap(),
            "{\"tokens\":[\"Hé\",\"\u{fffd}\"],\"token_logprobs\":[-0.5,-0.5],\"top_logprobs\":null,\"text_offset\":[0,2]}"
        );
        let second = [token("\u{fffd}", b"\xb4", &[]), token("!", b"!", &[("!", -0.5), ("?", -2.0)])];
        assert_eq!(
            serde_json::to_string(&TextLogprobs::new(&second, &mut offset)).unwrap(),
            "{\"tokens\":[\"\u{fffd}\",\"!\"],\"token_logprobs\":[-0.5,-0.5],\"top_logprobs\":[{},{\"!\":-0.5,\"?\":-2.0}],\"text_offset\":[3,3]}"
        );
        assert_eq!(offset, 4);
    }
}
