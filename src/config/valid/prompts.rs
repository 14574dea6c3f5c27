//! `[[system_prompt]]`: texts of the operator's that are kept read, each under a name of its own.

use super::{Check, Place, Setting};
use crate::config::{SharePrefix, SystemPrompt, file::SystemPromptKeys};

/// Most of them; the engine has the same bound.
const PROMPTS: usize = 16;
/// Bytes of a name, which is the name of a file too.
const NAME_BYTES: usize = 64;

/// Bytes of a text.
const TEXT_BYTES: usize = 65_536;

/// All of them; what is wrong with one is reported, and it is left out.
pub(super) fn system_prompts(
    list: Vec<SystemPromptKeys>,
    share: SharePrefix,
    check: &mut Check<'_>,
) -> Vec<SystemPrompt> {
    if let (Some(keys), false) = (list.first(), share.public()) {
        let section = Place::section("system_prompt", keys.line);
        check.error(&section, "is of use to nobody with engine.share_prefix = \"client\": leave out one of them");
    }
    if let Some(keys) = list.get(PROMPTS) {
        let section = Place::section("system_prompt", keys.line);
        check.error(&section, format_args!("is one too many, at most {PROMPTS} are taken"));
    }
    let mut prompts: Vec<SystemPrompt> = Vec::new();
    for keys in list {
        let section = Place::section("system_prompt", keys.line);
        let name = name(keys.name, &section, &prompts, check);
        let text = text(keys.text, &section, check);
        if let (Some(name), Some(text)) = (name, text) {
            prompts.push(SystemPrompt { name, text });
        }
    }
    prompts
}

fn name(setting: Setting<String>, section: &Place, others: &[SystemPrompt], check: &mut Check<'_>) -> Option<String> {
    let (name, place) = match setting {
        Setting::Given(name, place) => (name, place),
        Setting::Bad => return None,
        Setting::Absent => {
            check.error(section, "needs a `name`, after which its image is called");
            return None;
        }
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !(1..=NAME_BYTES).contains(&name.len()) || !name.bytes().all(plain) {
        check.error(&place, format_args!("is {name:?}, must be 1 to {NAME_BYTES} of A-Z, a-z, 0-9, `_` and `-`"));
    } else if others.iter().any(|other| other.name == name) {
        check.error(&place, format_args!("is {name:?}, which another system prompt is called already"));
    } else {
        return Some(name);
    }
    None
}

fn text(setting: Setting<String>, section: &Place, check: &mut Check<'_>) -> Option<String> {
    match setting {
        Setting::Given(text, _) if (1..=TEXT_BYTES).contains(&text.len()) => return Some(text),
        Setting::Given(text, place) => {
            check.error(&place, format_args!("has {} bytes, must have 1 to {TEXT_BYTES}", text.len()));
        }
        Setting::Bad => {}
        Setting::Absent => check.error(section, "needs a `text`, the system message as requests send it"),
    }
    None
}
