//! Whether the daemon can answer, and why not. Pure.

use crate::governor::Admit;

/// Where the model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Model {
    /// A process reads it, or will; `crashed` says how the last one came to its end, where that was by itself.
    Loading { crashed: Option<String> },
    /// Requests can run.
    Ready,
    /// It cannot be had; the reason.
    Failed(String),
    /// It is not in memory. Where it is `asleep`, the next request loads it.
    Unloaded { asleep: bool },
}

impl Model {
    /// As the status writes it.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Loading { .. } => "loading",
            Self::Ready => "ready",
            Self::Failed(_) => "failed",
            Self::Unloaded { .. } => "unloaded",
        }
    }

    /// What is wrong with it.
    pub(super) fn error(&self) -> Option<String> {
        match self {
            Self::Failed(reason) => Some(reason.clone()),
            Self::Loading { crashed } => crashed.clone(),
            _ => None,
        }
    }
}

/// What keeps it from answering; ready where there is nothing. A sleeping daemon is ready: were it said not to be, nobody
/// would ask it, and it would sleep for ever.
pub(super) fn reasons(draining: bool, model: &Model, admit: Admit) -> Vec<String> {
    if draining {
        return vec!["draining".into()];
    }
    let held = (admit != Admit::Run).then_some("hold");
    let model = match model {
        Model::Ready | Model::Unloaded { asleep: true } => &[][..],
        Model::Loading { crashed: None } => &["model_loading"],
        Model::Loading { crashed: Some(_) } => &["model_loading", "engine_crashed"],
        Model::Failed(_) => &["model_failed"],
        Model::Unloaded { asleep: false } => &["model_unloaded"],
    };
    held.iter().chain(model).map(|reason| (*reason).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_what_can_answer_now_or_after_waking() {
        let unloaded = |asleep| Model::Unloaded { asleep };
        for (model, admit, expected) in [
            (Model::Ready, Admit::Run, &[][..]),
            (Model::Ready, Admit::Hold, &["hold"]),
            (unloaded(true), Admit::Run, &[]),
            (unloaded(false), Admit::Unload, &["hold", "model_unloaded"]),
            (unloaded(false), Admit::Run, &["model_unloaded"]),
            (Model::Loading { crashed: None }, Admit::Run, &["model_loading"]),
            (Model::Loading { crashed: Some("by signal 6".into()) }, Admit::Run, &["model_loading", "engine_crashed"]),
            (Model::Failed("it is torn".into()), Admit::Run, &["model_failed"]),
        ] {
            assert_eq!(reasons(false, &model, admit), expected, "{model:?}, {admit:?}");
            assert_eq!(reasons(true, &model, admit), ["draining"]);
        }
    }
}
