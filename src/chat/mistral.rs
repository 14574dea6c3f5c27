//! The prompt form of Mistral's v3 tokenizer (Mistral-7B-Instruct-v0.3, Mixtral-8x22B, Codestral-22B), as its maker's
//! `mistral-common` encodes it.
//!
//! The templates in circulation do not give these tokens: the first one writes a space before `[/INST]` that the maker
//! does not have, and refuses system prompts; the later one trims answers at both ends, where the maker drops spaces at
//! their end only; both refuse two messages of one role in a row, which the maker joins. So the form is built in here,
//! for vocabularies that are Mistral's and templates that are Mistral's form up to white space.
//!
//! The rules, each checked against `mistral-common` by `tests/prompts.rs`:
//! - `<s>`, then per user message `[INST]` text `[/INST]`, per answer text `</s>`.
//! - Each text is encoded by itself, with SentencePiece's one space in front; an empty text is nothing at all.
//! - Neighbouring messages of one role are joined by an empty line, without the empty ones among them.
//! - System prompts are joined by an empty line and stand before the last user message's text, an empty line between.
//! - A conversation that begins with an answer gets an empty user message before it.

use super::{TemplateError, template::Template};
use crate::{
    request::{Role, Turn},
    wire::engine::{Segment, Vocabulary},
};

/// For the log.
pub(super) const NOTE: &str = "this is Mistral's v3 tokenizer: prompts take the form that Mistral's own mistral-common \
                               gives them, not that of the GGUF's template, which differs in spaces and system prompts";

/// Between joined texts.
const JOIN: &str = "\n\n";

/// Whether the vocabulary is Mistral's v3 and the template is its form, up to white space.
pub(super) fn recognise(vocabulary: &Vocabulary, template: &Template) -> bool {
    let has = |text: &str| vocabulary.control_tokens.iter().any(|token| token.text == text);
    let v3 = vocabulary.tokenizer == "llama"
        && ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"].into_iter().all(has)
        // A later version of the tokenizer has a form of its own for system prompts.
        && !has("[SYSTEM_PROMPT]");
    if !v3 {
        return false;
    }
    let probe = [(Role::User, "a".to_owned()), (Role::Assistant, "b".to_owned()), (Role::User, "c".to_owned())];
    template
        .render(probe.into_iter())
        .is_ok_and(|text| text.split_whitespace().collect::<String>() == "<s>[INST]a[/INST]b</s>[INST]c[/INST]")
}

/// A conversation as the maker encodes it.
pub(super) fn segments(turns: &[Turn], space_prefix: bool) -> Result<Vec<Segment>, TemplateError> {
    check(turns)?;
    let system: Vec<&str> = turns.iter().filter(|turn| turn.role == Role::System).map(|turn| &*turn.content).collect();
    let system = joined(&system);
    let mut messages = joined_by_role(turns);
    if messages.first().is_none_or(|(role, _)| *role != Role::User) {
        messages.insert(0, (Role::User, String::new()));
    }
    if !system.is_empty()
        && let Some((_, content)) = messages.iter_mut().rfind(|(role, _)| *role == Role::User)
    {
        *content = format!("{system}{JOIN}{content}");
    }

    let mut segments = vec![control("<s>")];
    for (role, content) in messages {
        if role == Role::User {
            segments.push(control("[INST]"));
            segments.extend(text(&content, space_prefix));
            segments.push(control("[/INST]"));
        } else {
            segments.extend(text(content.trim_end_matches(' '), space_prefix));
            segments.push(control("</s>"));
        }
    }
    Ok(segments)
}

/// Refuses what the maker refuses.
fn check(turns: &[Turn]) -> Result<(), TemplateError> {
    let refused = |reason: &str| Err(TemplateError::Refused { reason: Some(reason.to_owned()) });
    if turns.last().is_none_or(|turn| turn.role == Role::Assistant) {
        return refused("the last message must not be the assistant's");
    }
    if turns.iter().any(|turn| turn.role == Role::Assistant && turn.content.is_empty()) {
        return refused("a message of the assistant must not be empty");
    }
    let system_after_answer =
        turns.iter().zip(turns.iter().skip(1)).any(|(a, b)| a.role == Role::Assistant && b.role == Role::System);
    if system_after_answer {
        return refused("a system message must not follow one of the assistant");
    }
    Ok(())
}

/// Neighbours of one role as one message; system messages separate neighbours and are left out.
fn joined_by_role(turns: &[Turn]) -> Vec<(Role, String)> {
    turns
        .chunk_by(|a, b| a.role == b.role)
        .filter_map(|group| {
            let role = group.first()?.role;
            let contents: Vec<&str> = group.iter().map(|turn| &*turn.content).collect();
            (role != Role::System).then(|| (role, joined(&contents)))
        })
        .collect()
}

fn joined(texts: &[&str]) -> String {
    texts.iter().copied().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(JOIN)
}

fn control(text: &str) -> Segment {
    Segment { text: text.to_owned(), special: true }
}

/// A text with SentencePiece's space in front, which the tokenizer adds or does not.
fn text(content: &str, space_prefix: bool) -> Option<Segment> {
    if content.is_empty() {
        return None;
    }
    let text = if space_prefix { content.to_owned() } else { format!(" {content}") };
    Some(Segment { text, special: false })
}
