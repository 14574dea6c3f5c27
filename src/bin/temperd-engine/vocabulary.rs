//! The vocabulary alone: read in a moment, before the weights, and used beside them by a thread of its own.

use std::{path::Path, sync::mpsc::Receiver};

use llama_cpp_2::{
    llama_backend::LlamaBackend,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
    token_type::LlamaTokenAttr,
    vocab::LlamaVocab,
};
use temperd::wire::engine::{ControlToken, Segment, Tokenise, Tokenised, Vocabulary, from_engine::Frame};

use crate::{gpu, link::Link, log::Errors};

/// What the tokeniser is told.
pub enum Job {
    /// Use this vocabulary from now on.
    Vocabulary(LlamaModel),
    /// Turn these texts into tokens.
    Tokenise(Tokenise),
}

/// Reads the vocabulary of a model file.
///
/// # Errors
/// Why it cannot be read, without the file's name.
pub fn load(backend: &LlamaBackend, errors: &Errors, path: &Path) -> Result<LlamaModel, String> {
    let params = gpu::without(LlamaModelParams::default().with_vocab_only(true))?;
    let model =
        LlamaModel::load_from_file(backend, path, &params).map_err(|error| errors.reason(&error.to_string()))?;
    match meta(&model, "tokenizer.ggml.model").as_deref() {
        // llama.cpp aborts where it is asked to tokenise without a tokenizer.
        None | Some("none" | "no_vocab") => Err("it has no tokenizer".to_owned()),
        Some(_) => Ok(model),
    }
}

/// What the daemon wants to know of it.
pub fn describe(model: &LlamaModel) -> Vocabulary {
    let vocab = model.vocab();
    let tokenizer = meta(model, "tokenizer.ggml.model").unwrap_or_default();
    let prefix = meta(model, "tokenizer.ggml.add_space_prefix").map(|value| value == "true");
    Vocabulary {
        chat_template: meta(model, "tokenizer.chat_template"),
        bos: text(&vocab, vocab.bos()),
        eos: text(&vocab, vocab.eos()),
        add_bos: vocab.should_add_bos(),
        control_tokens: vocab.tokens().filter_map(|token| control(&vocab, token)).collect(),
        n_vocab: u32::try_from(vocab.n_tokens()).unwrap_or_default(),
        n_ctx_train: architecture(model, "context_length").and_then(|n| n.parse().ok()).unwrap_or_default(),
        name: meta(model, "general.name").filter(|name| !name.is_empty()).unwrap_or_else(|| description(model)),
        add_space_prefix: match tokenizer.as_str() {
            "llama" => prefix.unwrap_or(true),
            // Unigram tokenizers know the prefix too, off by default; the others ignore the key.
            "t5" => prefix.unwrap_or(false),
            _ => false,
        },
        tokenizer,
    }
}

/// Architecture and size in words, for people.
pub fn description(model: &LlamaModel) -> String {
    let architecture = meta(model, "general.architecture").unwrap_or_else(|| "unknown architecture".to_owned());
    let millions = model.n_params() / 1_000_000;
    format!("{architecture}, {millions} million parameters, {} MiB", model.size() / (1024 * 1024))
}

/// The tokeniser thread.
pub fn tokenise(jobs: &Receiver<Job>, link: &Link) {
    let mut model = None;
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Vocabulary(new) => model = Some(new),
            Job::Tokenise(Tokenise { id, segments, add_bos, add_special, public }) => {
                let answer = match &model {
                    Some(model) => {
                        let tokens_of = |segments: &[Segment]| tokens(&model.vocab(), segments, add_bos, add_special);
                        let (tokens, public) = (tokens_of(&segments), tokens_of(&public));
                        let common = tokens.iter().zip(&public).take_while(|(a, b)| a == b).count();
                        Tokenised { id, tokens, public_prefix: u32::try_from(common).unwrap_or(0), error: None }
                    }
                    None => Tokenised { id, error: Some("no model is loaded".to_owned()), ..Tokenised::default() },
                };
                link.send(Frame::Tokenised(answer));
            }
        }
    }
}

fn tokens(vocab: &LlamaVocab<'_>, segments: &[Segment], add_bos: bool, add_special: bool) -> Vec<u32> {
    let mut tokens = Vec::new();
    for segment in segments {
        tokens.extend(vocab.tokenize(segment.text.as_bytes(), add_special, segment.special));
    }
    let bos = vocab.bos();
    if add_bos && !add_special && vocab.should_add_bos() && bos.0 >= 0 && tokens.first() != Some(&bos) {
        tokens.insert(0, bos);
    }
    tokens.into_iter().filter_map(|token| u32::try_from(token.0).ok()).collect()
}

/// Tokens whose text llama.cpp parses where it is told to (`Segment.special`), and user-defined ones, which it parses in
/// any text: files exist that declare `<|im_start|>` as one of those.
fn control(vocab: &LlamaVocab<'_>, token: LlamaToken) -> Option<ControlToken> {
    let attributes = vocab.attr(token);
    let parsed = LlamaTokenAttr::Control | LlamaTokenAttr::Unknown | LlamaTokenAttr::UserDefined;
    if !attributes.intersects(parsed) {
        return None;
    }
    let text = text(vocab, token);
    u32::try_from(token.0).ok().filter(|_| !text.is_empty()).map(|id| ControlToken {
        id,
        text,
        user_defined: !attributes.intersects(LlamaTokenAttr::Control | LlamaTokenAttr::Unknown),
        strip_before: attributes.contains(LlamaTokenAttr::LStrip),
        strip_after: attributes.contains(LlamaTokenAttr::RStrip),
    })
}

/// A token's text, empty where the vocabulary has no such token.
fn text(vocab: &LlamaVocab<'_>, token: LlamaToken) -> String {
    // llama.cpp throws on a token that does not exist, and nothing catches it.
    if token.0 < 0 || token.0 >= vocab.n_tokens() {
        return String::new();
    }
    String::from_utf8_lossy(&vocab.token_to_piece(token, true, None)).into_owned()
}

/// A value of the model's own architecture, `<architecture>.<key>`.
pub fn architecture(model: &LlamaModel, key: &str) -> Option<String> {
    meta(model, &format!("{}.{key}", meta(model, "general.architecture")?))
}

/// A value of the file.
pub fn meta(model: &LlamaModel, key: &str) -> Option<String> {
    model.meta_val_str(key).ok()
}
