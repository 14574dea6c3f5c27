//! `batch_invariant` with files of types for which a processor may have another kernel where a step has several rows:
//! either every row of logits is the same beside others, bit for bit, or the engine refuses the mode.

#[path = "engine/harness.rs"]
mod harness;

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use harness::{Engine, greedy, load, model, start};
use llama_cpp_sys_2::{
    LLAMA_FTYPE_MOSTLY_F16, LLAMA_FTYPE_MOSTLY_Q4_0, LLAMA_FTYPE_MOSTLY_Q4_1, LLAMA_FTYPE_MOSTLY_Q8_0, llama_ftype,
    llama_model_quantize, llama_model_quantize_default_params,
};
use temperd::wire::engine::{Load, LoadFailed, Start, from_engine, to_engine};

const TYPES: [(&str, llama_ftype); 4] = [
    ("Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1),
    ("Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0),
    ("Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0),
    ("F16", LLAMA_FTYPE_MOSTLY_F16),
];
const ANSWER: u32 = 12;

#[test]
fn the_mode_holds_or_is_refused_whatever_the_type() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    for (name, kind) in TYPES {
        let file = requantised(&model(), kind, folder.path());
        match try_load(&file) {
            Ok(engine) => {
                eprintln!("{name}: holds");
                same_bits(engine, name);
            }
            Err(message) => {
                eprintln!("{name}: {message}");
                assert!(message.contains("batch_invariant cannot hold"), "{name}: {message}");
                assert_ne!(name, "Q4_1", "the small model's own type holds on every processor that was tried");
            }
        }
    }
}

/// Questions one after the other, and all at once.
fn same_bits(mut engine: Engine, name: &str) {
    let questions =
        ["What is a pump?", "Is 40 degrees too hot for it?", "Name three rivers of Europe, and their sources."];
    let prompts = questions.map(|question| engine.chat(question));
    let ask =
        |id, prompt: &Vec<u32>| Start { digests: true, sampling: Some(greedy()), ..start(id, prompt.clone(), ANSWER) };
    let alone: Vec<_> = (1..).zip(&prompts).map(|(id, prompt)| engine.answer(ask(id, prompt)).digests).collect();
    for (id, prompt) in (11..).zip(&prompts) {
        engine.start(ask(id, prompt));
    }
    for (id, alone) in (11..).zip(alone) {
        assert_eq!(engine.finish(id).digests, alone, "{name}, beside others");
    }
}

fn try_load(file: &Path) -> Result<Engine, String> {
    let mut engine = Engine::with_environment(&[("GGML_CPU_TILED_MM", "0")]);
    let invariant =
        Load { batch_invariant: true, gpu_layers: 0, kv_type_v: "q8_0".into(), lookup: false, ..load(file) };
    engine.send(to_engine::Frame::Load(invariant));
    loop {
        match engine.next_but_logs() {
            from_engine::Frame::Ready(_) => return Ok(engine),
            from_engine::Frame::LoadFailed(LoadFailed { message, .. }) => return Err(message),
            _ => {}
        }
    }
}

/// The same model with matrices of another type.
fn requantised(model: &Path, kind: llama_ftype, folder: &Path) -> PathBuf {
    let file = folder.join(format!("{kind}.gguf"));
    let [from, to] = [model, &file].map(|path| CString::new(path.as_os_str().as_bytes()).expect("no NUL in it"));
    // SAFETY: takes nothing and returns plain values.
    let mut params = unsafe { llama_model_quantize_default_params() };
    (params.nthread, params.ftype, params.allow_requantize) = (2, kind, true);
    // SAFETY: both names end with NUL and outlive the call, as do the parameters, whose pointers are null.
    let failed = unsafe { llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) };
    assert_eq!(failed, 0, "type {kind}");
    file
}
