//! Contexts of one model, all alike but for the size of their KV cache.

use llama_cpp_2::{context::LlamaContext, llama_backend::LlamaBackend, model::LlamaModel};
use temperd::wire::engine::Load;

use crate::{
    attention, elastic,
    load::{self, Plan},
    log::Errors,
};

/// Cells of a small context.
const SMALL: u32 = 256;

/// Makes contexts.
#[derive(Clone, Copy)]
pub struct Contexts<'a> {
    backend: &'a LlamaBackend,
    errors: &'a Errors,
    model: &'a LlamaModel,
    load: &'a Load,
    sequences: u32,
    /// Threads of steps of one row.
    pub threads: u32,
}

impl<'a> Contexts<'a> {
    /// For this load and plan.
    pub fn new(
        backend: &'a LlamaBackend,
        errors: &'a Errors,
        model: &'a LlamaModel,
        load: &'a Load,
        plan: &Plan,
    ) -> Self {
        let sequences = u32::try_from(plan.slots).unwrap_or(1) + u32::from(plan.batch_invariant);
        Self { backend, errors, model, load, sequences, threads: load.threads }
    }

    /// The model.
    pub fn model(&self) -> &'a LlamaModel {
        self.model
    }

    /// The most cells that a context of this load has.
    pub fn most(&self) -> u32 {
        elastic::rounded(self.load.context)
    }

    /// A context of so many cells, up to [`Self::most`].
    ///
    /// # Errors
    /// Why not, with its size.
    pub fn make(&self, cells: u32) -> Result<LlamaContext<'a>, String> {
        let load = self.load;
        let cells = cells.min(load.context);
        let n_ubatch = match load.flash_attention.as_str() {
            "off" => attention::rows(self.model.n_head(), cells, load.n_ubatch),
            _ => load.n_ubatch,
        };
        let params =
            load::params(&Load { context: cells, n_ubatch, threads: self.threads, ..load.clone() }, self.sequences)?;
        self.errors.clear();
        self.model.new_context(self.backend, params).map_err(|error| {
            let reason = self.errors.reason(&error.to_string());
            format!("a context of {cells} tokens (K {}, V {}): {reason}", load.kv_type_k, load.kv_type_v)
        })
    }

    /// A context for steps of one row by so many threads.
    ///
    /// # Errors
    /// Why not.
    pub fn small(&self, threads: usize) -> Result<LlamaContext<'a>, String> {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        let load =
            Load { context: SMALL, n_batch: 1, n_ubatch: 1, threads, threads_batch: threads, ..self.load.clone() };
        self.errors.clear();
        let made = self.model.new_context(self.backend, load::params(&load, 1)?);
        made.map_err(|error| self.errors.reason(&error.to_string()))
    }

    /// llama.cpp's words for what went wrong last, else these.
    pub fn reason(&self, error: &str) -> String {
        self.errors.reason(error)
    }
}
