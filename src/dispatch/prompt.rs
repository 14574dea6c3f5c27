//! From a request's input to the tokens the engine reads, and whether they fit.

use crate::{
    chat::Prompter,
    engine::{EngineHandle, Prompt, TokeniseError},
    request::{ErrorCode, Input, RequestError},
};

/// No known vocabulary has text tokens longer than this; more bytes than `context` times it cannot fit.
const LONGEST_TOKEN: usize = 128;

/// The check while no engine can tokenise: refuses only what surely does not fit.
pub(super) fn check_bytes(input: &Input, context: u32) -> Result<(), RequestError> {
    let limit = (context as usize).saturating_mul(LONGEST_TOKEN);
    if input.len() <= limit {
        return Ok(());
    }
    Err(RequestError::new(
        ErrorCode::ContextLengthExceeded,
        format!("the prompt has {} bytes, more than the context of {context} tokens can hold", input.len()),
    )
    .with_numbers(limit, input.len()))
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
    };
    match engine.tokenise(segments, public).await {
        Ok(prompt) => fits(prompt, context).map(Some),
        Err(TokeniseError::Gone) => Ok(None),
        Err(error @ TokeniseError::Engine(_)) => Err(RequestError::new(ErrorCode::Internal, error.to_string())),
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
    fn a_prompt_leaves_room_for_one_token() {
        let fits = |tokens| fits(Prompt { tokens, public_prefix: 0 }, 256);
        assert!(fits(vec![1; 255]).is_ok());
        let error = fits(vec![1; 256]).expect_err("too long");
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::ContextLengthExceeded, Some(256), Some(256)));
        assert_eq!(fits(vec![]).expect_err("empty").code, ErrorCode::InvalidRequest);
    }
}
