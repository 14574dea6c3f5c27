//! Answers that obey a JSON schema or a grammar: which tokens may follow, by llguidance.
//!
//! The daemon compiles a constraint against single bytes at admission ([`check`]), so that what cannot be compiled is
//! refused with the reason before the engine sees it. The engine compiles it against its vocabulary ([`Constrainer`])
//! and asks a [`Matcher`] per sequence.
//!
//! A grammar is in llama.cpp's GBNF, but not run by it: its stacks of an ambiguous grammar grow without bound, it aborts
//! the process on a token it did not expect, and it prints grammars that it cannot read. [`gbnf`] writes it in
//! llguidance's language instead, so that the same limits hold for both.

use std::{fmt, sync::Arc, thread};

use llguidance::{
    ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
    panic_utils,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use zeroize::Zeroize;

pub mod check;
pub mod gbnf;
mod schema;

/// A set of tokens.
pub type Tokens = llguidance::toktrie::SimpleVob;

/// Bytes of a schema or a grammar.
pub const BYTES: usize = 64 * 1024;
/// The compilers recurse; the limits of [`schema`] and [`gbnf`] keep them within this. Memory that is not touched is not
/// taken.
const STACK: usize = 64 * 1024 * 1024;
/// States of one answer's lexer, of one to two KiB each.
const STATES: usize = 20_000;
/// Work on the expressions of one constraint, up to some 100 ms.
const FUEL: u64 = 500_000;
/// Symbols of one constraint, up to some 500 ms: an object of 1,500 properties, all optional.
const SYMBOLS: usize = 10_000;
/// Work on one set of tokens, up to some 50 ms; 5,000 are the most that grammars of whole languages were seen to need.
const ITEMS: usize = 50_000;
/// Bytes of a reason.
const REASON: usize = 300;
/// The reason where llguidance has none.
const UNCOMPILED: &str = "it cannot be compiled";

/// What an answer must obey. Its text is overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub enum Constraint {
    /// A JSON schema, as text.
    Schema(String),
    /// A grammar in GBNF.
    Grammar(String),
}

impl Constraint {
    /// The field of a request that carries it.
    #[must_use]
    pub fn param(&self) -> &'static str {
        match self {
            Self::Schema(_) => "response_format",
            Self::Grammar(_) => "grammar",
        }
    }
}

impl Drop for Constraint {
    fn drop(&mut self) {
        let (Self::Schema(text) | Self::Grammar(text)) = self;
        text.zeroize();
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schema(text) => write!(f, "Schema({} bytes)", text.len()),
            Self::Grammar(text) => write!(f, "Grammar({} bytes)", text.len()),
        }
    }
}

/// A vocabulary, prepared for constraining.
pub struct Constrainer(ParserFactory);

impl Constrainer {
    /// Prepares a vocabulary: the bytes of each token, none for one that no text may hold, and the tokens that end an
    /// answer, which may follow exactly where the constraint allows the end. Takes about 5 µs per token.
    ///
    /// # Errors
    /// Why not.
    pub fn new(tokens: &[Vec<u8>], ends: &[u32]) -> Result<Self, String> {
        let slices = SlicedBiasComputer::general_slices();
        panic_utils::catch_unwind(|| Self::with_slices(tokens, ends, &slices)).map_err(|error| reason(&error))
    }

    /// A vocabulary of all bytes, for a look at a constraint.
    ///
    /// # Errors
    /// None that is known.
    pub fn of_bytes() -> Result<Self, String> {
        let bytes: Vec<_> = (0..=u8::MAX).map(|byte| vec![byte]).chain([Vec::new()]).collect();
        Self::with_slices(&bytes, &[256], &[]).map_err(|error| reason(&error))
    }

    fn with_slices(tokens: &[Vec<u8>], ends: &[u32], slices: &[String]) -> anyhow::Result<Self> {
        let end = ends.first().ok_or_else(|| anyhow::anyhow!("the vocabulary has no token that ends an answer"))?;
        let count = u32::try_from(tokens.len())?;
        anyhow::ensure!(ends.iter().all(|end| *end < count), "an end token is not in the vocabulary");
        let trie = TokTrie::from(&TokRxInfo::new(count, *end), tokens).with_eos_tokens(ends);
        // Not canonical: which tokens make up a text that is sure to come is left to the model, as it is without.
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), slices)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: FUEL,
            max_lexer_states: STATES,
            max_grammar_size: SYMBOLS,
            step_max_items: ITEMS,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self(factory))
    }

    /// A matcher that has seen nothing.
    ///
    /// # Errors
    /// Why the constraint cannot be compiled.
    pub fn matcher(&self, constraint: &Constraint) -> Result<Matcher, String> {
        thread::scope(|scope| {
            let compiler = thread::Builder::new().name("constrain".into()).stack_size(STACK);
            let compiler = compiler.spawn_scoped(scope, || self.compile(constraint));
            let compiled = compiler.map_err(|error| format!("no thread to compile it: {error}"))?.join();
            compiled.unwrap_or_else(|_| Err(UNCOMPILED.to_owned()))
        })
    }

    fn compile(&self, constraint: &Constraint) -> Result<Matcher, String> {
        let grammar = match constraint {
            Constraint::Schema(text) => schema::grammar(text)?,
            Constraint::Grammar(text) => {
                TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(|error| error.to_string())?)
            }
        };
        let parser = self.0.create_parser(grammar).map_err(|error| reason(&error))?;
        Ok(Matcher(llguidance::Matcher::new(Ok(parser))))
    }
}

/// Where one answer is within its constraint.
pub struct Matcher(llguidance::Matcher);

impl Matcher {
    /// The tokens that may follow.
    ///
    /// # Errors
    /// A limit of the constraint's work; the answer cannot go on.
    pub fn allowed(&mut self) -> Result<Tokens, String> {
        self.0.compute_mask_or_eos().map_err(|error| reason(&error))
    }

    /// Takes a token that was allowed and is no end.
    ///
    /// # Errors
    /// As [`Self::allowed`].
    pub fn take(&mut self, token: u32) -> Result<(), String> {
        self.0.consume_token(token).map_err(|error| reason(&error))
    }

    /// Whether nothing but the end may follow.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.0.is_stopped()
    }
}

/// llguidance's errors: the first line, of a length that can be shown. A panic of it is a fault of ours to see.
fn reason(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.starts_with("panic") {
        return UNCOMPILED.to_owned();
    }
    let mut end = line.len().min(REASON);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
