//! The LoRA adapters of a model: read once after the weights, applied to the context when it is their turn.

use std::path::Path;

use llama_cpp_2::{
    context::LlamaContext,
    model::{LlamaLoraAdapter, LlamaModel},
};
use temperd::wire::engine::{Adapter, AdapterFailed};

use crate::{
    adapters::{self, Group},
    load,
    log::Errors,
};

/// An adapter that is there, or why it is not.
struct Entry {
    name: String,
    adapter: Result<LlamaLoraAdapter, String>,
}

/// All adapters of the configuration, in its order.
pub struct Adapters(Vec<Entry>);

impl Adapters {
    /// Reads the files. One that cannot be used is remembered with the reason, and the others work; llama.cpp frees them
    /// with the model.
    pub fn load(model: &mut LlamaModel, errors: &Errors, wanted: &[Adapter]) -> Self {
        let mut read = |wanted: &Adapter| {
            let path = Path::new(&wanted.path);
            load::check(path)?;
            errors.clear();
            model.lora_adapter_init(path).map_err(|error| errors.reason(&error.to_string()))
        };
        let entries = wanted.iter().map(|wanted| {
            let adapter = read(wanted).map_err(|error| format!("{}: {error}", wanted.path));
            match &adapter {
                Ok(_) => tracing::info!("adapter {} is ready", wanted.name),
                Err(error) => tracing::error!("adapter {} cannot be used: {error}", wanted.name),
            }
            Entry { name: wanted.name.clone(), adapter }
        });
        Self(entries.collect())
    }

    /// Those that cannot be used, for the daemon.
    pub fn failed(&self) -> Vec<AdapterFailed> {
        let failed = self.0.iter().filter_map(|entry| {
            let message = entry.adapter.as_ref().err()?.clone();
            Some(AdapterFailed { name: entry.name.clone(), message })
        });
        failed.collect()
    }

    /// The group of a request for this adapter, by its number from 1, at this scale.
    ///
    /// # Errors
    /// Why it cannot be served.
    pub fn group(&self, number: u32, scale: f32) -> Result<Group, String> {
        if number == 0 {
            return Ok(adapters::NONE);
        }
        if !scale.is_finite() {
            return Err(format!("the adapter's scale is {scale}"));
        }
        match self.entry(number) {
            Some(Entry { adapter: Ok(_), .. }) => Ok(adapters::group(number, scale)),
            Some(Entry { name, adapter: Err(error) }) => Err(format!("adapter {name} cannot be used: {error}")),
            None => Err(format!("there is no adapter {number}, only {}", self.0.len())),
        }
    }

    fn entry(&self, number: u32) -> Option<&Entry> {
        self.0.get(index(number)?)
    }

    /// Lets the steps of a context from now on be those of a group.
    ///
    /// # Errors
    /// Why not; which adapter is in force is not known then.
    pub fn apply(&mut self, context: &mut LlamaContext<'_>, group: Group) -> Result<(), String> {
        let Some((number, scale)) = adapters::adapter(group) else {
            // The crate wants any adapter for taking all of them away.
            let any = self.0.iter_mut().find_map(|entry| entry.adapter.as_mut().ok());
            return any.map_or(Ok(()), |any| context.lora_adapter_remove(any).map_err(|error| error.to_string()));
        };
        match index(number).and_then(|at| self.0.get_mut(at)).map(|entry| &mut entry.adapter) {
            Some(Ok(adapter)) => context.lora_adapter_set(adapter, scale).map_err(|error| error.to_string()),
            _ => Err(format!("adapter {number} is not there")),
        }
    }
}

/// Where the adapter of a number stands; they count from 1.
fn index(number: u32) -> Option<usize> {
    usize::try_from(number).ok()?.checked_sub(1)
}
