//! What of a model is on a GPU: what a build could put there ([`FLAVOUR`]), what a Load asks for, and, once the weights are
//! read, what really came to be. llama.cpp says nothing where a device is missing or refuses a tensor: the model then runs
//! on the CPU, and slowly. Only its log tells how large its buffers are and where, so that is what is looked at
//! ([`Buffers`]).

use std::ffi::{CStr, c_char};

use llama_cpp_2::{
    llama_backend::LlamaBackend,
    model::{LlamaModel, params::LlamaModelParams},
};
use temperd::{gguf::Weights, wire::engine::Load};

pub mod placed;

use placed::{Device, Memory, Placed};

use crate::buffers::Buffers;

/// What this binary was built for.
pub const FLAVOUR: &str = if cfg!(feature = "cuda") {
    "cuda"
} else if cfg!(feature = "vulkan") {
    "vulkan"
} else {
    "cpu"
};

/// The name that Mesa's software device gives itself; its memory is that of the host, though it counts as a GPU with its
/// own. Tests run on it.
const SOFTWARE: &str = "llvmpipe";

/// Whether this flavour is asked for layers on a GPU and finds none.
pub fn lacking(backend: &LlamaBackend, load: &Load) -> bool {
    FLAVOUR != "cpu" && load.gpu_layers != 0 && !backend.supports_gpu_offload()
}

/// Refuses what [`lacking`] finds: without that, the model would be read and run on the CPU, by a flavour that has no
/// reason to.
///
/// # Errors
/// What to do.
pub fn check(backend: &LlamaBackend, load: &Load) -> Result<(), String> {
    if lacking(backend, load) {
        return Err(format!(
            "the {FLAVOUR} engine finds no device: look at the driver, and whether the daemon's user may open it (groups \
             video and render); without GPU layers (engine.gpu_layers = 0) it runs on the CPU"
        ));
    }
    Ok(())
}

/// Puts so many layers on a GPU, all of them where it is negative.
///
/// # Errors
/// None that is known.
pub fn place(params: LlamaModelParams, layers: i32) -> Result<LlamaModelParams, String> {
    match u32::try_from(layers) {
        Ok(0) => without(params),
        Ok(layers) => Ok(params.with_n_gpu_layers(layers)),
        Err(_) => Ok(params),
    }
}

/// Uses no device at all. With a device and no layers on it, llama.cpp still has it multiply the matrices of large steps.
///
/// # Errors
/// None that is known.
pub fn without(params: LlamaModelParams) -> Result<LlamaModelParams, String> {
    params.with_n_gpu_layers(0).with_devices(&[]).map_err(|error| error.to_string())
}

/// What came to be, by the buffers that llama.cpp told of while it read these weights.
pub fn placed(backend: &LlamaBackend, buffers: &Buffers, weights: &Weights, model: &LlamaModel, load: &Load) -> Placed {
    // llama.cpp counts the output layer too.
    let layers = if backend.supports_gpu_offload() { model.n_layer() + 1 } else { 0 };
    let asked = u32::try_from(load.gpu_layers).unwrap_or(layers).min(layers);
    let placed = Placed::new((layers, asked), weights, &devices(), buffers);
    if asked > 0 {
        let Placed { gpu_layers, gpu_bytes, .. } = placed;
        let device = &placed.device;
        tracing::info!("{gpu_layers} of {layers} layers are on {device}: {gpu_bytes} bytes; {}", free());
        if gpu_layers < asked {
            tracing::warn!("{asked} layers were to be on a GPU, {gpu_layers} are");
        }
    }
    placed
}

/// The GPUs that there are. Their memory is not asked for: on CUDA that alone takes some hundred MB of it.
fn devices() -> Vec<Device> {
    // SAFETY: the backends are initialised, of which a `LlamaBackend` is proof; devices live as long as the process, and
    // every index below their count is valid.
    unsafe {
        (0..llama_cpp_sys_2::ggml_backend_dev_count())
            .filter_map(|index| {
                let device = llama_cpp_sys_2::ggml_backend_dev_get(index);
                let memory = match llama_cpp_sys_2::ggml_backend_dev_type(device) {
                    llama_cpp_sys_2::GGML_BACKEND_DEVICE_TYPE_GPU => Memory::Own,
                    llama_cpp_sys_2::GGML_BACKEND_DEVICE_TYPE_IGPU => Memory::Shared,
                    _ => return None,
                };
                let name = text(llama_cpp_sys_2::ggml_backend_dev_name(device));
                let description = text(llama_cpp_sys_2::ggml_backend_dev_description(device));
                let memory = if description.starts_with(SOFTWARE) { Memory::Shared } else { memory };
                Some(Device { name, description, memory })
            })
            .collect()
    }
}

/// # Safety
/// Null, or a C string that lives as long as this call.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// For people: what is free on each GPU. Where a driver cannot tell, it says 0.
fn free() -> String {
    let known = |bytes: usize| if bytes == 0 { "unknown".to_owned() } else { format!("{} MiB", bytes >> 20) };
    let devices = llama_cpp_2::list_llama_ggml_backend_devices();
    let gpus = devices.iter().filter(|device| {
        use llama_cpp_2::LlamaBackendDeviceType::{Gpu, IntegratedGpu};
        matches!(device.device_type, Gpu | IntegratedGpu)
    });
    let each =
        gpus.map(|gpu| format!("{} has {} of {} free", gpu.name, known(gpu.memory_free), known(gpu.memory_total)));
    each.collect::<Vec<_>>().join(", ")
}
