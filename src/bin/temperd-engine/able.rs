//! What a model can do, by what its file says of it.

use llama_cpp_2::model::LlamaModel;

use crate::vocabulary;

/// Models that read a text at once and write none: their use is embeddings or a judgement on the text.
const READERS: [&str; 12] = [
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "t5encoder",
    "clef",
    "wavtokenizer-dec",
];
/// Models that write by another way than one token after the other.
const OTHERS: [&str; 5] = ["t5", "dream", "llada", "llada-moe", "rnd1"];

/// Whether a model of this architecture writes texts, token by token.
///
/// # Errors
/// What it is, and what to do.
pub fn writes(architecture: &str) -> Result<(), String> {
    let why = if READERS.contains(&architecture) {
        "an encoder: it reads texts and writes none"
    } else if OTHERS.contains(&architecture) {
        "no decoder that writes one token after the other"
    } else {
        return Ok(());
    };
    Err(format!(
        "it is of architecture {architecture}, {why}, so it cannot answer; set engine.model to a model that generates \
         text, such as one of llama, qwen3 or gemma3"
    ))
}

/// Tokens that the layers with a sliding window see; `None` where there are none, or the file does not say.
pub fn window(model: &LlamaModel) -> Option<usize> {
    vocabulary::architecture(model, "attention.sliding_window")?.parse().ok().filter(|window| *window > 0)
}

/// Whether cells can be shared, kept and removed one by one. A recurrent model has one state per sequence instead.
pub fn keeps_cells(model: &LlamaModel) -> bool {
    !model.is_recurrent() && !model.is_hybrid()
}

/// Whether all cells can be moved: layers with a sliding window have given some of them away.
pub fn moves_cells(model: &LlamaModel) -> bool {
    keeps_cells(model) && window(model).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_is_named_with_the_way_out() {
        let error = writes("bert").expect_err("it writes nothing");
        assert!(error.contains("architecture bert, an encoder") && error.contains("engine.model"), "{error}");
        assert!(writes("t5").is_err());
        assert_eq!(writes("llama"), Ok(()));
    }
}
