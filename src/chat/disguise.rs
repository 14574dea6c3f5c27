//! Message texts in disguise: private-use characters stand for what clients wrote, while a template renders.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::control::{ControlTokens, Piece};
use crate::request::Turn;

/// The private-use characters, without those that would be mistaken: some 137,000, twice the different characters that
/// fit into 256 KiB. Where a larger payload limit lets a message use them up, what is left keeps its own form.
fn free_characters(taken: HashSet<char>) -> impl Iterator<Item = char> {
    ('\u{f0000}'..='\u{ffffd}')
        .chain('\u{100000}'..='\u{10fffd}')
        .chain('\u{e000}'..='\u{f8ff}')
        .filter(move |c| !taken.contains(c))
}

fn is_private(c: char) -> bool {
    matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}')
}

fn private<'a>(texts: impl Iterator<Item = &'a str>) -> HashSet<char> {
    texts.flat_map(str::chars).filter(|c| is_private(*c)).collect()
}

fn contents(turns: &[Turn]) -> impl Iterator<Item = &str> {
    turns.iter().map(|turn| turn.content.as_str())
}

/// One character for each control token that a message spells out.
pub(super) struct Sentinels {
    by_place: HashMap<usize, char>,
    by_character: HashMap<char, usize>,
}

impl Sentinels {
    /// `reserved`: private-use characters of the template.
    pub(super) fn new(turns: &[Turn], reserved: &HashSet<char>, control: &ControlTokens) -> Self {
        let mut by_place = HashMap::new();
        let mut by_character = HashMap::new();
        let places: HashSet<usize> = contents(turns).flat_map(|text| control.found(text)).collect();
        if !places.is_empty() {
            let mut taken = private(contents(turns).chain(control.texts()));
            taken.extend(reserved);
            for (place, character) in places.into_iter().zip(free_characters(taken)) {
                by_place.insert(place, character);
                by_character.insert(character, place);
            }
        }
        Self { by_place, by_character }
    }

    /// A message for the template.
    pub(super) fn hide(&self, content: &str, control: &ControlTokens) -> String {
        let mut hidden = String::with_capacity(content.len());
        for piece in control.pieces(content) {
            match piece {
                Piece::Text(text) => hidden.push_str(text),
                Piece::Control(place) => match self.by_place.get(&place) {
                    Some(character) => hidden.push(*character),
                    None => hidden.push_str(control.text(place)),
                },
            }
        }
        hidden
    }

    /// What a part of the rendered text says.
    pub(super) fn reveal(&self, text: &str, control: &ControlTokens) -> String {
        if self.by_character.is_empty() {
            return text.to_owned();
        }
        let mut plain = String::with_capacity(text.len());
        for c in text.chars() {
            match self.by_character.get(&c) {
                Some(place) => plain.push_str(control.text(*place)),
                None => plain.push(c),
            }
        }
        plain
    }
}

/// One character for each different visible character of the messages. White space stays, so trimming works.
pub(super) struct Taint {
    hidden: HashMap<char, char>,
    plain: HashMap<char, char>,
}

impl Taint {
    /// `reserved`: private-use characters of the template.
    pub(super) fn new(turns: &[Turn], reserved: &HashSet<char>, control: &ControlTokens) -> Self {
        let mut taken = private(control.texts());
        taken.extend(reserved);
        // In order, so that the characters of which control tokens are made never are among those left over.
        let visible: BTreeSet<char> = contents(turns).flat_map(str::chars).filter(|c| !c.is_whitespace()).collect();
        let hidden: HashMap<char, char> = visible.into_iter().zip(free_characters(taken)).collect();
        let plain = hidden.iter().map(|(plain, hidden)| (*hidden, *plain)).collect();
        Self { hidden, plain }
    }

    /// A message for the template.
    pub(super) fn hide(&self, content: &str) -> String {
        content.chars().map(|c| self.hidden.get(&c).copied().unwrap_or(c)).collect()
    }

    /// What a part of the rendered text says.
    pub(super) fn reveal(&self, text: &str) -> String {
        text.chars().map(|c| self.plain.get(&c).copied().unwrap_or(c)).collect()
    }

    /// Whether a text holds anything of a message.
    pub(super) fn is_in(&self, text: &str) -> bool {
        text.chars().any(|c| self.plain.contains_key(&c))
    }
}
