//! Findings on the adapters, as far as the headers tell; whether the tensors fit, the engine finds out when it loads them.

use super::Finding;
use crate::{
    config::Adapter,
    gguf::{self, Summary},
};

const THING: &str = "adapter";

/// One adapter beside the model, whose header is `None` where it cannot be read.
pub(super) fn adapter(adapter: &Adapter, model: Option<&Summary>) -> Finding {
    let name = &adapter.name;
    match gguf::inspect(&adapter.path) {
        // These speak of a model file; it is one that belongs to a model.
        Err(error) => Finding::problem(THING, format!("{name}: {error}; until then requests for it are refused")),
        Ok(summary) => match misfit(&summary, model) {
            Some(why) => Finding::problem(
                THING,
                format!("{name}: {} {why}; requests for it are refused", adapter.path.display()),
            ),
            None => {
                let (path, scale) = (adapter.path.display(), adapter.scale);
                Finding::ok(THING, format!("{name}, {path}, scale {scale}"))
            }
        },
    }
}

fn misfit(adapter: &Summary, model: Option<&Summary>) -> Option<String> {
    if adapter.kind.as_deref() != Some("adapter") {
        let remedy = "is no adapter: make one of it with convert_lora_to_gguf.py, as docs/adapters.md says";
        return Some(remedy.into());
    }
    if adapter.adapter.as_deref() != Some("lora") {
        return Some("is an adapter of another kind than LoRA, which is not supported".into());
    }
    let architecture = |summary: &Summary| summary.architecture.clone().unwrap_or_else(|| "unknown".into());
    let (its, ours) = (architecture(adapter), architecture(model?));
    (its != ours)
        .then(|| format!("is for a model of architecture {its}, this one is {ours}: convert it with its own base"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Grade;

    fn summary(kind: &str, adapter: &str, architecture: &str) -> Summary {
        let some = |text: &str| Some(text.to_owned());
        Summary {
            architecture: some(architecture),
            name: None,
            kind: some(kind),
            adapter: some(adapter),
            chat_template: false,
            tokenizer: None,
            context_length: None,
            block_count: None,
            tensors: 2,
            file_bytes: 1,
            needed_bytes: 1,
            kv_bytes_per_token: None,
            weights: crate::gguf::Weights::default(),
        }
    }

    #[test]
    fn what_is_no_adapter_of_this_model_is_said() {
        let model = summary("model", "", "llama");
        let why = |kind, adapter, architecture| misfit(&summary(kind, adapter, architecture), Some(&model));
        assert_eq!(why("adapter", "lora", "llama"), None);
        assert!(why("model", "lora", "llama").is_some_and(|why| why.contains("convert_lora_to_gguf.py")));
        assert!(why("adapter", "cvec", "llama").is_some_and(|why| why.contains("another kind")));
        assert!(why("adapter", "lora", "qwen2").is_some_and(|why| why.contains("architecture qwen2")));
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let gone = Adapter { name: "a".into(), path: "/nowhere/a.gguf".into(), scale: 1.0 };
        let finding = adapter(&gone, None);
        assert_eq!(finding.grade, Grade::Problem);
        assert!(finding.text.contains("a: ") && finding.text.contains("/nowhere/a.gguf"), "{}", finding.text);
    }
}
