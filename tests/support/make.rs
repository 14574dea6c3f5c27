//! Files that tests make with Python (`tests/python/make_*.py`), in the environment that `scripts/setup --tests` makes.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// Runs a script, named from the root of the tree.
pub fn run(script: &str, arguments: &[&OsStr]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("TEMPERD_TEST_PYTHON").map_or_else(|| root.join("target/venv/bin/python"), PathBuf::from);
    let output = Command::new(&python).arg(root.join(script)).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup --tests", python.display()));
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A tiny model of this kind in this folder.
pub fn model(kind: &str, folder: &Path) -> PathBuf {
    let file = folder.join(format!("{kind}.gguf"));
    run("tests/python/make_model.py", &[OsStr::new(kind), file.as_os_str()]);
    file
}

/// A model of Mistral-7B's shapes and quantisation with so many layers, of random weights, as long as its folder lasts.
pub fn mistral_shape(layers: u32) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = folder.path().join("shape.gguf");
    run("scripts/mistral-shape", &[file.as_os_str(), OsStr::new("--layers"), OsStr::new(&layers.to_string())]);
    (folder, file)
}

/// A random LoRA adapter for this model, another one for each seed; of another `width`, it fits no model.
pub fn adapter(model: &Path, file: &Path, seed: u32, width: Option<u32>) {
    let (seed, width) = (seed.to_string(), width.map(|width| width.to_string()));
    let mut arguments = vec![model.as_os_str(), file.as_os_str(), OsStr::new(&seed)];
    arguments.extend(width.as_ref().map(OsStr::new));
    run("tests/python/make_adapter.py", &arguments);
}
