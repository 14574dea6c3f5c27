//! `[[adapter]]`: names that requests can use, each once, and where the files are.

use super::{Check, Place, Setting};
use crate::config::{
    Adapter,
    file::{AdapterKeys, Number},
};

/// Most adapters; each takes memory of its own.
const ADAPTERS: usize = 64;
/// Bytes of a name.
const NAME_BYTES: usize = 64;
/// Largest scale, up or down; an adapter is trained for 1.
const SCALE: f32 = 16.0;

/// All of them; what is wrong with one is reported, and it is left out. `model` is a name that is taken.
pub(super) fn adapters(list: Vec<AdapterKeys>, model: Option<&str>, check: &mut Check<'_>) -> Vec<Adapter> {
    if let Some(keys) = list.get(ADAPTERS) {
        check.error(
            &Place::section("adapter", keys.line),
            format_args!("is one too many, at most {ADAPTERS} are taken"),
        );
    }
    let mut adapters: Vec<Adapter> = Vec::new();
    for keys in list {
        let section = Place::section("adapter", keys.line);
        let name = name(keys.name, &section, model, &adapters, check);
        let path = match keys.path {
            Setting::Given(path, place) => check.not_empty(path.into(), &place),
            Setting::Bad => None,
            Setting::Absent => {
                check.error(&section, "needs a `path`: its GGUF file");
                None
            }
        };
        let scale = scale(keys.scale, check);
        if let (Some(name), Some(path), Some(scale)) = (name, path, scale) {
            adapters.push(Adapter { name, path, scale });
        }
    }
    adapters
}

fn name(
    setting: Setting<String>,
    section: &Place,
    model: Option<&str>,
    others: &[Adapter],
    check: &mut Check<'_>,
) -> Option<String> {
    let (name, place) = match setting {
        Setting::Given(name, place) => (name, place),
        Setting::Bad => return None,
        Setting::Absent => {
            check.error(section, "needs a `name`, by which requests choose it");
            return None;
        }
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=NAME_BYTES).contains(&name.len()) || !name.bytes().all(plain) {
        check.error(&place, format_args!("is {name:?}, must be 1 to {NAME_BYTES} of A-Z, a-z, 0-9, `.`, `_` and `-`"));
    } else if others.iter().any(|other| other.name == name) {
        check.error(&place, format_args!("is {name:?}, which another adapter is called already"));
    } else if model == Some(name.as_str()) {
        check.error(&place, format_args!("is {name:?}, which the model is called; choose another name"));
    } else {
        return Some(name);
    }
    None
}

fn scale(setting: Setting<Number>, check: &mut Check<'_>) -> Option<f32> {
    let (Number(text), place) = match setting {
        Setting::Given(number, place) => (number, place),
        Setting::Bad => return None,
        Setting::Absent => return Some(1.0),
    };
    // TOML allows what Rust does not know: underscores.
    let scale = text.replace('_', "").parse::<f32>().ok().filter(|scale| scale.abs() <= SCALE);
    if scale.is_none() {
        check.error(&place, format_args!("is {text}, must be a number from -{SCALE} to {SCALE}"));
    }
    scale
}
