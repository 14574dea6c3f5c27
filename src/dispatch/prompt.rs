//! From a request's input to the tokens the engine reads, and whether they fit.

use crate::{
    chat::Prompter,
    engine::{EngineHandle, TokeniseError},
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
) -> Result<Option<Vec<u32>>, RequestError> {
    let segments = match input {
        Input::Chat(turns) => prompter.chat(turns).map_err(|error| RequestError::invalid("messages", error))?,
        Input::Raw(prompt) => prompter.raw(prompt),
    };
    match engine.tokenise(segments).await {
        Ok(tokens) => fits(tokens, context).map(Some),
        Err(TokeniseError::Gone) => Ok(None),
        Err(error @ TokeniseError::Engine(_)) => Err(RequestError::new(ErrorCode::Internal, error.to_string())),
    }
}

/// A prompt must leave room for one token of the answer; it is never cut.
fn fits(tokens: Vec<u32>, context: u32) -> Result<Vec<u32>, RequestError> {
    if tokens.is_empty() {
        return Err(RequestError::new(ErrorCode::InvalidRequest, "the prompt has no tokens"));
    }
    if tokens.len() < context as usize {
        return Ok(tokens);
    }
    Err(RequestError::new(
        ErrorCode::ContextLengthExceeded,
        format!(
            "the prompt has {} tokens; the context holds {context}, of which one is kept for the answer",
            tokens.len()
        ),
    )
    .with_numbers(context as usize, tokens.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_leaves_room_for_one_token() {
        assert!(fits(vec![1; 255], 256).is_ok());
        let error = fits(vec![1; 256], 256).expect_err("too long");
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::ContextLengthExceeded, Some(256), Some(256)));
        assert_eq!(fits(vec![], 256).expect_err("empty").code, ErrorCode::InvalidRequest);
    }
}
