//! What answers must obey, in the batch loop: a matcher per sequence says which tokens may follow, and takes those that
//! did. Drafted tokens are sampled like all others, so it never sees one that is not in the answer.

use std::thread::{self, JoinHandle};

use llama_cpp_2::{model::LlamaModel, token_type::LlamaTokenAttr};
use temperd::{
    constrain::{Constrainer, Constraint, Matcher, Tokens},
    wire::engine::Start,
};

use crate::{answer::Taken, sequence::Sequence};

/// The vocabulary as constraints see it, or why they cannot.
pub enum Constraints {
    /// It is being prepared, beside the reading of the weights: most requests do not need it.
    Preparing(JoinHandle<Result<Constrainer, String>>),
    /// It is there.
    Prepared(Result<Constrainer, String>),
}

/// Prepares constraints for this vocabulary.
///
/// # Errors
/// No thread.
pub fn prepare(model: &LlamaModel) -> Result<Constraints, String> {
    let vocab = model.vocab();
    let mut ends = Vec::new();
    let tokens: Vec<Vec<u8>> = (vocab.tokens())
        .map(|token| {
            if vocab.is_eog(token) {
                ends.extend(u32::try_from(token.0));
                return Vec::new();
            }
            // As an answer shows it; control tokens have no text there.
            let control = vocab.attr(token).intersects(LlamaTokenAttr::Control | LlamaTokenAttr::Unknown);
            if control { Vec::new() } else { vocab.token_to_piece(token, false, None) }
        })
        .collect();
    let preparing = thread::Builder::new().name("constraints".into()).spawn(move || Constrainer::new(&tokens, &ends));
    preparing.map(Constraints::Preparing).map_err(|error| format!("no thread to prepare constraints: {error}"))
}

impl Constraints {
    /// Whether nothing is prepared any more.
    pub fn prepared(&self) -> bool {
        match self {
            Self::Preparing(thread) => thread.is_finished(),
            Self::Prepared(_) => true,
        }
    }

    /// Waits until it is there.
    fn constrainer(&mut self) -> Result<&Constrainer, String> {
        let failed = || Err("it failed".to_owned());
        let prepared = match std::mem::replace(self, Self::Prepared(failed())) {
            Self::Preparing(thread) => {
                let prepared = thread.join().unwrap_or_else(|_| failed());
                prepared.inspect_err(|error| tracing::warn!("this vocabulary takes no schemas and grammars: {error}"))
            }
            Self::Prepared(prepared) => prepared,
        };
        *self = Self::Prepared(prepared);
        match self {
            Self::Prepared(Ok(constrainer)) => Ok(constrainer),
            Self::Prepared(Err(error)) => Err(format!("the vocabulary takes no constraints: {error}")),
            Self::Preparing(_) => Err("the vocabulary is still prepared".to_owned()),
        }
    }

    /// The matcher of a sequence that is to be started; `None` where it may answer anything.
    ///
    /// # Errors
    /// Why its constraint cannot be compiled.
    pub fn matcher(&mut self, start: &mut Start) -> Result<Option<Matcher>, String> {
        let constraint = match (start.grammar.take(), start.json_schema.take()) {
            (None, None) => return Ok(None),
            (Some(grammar), _) => Constraint::Grammar(grammar),
            (None, Some(schema)) => Constraint::Schema(schema),
        };
        self.constrainer()?.matcher(&constraint).map(Some)
    }
}

impl Sequence {
    /// The tokens that may follow; `None` where all may.
    ///
    /// # Errors
    /// A limit of the constraint's work; the sequence cannot go on.
    pub fn allowed(&mut self) -> Result<Option<Tokens>, String> {
        self.matcher.as_mut().map(Matcher::allowed).transpose()
    }

    /// Takes a token of the answer into the constraint. Where nothing but the end may follow, this is the end: another
    /// step would bring nothing, and an answer that is complete was not cut by its length.
    ///
    /// # Errors
    /// As [`Self::allowed`].
    pub fn obey(&mut self, token: u32, taken: &mut Taken) -> Result<(), String> {
        let Some(matcher) = self.matcher.as_mut().filter(|_| taken.end != Some("stop")) else { return Ok(()) };
        matcher.take(token)?;
        if matcher.complete() {
            taken.text.push_str(&self.answer.rest());
            taken.end = Some("stop");
        }
        Ok(())
    }
}
