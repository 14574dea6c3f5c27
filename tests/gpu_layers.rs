//! Layers on a GPU, for real: `temperd-engine-vulkan`, which `TEMPERD_TEST_VULKAN` names, on Mesa's software device. That is
//! a GPU to llama.cpp, whose buffers and failures are those of any other one; only its memory is the machine's own.

#[path = "engine/harness.rs"]
mod harness;

use std::path::PathBuf;

use harness::{Answer, Engine, hello, load, model, start};
use temperd::{
    engine::frames,
    gguf::{self, Weights},
    wire::engine::{Load, Ready, Start},
};

const MIB: u64 = 1 << 20;
/// Of the small model, the output layer among them.
const LAYERS: u32 = 31;
/// Enough to name a capital. The device decodes some tokens a second.
const TOKENS: u32 = 8;
/// Between the log probabilities of the two likeliest tokens: kernels of another device round otherwise.
const NEAR: f32 = 0.5;
/// Mesa's device says that it is a CPU, which llama.cpp takes only where it is told to.
const DEVICE: (&str, &str) = ("GGML_VK_VISIBLE_DEVICES", "0");

/// The engine, greeted; `None` where there is none to test.
fn vulkan(environment: &[(&str, &str)]) -> Option<Engine> {
    let Some(binary) = std::env::var_os("TEMPERD_TEST_VULKAN") else {
        eprintln!("skipped: TEMPERD_TEST_VULKAN names no engine; scripts/build-vulkan builds one");
        return None;
    };
    let mut engine = Engine::of(&PathBuf::from(binary), "vulkan", environment);
    engine.send(hello(frames::PROTOCOL));
    Some(engine)
}

fn with_layers(gpu_layers: i32) -> Load {
    // Small steps: the device takes half a minute to measure large ones.
    Load { gpu_layers, parallel: 1, n_batch: 32, n_ubatch: 32, lookup: false, ..load(&model()) }
}

fn answer(engine: &mut Engine) -> Answer {
    let prompt = engine.chat("What is the capital of France?");
    engine.answer(Start { logprobs: true, top_logprobs: 2, ..start(1, prompt, TOKENS) })
}

fn weights() -> Weights {
    gguf::inspect(&model()).expect("the small model").weights
}

/// Bytes of the device's buffers for weights, by ggml's own words.
fn reported(engine: &Engine) -> u64 {
    let lines = engine
        .logs
        .iter()
        .filter_map(|log| log.message.split_once("Vulkan0 model buffer size =")?.1.strip_suffix("MiB"));
    let mib: f64 = lines.map(|size| size.trim().parse::<f64>().expect("a number of MiB")).sum();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size that llama.cpp has printed")]
    let bytes = (mib * MIB as f64) as u64;
    bytes
}

/// The buffers are as large as the weights of so many layers.
fn confirm(ready: &Ready, engine: &Engine, layers: u32) {
    let expected: u64 = weights().to_gpu().take(layers as usize).sum();
    let reported = reported(engine);
    assert!(reported.abs_diff(expected) <= expected / 100, "{layers} layers take {expected}, ggml says {reported}");
    assert!(ready.gpu_bytes.abs_diff(reported) <= MIB / 10, "{} and {reported}", ready.gpu_bytes);
    assert_eq!((ready.layers, ready.gpu_layers), (LAYERS, layers));
}

#[test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
fn layers_come_and_go_and_buffers_confirm_it() {
    let Some(mut cpu) = vulkan(&[DEVICE]).map(|_| Engine::with_environment(&[])) else { return };
    let plain = cpu.try_load(with_layers(-1)).expect("the CPU takes it");
    assert_eq!((plain.layers, plain.gpu_layers, plain.gpu_bytes), (0, 0, 0));
    let on_cpu = answer(&mut cpu);
    assert!(on_cpu.text().contains("Paris"), "{:?}", on_cpu.text());
    drop(cpu);

    for layers in [30, 12, 0, 30] {
        let mut engine = vulkan(&[DEVICE]).expect("it was there before");
        let ready = engine.try_load(with_layers(layers)).expect("the device takes it");
        let layers = layers.unsigned_abs();
        let answer = answer(&mut engine);
        confirm(&ready, &engine, layers);
        if layers == 0 {
            assert_eq!(answer.tokens, on_cpu.tokens);
            assert_eq!((ready.gpu_device.as_str(), ready.resident_bytes), ("", 0));
            // Not even for large steps: no buffer of any kind is there.
            assert!(!engine.logs.iter().any(|log| log.message.contains("Vulkan")), "{:?}", engine.logs);
        } else {
            answer.assert_like(&on_cpu, NEAR, &format!("{layers} layers on the GPU"));
            assert!(answer.text().contains("Paris"), "{layers} layers: {:?}", answer.text());
            assert!(!ready.gpu_device.is_empty());
        }
        if ready.gpu_device.starts_with("llvmpipe") {
            // Memory of the machine, and the file is mapped: a layer less gives back what it took.
            assert_eq!((ready.resident_bytes, ready.bytes_per_gpu_layer), (ready.gpu_bytes, weights().of_a_layer()));
        }
    }
}

#[test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
fn all_layers_are_meant_where_none_are_named() {
    let Some(mut engine) = vulkan(&[DEVICE]) else { return };
    let ready = engine.try_load(with_layers(-1)).expect("the device takes it");
    confirm(&ready, &engine, LAYERS);
}

#[test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
fn a_device_without_room_fails_the_load_and_the_cpu_takes_it() {
    // ggml's own variable: a device that gives no buffer larger than that. Each matrix alone would fit.
    let Some(mut engine) = vulkan(&[DEVICE, ("GGML_VK_FORCE_MAX_BUFFER_SIZE", "33554432")]) else { return };
    let failed = engine.try_load(with_layers(30)).expect_err("the buffer is larger");
    assert!(failed.message.contains("Vulkan0") && !failed.no_device, "{failed:?}");
    let ready = engine.try_load(with_layers(0)).expect("the CPU takes it");
    assert_eq!((ready.gpu_layers, ready.gpu_bytes), (0, 0));
    assert!(answer(&mut engine).text().contains("Paris"));
}

#[test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
fn what_a_device_leaves_to_the_cpu_is_not_counted() {
    // It takes no matrix of the output's size, and llama.cpp says nothing of it.
    let small = [DEVICE, ("GGML_VK_FORCE_MAX_BUFFER_SIZE", "8388608"), ("GGML_VK_SUBALLOCATION_BLOCK_SIZE", "8388608")];
    let Some(mut engine) = vulkan(&small) else { return };
    let ready = engine.try_load(with_layers(-1)).expect("the CPU takes the rest");
    assert!((1..LAYERS).contains(&ready.gpu_layers), "{ready:?}");
    assert!(engine.logs.iter().any(|log| log.level == "warn" && log.message.contains("31 layers were to be")));
}

#[test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
fn without_a_device_it_says_so_and_still_has_the_cpu() {
    let Some(mut engine) = vulkan(&[("GGML_VK_VISIBLE_DEVICES", "")]) else { return };
    for layers in [-1, 12] {
        let failed = engine.try_load(with_layers(layers)).expect_err("there is no device");
        assert!(failed.no_device && failed.message.contains("engine.gpu_layers = 0"), "{failed:?}");
    }
    let ready = engine.try_load(with_layers(0)).expect("the CPU takes it");
    assert_eq!((ready.layers, ready.gpu_layers, ready.gpu_bytes), (0, 0, 0));
}
