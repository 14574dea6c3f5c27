//! How many layers are on a GPU, and what that means for the machine's memory, by the sizes of buffers. Pure.

use std::iter;

use temperd::gguf::Weights;

use crate::buffers::Buffers;

/// llama.cpp prints sizes in MiB with two digits.
const ROUNDING: u64 = (1 << 20) / 100;
/// A layer counts as there where all but this part of it is: small tensors may stay on the CPU.
const MISSING: u64 = 10;

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What its buffers are called, for example `CUDA0`.
    pub name: String,
    /// For people.
    pub description: String,
    /// Where its buffers are.
    pub memory: Memory,
}

/// The memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Its own, of which the system's readings know nothing.
    Own,
    /// That of the CPU.
    Shared,
}

/// Where the weights are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed {
    /// Layers that could be on a GPU, the output layer among them.
    pub layers: u32,
    /// Those that are.
    pub gpu_layers: u32,
    /// Weights in the memory of GPUs.
    pub gpu_bytes: u64,
    /// What these are called; empty where nothing is on them.
    pub device: String,
    /// Memory of the system that one layer less on the GPU gives back. That is nothing where the GPU has its own; and
    /// nothing where the CPU's copy is no mapped file either, since the layer then only moves. An Orin reads the file by
    /// default (`load_mode = "auto"`), so that it is nothing there too.
    pub bytes_per_gpu_layer: u64,
    /// Memory of the system that the weights hold until the process ends: all but what is mapped or on a GPU with its own
    /// memory.
    pub resident_bytes: u64,
}

impl Placed {
    /// What these buffers of weights mean, where `asked` of `layers` were to be on a GPU.
    pub fn new((layers, asked): (u32, u32), weights: &Weights, devices: &[Device], buffers: &Buffers) -> Self {
        let model = |of: &dyn Fn(&str) -> bool| buffers.bytes("model", of);
        let mapped = |place: &str| place.ends_with("_Mapped");
        let gpu_bytes = model(&|place| devices.iter().any(|device| device.name == place));
        let used = devices.iter().filter(|device| model(&|place| device.name == place) > 0);
        // Before layers are on a GPU, they would go to the one that llama.cpp takes: one with its own memory, if there is any.
        let shared = !devices.is_empty() && devices.iter().all(|device| device.memory == Memory::Shared);
        Self {
            layers,
            gpu_layers: there(weights.to_gpu(), asked, gpu_bytes),
            gpu_bytes,
            device: used.map(|device| device.description.as_str()).collect::<Vec<_>>().join(", "),
            bytes_per_gpu_layer: if shared && model(&mapped) > 0 { weights.of_a_layer() } else { 0 },
            resident_bytes: model(&|place| !mapped(place) && of_the_system(devices, place)),
        }
    }
}

/// Whether a buffer in this place takes memory that the board's readings see.
fn of_the_system(devices: &[Device], place: &str) -> bool {
    !devices.iter().any(|device| device.name == place && device.memory == Memory::Own)
}

/// How many of the first `asked` layers with these sizes are within so many bytes.
fn there(sizes: impl Iterator<Item = u64>, asked: u32, bytes: u64) -> u32 {
    if bytes == 0 {
        return 0;
    }
    let mut sum = 0_u64;
    // Sizes that the file does not tell (one of several) are taken as said.
    let sizes = sizes.chain(iter::repeat(0));
    let within = |size: &u64| {
        sum = sum.saturating_add(*size);
        sum - size / MISSING <= bytes.saturating_add(ROUNDING)
    };
    let most = usize::try_from(asked).unwrap_or(usize::MAX);
    u32::try_from(sizes.take(most).take_while(within).count()).unwrap_or(asked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn weights(layers: &[u64], output: u64) -> Weights {
        Weights { layers: layers.to_vec(), embeddings: 0, output, output_matrix: true }
    }

    fn device(name: &str, memory: Memory) -> Device {
        Device { name: name.into(), description: format!("{name}'s maker"), memory }
    }

    fn buffers(sizes: &[(&str, u64)]) -> Buffers {
        let buffers = Buffers::default();
        for (place, bytes) in sizes {
            let mib = *bytes as f64 / MIB as f64;
            buffers.note(&format!("load_tensors: {place:>12} model buffer size = {mib:8.2} MiB"));
        }
        buffers
    }

    #[test]
    fn layers_count_as_far_as_their_bytes_are_there() {
        let weights = weights(&[10 * MIB, 10 * MIB, 10 * MIB], 30 * MIB);
        let devices = [device("CUDA0", Memory::Own)];
        let on = |asked, bytes| Placed::new((4, asked), &weights, &devices, &buffers(&[("CUDA0", bytes)])).gpu_layers;
        assert_eq!((on(4, 60 * MIB), on(2, 40 * MIB), on(1, 30 * MIB), on(0, 0)), (4, 2, 1, 0));
        // Nothing is there, or less than was asked for, or a little of a layer is missing.
        assert_eq!((on(4, 0), on(4, 41 * MIB), on(4, 59 * MIB + MIB / 2)), (0, 2, 4));
        // More than was asked for is the padding of buffers.
        assert_eq!(on(2, 60 * MIB), 2);
        let unknown = Placed::new((4, 3), &Weights::default(), &devices, &buffers(&[("CUDA0", MIB)]));
        assert_eq!(unknown.gpu_layers, 3);
    }

    #[test]
    fn two_devices_share_the_layers() {
        let devices = [device("CUDA0", Memory::Own), device("CUDA1", Memory::Own), device("CUDA2", Memory::Own)];
        let parts = buffers(&[("CUDA0", 20 * MIB), ("CUDA1", 40 * MIB), ("CPU_Mapped", 5 * MIB)]);
        let placed = Placed::new((4, 4), &weights(&[10 * MIB; 3], 30 * MIB), &devices, &parts);
        assert_eq!((placed.gpu_layers, placed.gpu_bytes), (4, 60 * MIB));
        assert_eq!(placed.device, "CUDA0's maker, CUDA1's maker");
        assert_eq!((placed.bytes_per_gpu_layer, placed.resident_bytes), (0, 0));
    }

    #[test]
    fn what_a_layer_gives_back_depends_on_whose_memory_it_is() {
        let weights = weights(&[10 * MIB; 3], 30 * MIB);
        let of = |devices: &[Device], parts: &[(&str, u64)]| {
            let placed = Placed::new((4, 4), &weights, devices, &buffers(parts));
            (placed.bytes_per_gpu_layer / MIB, placed.resident_bytes / MIB)
        };
        let (own, shared) = ([device("CUDA0", Memory::Own)], [device("CUDA0", Memory::Shared)]);
        assert_eq!(of(&shared, &[("CUDA0", 60 * MIB), ("CPU_Mapped", 5 * MIB)]), (10, 60));
        // An Orin as it is: the file is read.
        assert_eq!(of(&shared, &[("CUDA0", 60 * MIB), ("CUDA_Host", 5 * MIB)]), (0, 65));
        assert_eq!(of(&own, &[("CUDA0", 60 * MIB), ("CPU_Mapped", 5 * MIB)]), (0, 0));
        assert_eq!(of(&own, &[("CUDA0", 60 * MIB), ("CUDA_Host", 5 * MIB)]), (0, 5));
        // A CPU alone: mapped, and with kernels that want their weights in another order.
        assert_eq!(of(&[], &[("CPU_Mapped", 60 * MIB)]), (0, 0));
        assert_eq!(of(&[], &[("CPU_Mapped", 60 * MIB), ("CPU_REPACK", 20 * MIB)]), (0, 20));
        assert_eq!(of(&[], &[("CPU", 60 * MIB)]), (0, 60));
        // Nothing is on the GPU yet: what a layer would take there.
        assert_eq!(of(&shared, &[("CPU_Mapped", 60 * MIB)]), (10, 0));
    }

    proptest! {
        #[test]
        fn what_was_loaded_is_what_is_there(
            sizes in prop::collection::vec(MIB / 4..100 * MIB, 1..80),
            output in MIB / 4..500 * MIB,
            asked in 0_u32..90,
            padding in 0..=MIB / 8,
        ) {
            let weights = weights(&sizes, output);
            let layers = u32::try_from(sizes.len()).expect("few") + 1;
            let asked = asked.min(layers);
            let bytes: u64 = weights.to_gpu().take(asked as usize).sum();
            let parts = buffers(&[("Vulkan0", if asked == 0 { 0 } else { bytes + padding })]);
            let placed = Placed::new((layers, asked), &weights, &[device("Vulkan0", Memory::Own)], &parts);
            prop_assert_eq!(placed.gpu_layers, asked);
        }

        #[test]
        fn a_layer_that_stayed_is_missed(
            sizes in prop::collection::vec(MIB..100 * MIB, 1..80),
            asked in 1_u32..80,
        ) {
            let weights = weights(&sizes, MIB);
            let layers = u32::try_from(sizes.len()).expect("few") + 1;
            let asked = asked.min(layers);
            let bytes: u64 = weights.to_gpu().take(asked as usize - 1).sum();
            let placed =
                Placed::new((layers, asked), &weights, &[device("Vulkan0", Memory::Own)], &buffers(&[("Vulkan0", bytes)]));
            prop_assert_eq!(placed.gpu_layers, asked - 1);
        }
    }
}
