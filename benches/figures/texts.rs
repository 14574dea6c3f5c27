//! Texts of a given number of tokens, never the same twice, so that no cache has seen them.

use std::path::Path;

use anyhow::Result;
use llama_cpp_2::{
    llama_backend::LlamaBackend,
    model::{LlamaModel, params::LlamaModelParams},
};

const WORDS: &str = "the river town old bridge market morning light under every stone carries water slowly people walk \
                     home with bread and fish while children count boats near harbour wall one keeper opens gate when \
                     bell rings twice each winter some birds return early from southern fields where farmers plant \
                     wheat beside long roads that lead over hills into quiet valleys few travellers know";

/// Makes texts.
pub struct Texts {
    model: LlamaModel,
    random: fastrand::Rng,
    // Dropped after the model.
    _backend: LlamaBackend,
}

impl Texts {
    /// By this model's tokenizer.
    pub fn new(model: &Path) -> Result<Self> {
        let backend = LlamaBackend::init()?;
        let params = LlamaModelParams::default().with_vocab_only(true);
        let model = LlamaModel::load_from_file(&backend, model, &params)?;
        Ok(Self { model, random: fastrand::Rng::with_seed(11), _backend: backend })
    }

    /// Tokens of a text.
    pub fn count(&self, text: &str) -> usize {
        self.model.vocab().tokenize(text.as_bytes(), false, false).len()
    }

    /// A text of `tokens` tokens, or one more, that begins with a number of its own.
    pub fn text(&mut self, tokens: usize) -> String {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        let mut text = format!("Note {}:", self.random.u32(1000..10000));
        while self.count(&text) + 1 < tokens {
            let missing = tokens - self.count(&text);
            for _ in 0..missing.div_ceil(2) {
                text.push(' ');
                text.push_str(words[self.random.usize(..words.len())]);
                if self.random.u8(..9) == 0 {
                    text.push('.');
                }
            }
        }
        text
    }
}
