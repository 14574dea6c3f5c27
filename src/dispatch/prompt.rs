//! From a request's input to the tokens the engine reads, and whether they fit.

use super::tokens::Tokens;
use crate::{
    chat::Prompter,
    engine::{EngineHandle, TokeniseError},
    request::{ErrorCode, Input, RequestError},
};

/// No known vocabulary has text tokens longer than this; more bytes than `context` times it cannot fit.
const LONGEST_TOKEN: usize = 128;

/// What the engine reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    /// The tokens; those of several texts one after the other.
    pub(super) tokens: Tokens,
    /// Tokens of each text, where vectors are wanted.
    pub(super) lengths: Vec<u32>,
    /// How many of the tokens, from the first, are the operator's.
    pub(super) public_prefix: u32,
}

/// The check while no engine can tokenise: refuses only what surely does not fit.
pub(super) fn check_bytes(input: &Input, context: u32) -> Result<(), RequestError> {
    let limit = (context as usize).saturating_mul(LONGEST_TOKEN);
    let bytes = match input {
        // Each is read by itself.
        Input::Texts(texts) => texts.iter().map(String::len).max().unwrap_or(0),
        Input::Chat(_) | Input::Raw(_) => input.len(),
    };
    if bytes <= limit {
        return Ok(());
    }
    Err(RequestError::new(
        ErrorCode::ContextLengthExceeded,
        format!("the text has {} bytes, more than the context of {context} tokens can hold", bytes),
    )
    .with_numbers(limit, bytes))
}

/// Renders and tokenises. `None` where the engine went away meanwhile.
pub(super) async fn prepare(
    input: &Input,
    prompter: &Prompter,
    engine: &EngineHandle,
    context: u32,
) -> Result<Option<Prompt>, RequestError> {
    let (segments, public) = match input {
        Input::Chat(turns) => (
            prompter.chat(turns).map_err(|error| RequestError::invalid("messages", error))?,
            prompter.public(turns).unwrap_or_default(),
        ),
        Input::Raw(prompt) => (prompter.raw(prompt), Vec::new()),
        Input::Texts(texts) => return prepare_texts(texts, engine, context).await,
    };
    match engine.tokenise(segments, public).await {
        Ok((tokens, public_prefix)) => {
            fits(Prompt { tokens: tokens.into(), public_prefix, lengths: Vec::new() }, context).map(Some)
        }
        Err(error) => gone(error),
    }
}

fn gone(error: TokeniseError) -> Result<Option<Prompt>, RequestError> {
    match error {
        TokeniseError::Gone => Ok(None),
        TokeniseError::Engine(_) => Err(RequestError::new(ErrorCode::Internal, error.to_string())),
    }
}

/// One after the other, so that a request with many texts leaves the tokeniser to others in between.
async fn prepare_texts(texts: &[String], engine: &EngineHandle, context: u32) -> Result<Option<Prompt>, RequestError> {
    let mut prompt = Prompt::default();
    for (index, text) in texts.iter().enumerate() {
        match engine.tokenise_text(text).await {
            Ok(tokens) => {
                prompt.lengths.push(text_fits(index, tokens.len(), context)?);
                prompt.tokens.append(tokens);
            }
            Err(error) => return gone(error),
        }
    }
    Ok(Some(prompt))
}

/// A text may fill the context: nothing is written after it.
fn text_fits(index: usize, tokens: usize, context: u32) -> Result<u32, RequestError> {
    let param = format!("input[{index}]");
    match u32::try_from(tokens) {
        Ok(0) => Err(RequestError::invalid(&param, "has no tokens")),
        Ok(length) if length <= context => Ok(length),
        _ => {
            let message = format!("{param}: has {tokens} tokens, the context holds {context}");
            let error = RequestError::new(ErrorCode::ContextLengthExceeded, message);
            Err(RequestError { param: Some(param), ..error }.with_numbers(context as usize, tokens))
        }
    }
}

/// A prompt must leave room for one token of the answer; it is never cut.
fn fits(prompt: Prompt, context: u32) -> Result<Prompt, RequestError> {
    if prompt.tokens.is_empty() {
        return Err(RequestError::new(ErrorCode::InvalidRequest, "the prompt has no tokens"));
    }
    if prompt.tokens.len() < context as usize {
        return Ok(prompt);
    }
    Err(RequestError::new(
        ErrorCode::ContextLengthExceeded,
        format!(
            "the prompt has {} tokens; the context holds {context}, of which one is kept for the answer",
            prompt.tokens.len()
        ),
    )
    .with_numbers(context as usize, prompt.tokens.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_fill_the_context_and_has_tokens() {
        assert_eq!(text_fits(0, 256, 256), Ok(256));
        let error = text_fits(3, 257, 256).expect_err("too long");
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::ContextLengthExceeded, Some(256), Some(257)));
        assert_eq!(error.param.as_deref(), Some("input[3]"));
        assert_eq!(text_fits(1, 0, 256).expect_err("empty").param.as_deref(), Some("input[1]"));
    }

    #[test]
    fn while_nothing_tokenises_each_text_is_measured_by_itself() {
        let text = "x".repeat(10 * LONGEST_TOKEN);
        assert!(check_bytes(&Input::Texts(vec![text.clone(), text.clone()]), 10).is_ok());
        assert!(check_bytes(&Input::Texts(vec![text.clone(), format!("{text}x")]), 10).is_err());
    }

    #[test]
    fn a_prompt_leaves_room_for_one_token() {
        let fits = |tokens: Vec<u32>| fits(Prompt { tokens: tokens.into(), ..Prompt::default() }, 256);
        assert!(fits(vec![1; 255]).is_ok());
        let error = fits(vec![1; 256]).expect_err("too long");
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::ContextLengthExceeded, Some(256), Some(256)));
        assert_eq!(fits(vec![]).expect_err("empty").code, ErrorCode::InvalidRequest);
    }
}
