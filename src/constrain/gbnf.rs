//! llama.cpp's grammars (GBNF), as llguidance's.
//!
//! The language stays exactly the same, which is not a matter of course: llguidance splits text into lexemes and takes
//! the longest, a GBNF grammar knows characters only. So a grammar without recursion becomes one single lexeme, that
//! ends with the answer, and any other one gets a lexeme for each character: none of them is the beginning of another.
//!
//! Beyond llama.cpp, left recursion is fine. Not taken are references to tokens (`<…>`), which would let an answer hold
//! what is no text, and what llama.cpp reads but nobody means: a rule defined twice, an empty class, a range backwards,
//! a repetition of a repetition without parentheses.

mod lark;
mod parse;

pub use parse::SyntaxError;

/// Rules of a grammar.
const RULES: usize = 512;
/// Parentheses within each other. llguidance takes 28.
const NESTING: usize = 20;
/// The most that a repetition can count, as in llama.cpp.
const REPEATS: u32 = 2000;

/// Writes a grammar in llguidance's variant of Lark.
///
/// # Errors
/// What is wrong with it, and where.
pub fn to_lark(grammar: &str) -> Result<String, SyntaxError> {
    lark::write(&parse::parse(grammar)?)
}

/// A choice of sequences.
type Choice = Vec<Vec<Item>>;

/// One element of a sequence, repeated.
#[derive(Debug)]
struct Item {
    what: What,
    min: u32,
    /// `None`: without end.
    max: Option<u32>,
}

#[derive(Debug)]
enum What {
    Text(String),
    /// Ranges of characters, and whether all others are meant.
    Class(Vec<(char, char)>, bool),
    /// Index of a rule.
    Rule(usize),
    Group(Choice),
}

/// A grammar whose rules are all defined.
#[derive(Debug)]
struct Grammar {
    rules: Vec<Choice>,
    root: usize,
}
