//! The adapters that requests choose by name: which there are, and which of them the engine cannot use.

use std::sync::Arc;

use crate::{
    config::Adapter,
    request::{ErrorCode, RequestError},
    wire::engine::AdapterFailed,
};

/// All configured adapters. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Adapters(Arc<[Adapter]>);

impl Adapters {
    pub(super) fn new(adapters: &[Adapter]) -> Self {
        Self(adapters.into())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|adapter| adapter.name.as_str())
    }

    /// Whether a request for this adapter can be served, where the engine could not use those that `failed`.
    pub(super) fn check(&self, name: Option<&str>, failed: &[AdapterFailed]) -> Result<(), RequestError> {
        let Some(name) = name else { return Ok(()) };
        if !self.names().any(|known| known == name) {
            let names: Vec<_> = self.names().map(|name| format!("`{name}`")).collect();
            let there = if names.is_empty() { "none is".to_owned() } else { format!("there is {}", names.join(", ")) };
            let message = format_args!("there is no adapter of this name; {there} configured");
            return Err(RequestError::invalid("adapter", message));
        }
        match failed.iter().find(|failed| failed.name == name) {
            None => Ok(()),
            Some(AdapterFailed { name, message }) => {
                let message = format!("adapter: `{name}` cannot be used: {message}");
                let error = RequestError::new(ErrorCode::ModelUnavailable, message);
                Err(RequestError { param: Some("adapter".into()), ..error })
            }
        }
    }

    /// Number and scale of an adapter for the engine; number 0 is the model as it is.
    pub(super) fn chosen(&self, name: Option<&str>) -> (u32, f32) {
        let found = (1..).zip(self.0.iter()).find(|(_, adapter)| Some(adapter.name.as_str()) == name);
        found.map_or((0, 0.0), |(number, adapter)| (number, adapter.scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(names: &[&str]) -> Adapters {
        let adapter = |name: &&str| Adapter { name: (*name).into(), path: "x.gguf".into(), scale: 0.5 };
        Adapters::new(&names.iter().map(adapter).collect::<Vec<_>>())
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
        let error = adapters(&["a", "b"]).check(Some("secret"), &[]).expect_err("unknown");
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidRequest, Some("adapter")));
        assert!(error.message.contains("`a`, `b`") && !error.message.contains("secret"), "{}", error.message);
        let none = adapters(&[]).check(Some("a"), &[]).expect_err("unknown");
        assert!(none.message.contains("none is configured"), "{}", none.message);
        assert!(adapters(&[]).check(None, &[]).is_ok());
    }

    #[test]
    fn one_that_cannot_be_used_is_named_with_the_reason_and_the_others_work() {
        let failed = [AdapterFailed { name: "a".into(), message: "it is torn".into() }];
        let adapters = adapters(&["a", "b"]);
        let error = adapters.check(Some("a"), &failed).expect_err("torn");
        assert_eq!(error.code, ErrorCode::ModelUnavailable);
        assert_eq!(error.message, "adapter: `a` cannot be used: it is torn");
        assert!(adapters.check(Some("b"), &failed).is_ok() && adapters.check(None, &failed).is_ok());
        assert_eq!((adapters.chosen(Some("b")), adapters.chosen(None)), ((2, 0.5), (0, 0.0)));
    }
}
