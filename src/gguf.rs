//! What the header of a GGUF file says, without llama.cpp: whether a file can be a model at all, and how large it is
//! meant to be. The daemon tells a missing, truncated or corrupt file by it, `temperd check` shows it.
//!
//! The crates for this do not fit: `ggus` wants the whole file in memory, `gguf` knows the first version of the format
//! only, `gguf-rs` builds every vocabulary as JSON values, allocates up to 1 GiB for one string that a file announces
//! and computes wrong sizes for types such as BF16; the last point decides whether a file is truncated.
//!
//! A hostile file costs little: nothing is allocated by a number in the file beyond [`KEPT_TEXT`] or [`KEPT_NUMBERS`],
//! and no more than [`HEADER_BYTES`] are read.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::{Path, PathBuf},
};

mod metadata;
mod reader;
mod tensors;
#[cfg(test)]
mod tests;
mod weights;

use metadata::Metadata;
use reader::{Fault, Reader};
pub use weights::Weights;

/// Longest header that is read: the largest vocabularies take some 20 MB.
const HEADER_BYTES: u64 = 256 * 1024 * 1024;
/// Entries of the metadata.
const ENTRIES: u64 = 65_536;
/// Tensors of one file.
const TENSORS: u64 = 262_144;
/// Elements of one array.
const ELEMENTS: u64 = 16 * 1024 * 1024;
/// Longest key or tensor name, in bytes; the format's own limit.
const NAME_BYTES: u64 = 65_535;
/// Bytes kept of a text.
const KEPT_TEXT: u64 = 4096;
/// Elements kept of an array of numbers.
const KEPT_NUMBERS: u64 = 4096;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// `general.architecture`, for example `llama`.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.type`, for example `model` or `adapter`; older files do not have it.
    pub kind: Option<String>,
    /// `adapter.type`, for example `lora`.
    pub adapter: Option<String>,
    /// Whether there is a `tokenizer.chat_template`.
    pub chat_template: bool,
    /// `tokenizer.ggml.model`.
    pub tokenizer: Option<String>,
    /// Tokens that the model was trained for.
    pub context_length: Option<u64>,
    /// Layers.
    pub block_count: Option<u64>,
    /// Tensors in this file.
    pub tensors: u64,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Size that the header and its tensors take, in bytes; the file is not shorter.
    pub needed_bytes: u64,
    /// Bytes of KV cache for each token at 16 bits per value, over all layers; an upper bound where layers attend to a
    /// window only. `None` where the architecture keeps its state otherwise or does not say.
    pub kv_bytes_per_token: Option<u64>,
    /// What layers and output take; of the first file alone where a model is cut into several.
    pub weights: Weights,
}

impl Summary {
    /// Bytes of a KV cache of so many cells, K and V each in f16 or quantised to q8_0. `None` where the file does not say,
    /// or says what no machine holds.
    #[must_use]
    pub fn cache_bytes(&self, cells: u64, quantised: [bool; 2]) -> Option<u64> {
        // In q8_0 a block of 32 values takes 34 bytes, in f16 64 (ggml-common.h); K and V are halves.
        let share: u64 = quantised.iter().map(|quantised| if *quantised { 34 } else { 64 }).sum();
        Some(self.kv_bytes_per_token?.checked_mul(cells)?.checked_mul(share)? / 128)
    }
}

/// Why a file is not a model.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// There is no such file.
    #[error("model file {path} does not exist: check the path, or bring the model with scripts/fetch-model")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A folder, a device, a pipe.
    #[error("{path} is not a regular file: give the path of a .gguf file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The system does not let it be read.
    #[error("model file {path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something else than a GGUF.
    #[error("{path} is not a GGUF file (it does not begin with `GGUF`): convert the model to GGUF")]
    NotGguf {
        /// The file.
        path: PathBuf,
    },
    /// A version of the format that is not read.
    #[error("{path} is GGUF version {version}, only little-endian 2 and 3 are read: convert the model anew")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it names.
        version: u32,
    },
    /// The header contradicts itself or the format.
    #[error("model file {path} is corrupt: {what}, at byte {offset}; fetch it again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The file ends too early.
    #[error("model file {path} is truncated: it needs {needed} bytes and has {actual}; fetch it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that it needs; at least so many where already the header is cut.
        needed: u64,
        /// Bytes that it has.
        actual: u64,
    },
}

/// Reads the header of a file.
///
/// # Errors
/// What keeps the file from being a model.
pub fn inspect(path: &Path) -> Result<Summary, GgufError> {
    let unreadable = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            GgufError::Missing { path: path.to_owned() }
        } else {
            GgufError::Unreadable { path: path.to_owned(), source }
        }
    };
    // Asked before opening: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(GgufError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    read(BufReader::with_capacity(64 * 1024, file), bytes, path)
}

/// As [`inspect`], of a source of this many bytes that errors call `path`.
///
/// # Errors
/// As [`inspect`].
pub fn read(source: impl Read + Seek, bytes: u64, path: &Path) -> Result<Summary, GgufError> {
    summary(source, bytes).map_err(|fault| named(fault, path, bytes))
}

fn named(fault: Fault, path: &Path, actual: u64) -> GgufError {
    let path = path.to_owned();
    match fault {
        Fault::Io(source) => GgufError::Unreadable { path, source },
        Fault::NotGguf => GgufError::NotGguf { path },
        Fault::Version(version) => GgufError::Version { path, version },
        Fault::Corrupt { offset, what } => GgufError::Corrupt { path, offset, what },
        Fault::Truncated { needed } => GgufError::Truncated { path, needed, actual },
    }
}

/// The header of a source of this many bytes.
fn summary(source: impl Read + Seek, bytes: u64) -> Result<Summary, Fault> {
    let mut reader = Reader::new(source, bytes);
    let magic: [u8; 4] = match reader.bytes() {
        // A file of three bytes is no model whose end is missing.
        Err(Fault::Truncated { .. }) => return Err(Fault::NotGguf),
        read => read?,
    };
    if &magic != b"GGUF" {
        return Err(Fault::NotGguf);
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Fault::Version(version));
    }
    let tensors = reader.count("tensors", TENSORS)?;
    let entries = reader.count("metadata entries", ENTRIES)?;
    let metadata = Metadata::read(&mut reader, entries)?;
    let (needed, weights) = tensors::read(&mut reader, tensors, metadata.alignment()?)?;
    if needed > bytes {
        return Err(Fault::Truncated { needed });
    }
    Ok(Summary {
        architecture: metadata.text("general.architecture"),
        name: metadata.text("general.name"),
        kind: metadata.text("general.type"),
        adapter: metadata.text("adapter.type"),
        chat_template: metadata.text("tokenizer.chat_template").is_some(),
        tokenizer: metadata.text("tokenizer.ggml.model"),
        context_length: metadata.of_architecture("context_length"),
        block_count: metadata.of_architecture("block_count"),
        tensors,
        file_bytes: bytes,
        needed_bytes: needed,
        kv_bytes_per_token: metadata.kv_bytes_per_token(),
        weights,
    })
}
