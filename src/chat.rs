//! Conversation → prompt, with the model's own chat template, and never a control token that a client wrote.
//!
//! ```text
//! messages ─▶ disguise ─▶ template ─▶ control ─▶ segments for the engine's Tokenise
//!            (hide what    (Jinja      (split at
//!             clients       from the    control tokens,
//!             wrote)        GGUF)       put texts back)
//! ```
//!
//! A conversation is rendered twice. In the first rendering only the control tokens that messages spell out are
//! replaced by private-use characters, so templates that trim, split or compare message texts work as their maker
//! meant. In the second one every visible character of every message is replaced, so whatever looks like a control
//! token there was written by the template. Where both agree on the control tokens, the first is the prompt; where
//! they do not (a message ends in `<|im_` and the template goes on with `end|>`), the second one is.
//!
//! Mistral's v3 form is built in ([`mistral`]): the templates in circulation do not tokenise as its maker does.

use std::sync::Arc;

use crate::{
    request::{ErrorCode, Role, Turn},
    wire::engine::{Segment, Vocabulary},
};

mod control;
mod disguise;
mod mistral;
mod template;
#[cfg(test)]
mod tests;

use control::ControlTokens;
use disguise::{Sentinels, Taint};
use template::{Clock, Failure, Template};

/// Stands for what a client wrote: a text with which hardly any message begins (an asterism).
const STAND_IN: &str = "\u{2042}";
/// Longest text from a template or a model file that an error repeats, in bytes.
const QUOTE_BYTES: usize = 200;

/// Why a conversation did not become a prompt. No variant holds text of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The GGUF has no `tokenizer.chat_template`.
    #[error(
        "model `{model}` has no chat template (`tokenizer.chat_template` in its GGUF): use an instruct model's GGUF, or \
         send a raw prompt to completions"
    )]
    Missing {
        /// The model's name.
        model: String,
    },
    /// The template is not valid Jinja.
    #[error(
        "the chat template of model `{model}` does not parse, line {line}: {detail}; use a GGUF with a working template, \
         or send a raw prompt to completions"
    )]
    Syntax {
        /// The model's name.
        model: String,
        /// Line of the template.
        line: usize,
        /// What the parser says.
        detail: String,
    },
    /// The template itself refused the conversation, for example its order of roles.
    #[error("the model's chat template refuses this conversation{}", .reason.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// The template's words; absent where they may hold text of a message.
        reason: Option<String>,
    },
    /// The template failed.
    #[error("the model's chat template does not render this conversation: {what}, line {line}")]
    Render {
        /// The kind of failure.
        what: String,
        /// Line of the template; 0 where unknown.
        line: usize,
    },
    /// The template ran for too long.
    #[error("the model's chat template took more than {limit} steps: send fewer messages, or use another GGUF")]
    Steps {
        /// Steps that a rendering may take.
        limit: u64,
    },
    /// The template wrote too much.
    #[error("the model's chat template wrote more than {limit} bytes for this conversation")]
    Length {
        /// Bytes that the rendering might have had.
        limit: usize,
    },
    /// The vocabulary cannot be used.
    #[error("the control tokens of model `{model}` cannot be searched for: {detail}")]
    ControlTokens {
        /// The model's name.
        model: String,
        /// What the search says.
        detail: String,
    },
}

impl TemplateError {
    /// Whose fault it is: `model_unavailable` where no conversation at all can be rendered, else `invalid_request`.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. } | Self::Syntax { .. } | Self::ControlTokens { .. } => ErrorCode::ModelUnavailable,
            Self::Refused { .. } | Self::Render { .. } | Self::Steps { .. } | Self::Length { .. } => {
                ErrorCode::InvalidRequest
            }
        }
    }
}

/// Turns conversations and raw prompts into segments for one vocabulary. Made once per loaded model.
#[derive(Debug)]
pub struct Prompter {
    control: ControlTokens,
    form: Form,
    note: Option<String>,
    /// Whether the engine's tokenizer puts a space in front of each segment without control tokens.
    space_prefix: bool,
}

#[derive(Debug)]
enum Form {
    Template(Box<Template>),
    MistralV3,
    None(TemplateError),
}

impl Prompter {
    /// Prepares for a vocabulary. One without a usable chat template is fine here: [`Self::chat`] then says so.
    ///
    /// # Errors
    /// Control tokens that cannot be searched for.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, TemplateError> {
        Self::with_clock(vocabulary, Arc::new(jiff::Zoned::now))
    }

    /// As [`Self::new`]; the clock answers `strftime_now`.
    fn with_clock(vocabulary: &Vocabulary, clock: Clock) -> Result<Self, TemplateError> {
        let model = cut(&vocabulary.name).to_owned();
        let control = ControlTokens::new(vocabulary)
            .map_err(|error| TemplateError::ControlTokens { model: model.clone(), detail: error.to_string() })?;
        let form = match &vocabulary.chat_template {
            None => Form::None(TemplateError::Missing { model }),
            Some(source) => match Template::new(source, &vocabulary.bos, &vocabulary.eos, clock) {
                Ok(template) => Form::Template(Box::new(template)),
                Err(error) => Form::None(TemplateError::Syntax {
                    model,
                    line: error.line().unwrap_or_default(),
                    detail: cut(error.detail().unwrap_or("syntax error")).to_owned(),
                }),
            },
        };
        let (form, note) = match form {
            Form::Template(template) if mistral::recognise(vocabulary, &template) => {
                (Form::MistralV3, Some(mistral::NOTE.to_owned()))
            }
            Form::None(error) => {
                let note = error.to_string();
                (Form::None(error), Some(note))
            }
            // A template that fails on the simplest conversation should be known before the first client asks.
            Form::Template(template) => {
                let probe = template.render([(Role::User, "a".to_owned())].into_iter());
                let note = probe.err().map(|failure| public(failure, |_| true).to_string());
                (Form::Template(template), note)
            }
            Form::MistralV3 => (form, None),
        };
        Ok(Self { control, form, note, space_prefix: vocabulary.add_space_prefix })
    }

    /// What the operator should know of how prompts are made; the daemon logs it once.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Renders a conversation up to the point where the model answers.
    ///
    /// # Errors
    /// No template, one that does not render, or one that refuses this conversation.
    pub fn chat(&self, turns: &[Turn]) -> Result<Vec<Segment>, TemplateError> {
        match &self.form {
            Form::MistralV3 => mistral::segments(turns, self.space_prefix),
            Form::Template(template) => self.render(template, turns),
            Form::None(error) => Err(error.clone()),
        }
    }

    /// The prompt's public part, which is the operator's: what comes before the first message that a client wrote, and
    /// a stand-in for that message. `None` where the model cannot render it.
    #[must_use]
    pub fn public(&self, turns: &[Turn]) -> Option<Vec<Segment>> {
        let operators = turns.iter().take_while(|turn| turn.role == Role::System);
        let stand_in = Turn { role: Role::User, content: STAND_IN.into() };
        self.chat(&operators.cloned().chain([stand_in]).collect::<Vec<_>>()).ok()
    }

    /// Splits a raw prompt at the control tokens that it spells out.
    #[must_use]
    pub fn raw(&self, prompt: &str) -> Vec<Segment> {
        self.control.segments(prompt, self.space_prefix, ToOwned::to_owned)
    }

    /// The ids of stop texts that are exactly a control token: the engine ends an answer at the token itself, whose text
    /// it never writes.
    #[must_use]
    pub fn stop_tokens(&self, stop: &[String]) -> Vec<u32> {
        stop.iter().filter_map(|text| self.control.id(text)).collect()
    }

    fn render(&self, template: &Template, turns: &[Turn]) -> Result<Vec<Segment>, TemplateError> {
        let taint = Taint::new(turns, template.reserved(), &self.control);
        let tainted = template.render(turns.iter().map(|turn| (turn.role, taint.hide(&turn.content))));
        // Which words are the template's own can only be told here, where no message is readable.
        let tainted = tainted.map_err(|failure| public(failure, |text| !taint.is_in(text)))?;

        let sentinels = Sentinels::new(turns, template.reserved(), &self.control);
        let plain = template
            .render(turns.iter().map(|turn| (turn.role, sentinels.hide(&turn.content, &self.control))))
            .map_err(|failure| public(failure, |_| false))?;

        if self.control.found(&plain).eq(self.control.found(&tainted)) {
            Ok(self.control.segments(&plain, self.space_prefix, |text| sentinels.reveal(text, &self.control)))
        } else {
            Ok(self.control.segments(&tainted, self.space_prefix, |text| taint.reveal(text)))
        }
    }
}

fn public(failure: Failure, may_show: impl Fn(&str) -> bool) -> TemplateError {
    match failure {
        Failure::Raised(text) => {
            TemplateError::Refused { reason: may_show(&text).then(|| cut(&text).to_owned()).filter(|t| !t.is_empty()) }
        }
        Failure::Steps { limit } => TemplateError::Steps { limit },
        Failure::Length { limit } => TemplateError::Length { limit },
        Failure::Other { what, line } => TemplateError::Render { what, line },
    }
}

/// The beginning of a text, cut between characters.
fn cut(text: &str) -> &str {
    let fits = text.char_indices().map(|(start, c)| start + c.len_utf8()).take_while(|end| *end <= QUOTE_BYTES);
    text.get(..fits.last().unwrap_or_default()).unwrap_or_default()
}
