//! Boards: power, speed and thermal resistance of each.

/// What a power mode draws and delivers while a 7B model decodes without a pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mode {
    /// Watts of the module without work, at 60 C.
    pub idle: f64,
    /// Watts more with all layers on the GPU.
    pub gpu: f64,
    /// Watts more with all layers on the CPU.
    pub cpu: f64,
    /// Tokens per second with all layers on the GPU.
    pub gpu_rate: f64,
    /// Tokens per second with all layers on the CPU.
    pub cpu_rate: f64,
}

impl Mode {
    /// Watts and tokens per second of unbroken work with a share of the layers on the GPU. Layers take turns, so a token
    /// takes the sum of their times, and the power is the mean over that time.
    pub fn work(&self, layers: f64) -> (f64, f64) {
        let (on_gpu, on_cpu) = (layers / self.gpu_rate, (1.0 - layers) / self.cpu_rate);
        let seconds = on_gpu + on_cpu;
        ((on_gpu * self.gpu + on_cpu * self.cpu) / seconds, 1.0 / seconds)
    }
}

/// Two nodes: a die on a heatsink.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thermals {
    /// Heatsink to ambient in K/W with the fan at full speed.
    pub windy: f64,
    /// The same with the fan standing, or without one.
    pub still: f64,
    /// Heat capacity of the heatsink in J/K.
    pub sink: f64,
    /// Die to heatsink in K/W.
    pub die: f64,
    /// Lag of the die in seconds.
    pub die_lag: f64,
    /// Share by which power grows with each kelvin.
    pub leakage: f64,
    /// Noise of a reading in kelvin, either way.
    pub noise: f64,
}

/// A board.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Board {
    pub name: &'static str,
    /// The mode with most power, and a lower one.
    pub modes: [Mode; 2],
    pub thermals: Thermals,
    /// Seconds to load the model, from NVMe at about 0.5 GB/s; no power is drawn for work meanwhile.
    pub load: f64,
}

/// Orin NX 16 GB. Measured by others: 4.6 W idle, 29 W at most, a heatsink of about 50 J/K and 2.2 to 2.7 K/W in all at
/// 17 to 29 W (an ambient of 25 C assumed). Estimated: 12 to 20 tokens/s at 12 to 25 W. Assumed: CPU rate and power, die.
pub const NX: Board = Board {
    name: "NX",
    modes: [
        Mode { idle: 4.6, gpu: 20.4, cpu: 13.0, gpu_rate: 16.0, cpu_rate: 4.0 },
        Mode { idle: 4.6, gpu: 12.3, cpu: 9.0, gpu_rate: 12.0, cpu_rate: 3.0 },
    ],
    thermals: Thermals { windy: 1.6, still: 5.0, sink: 50.0, die: 0.4, die_lag: 4.0, leakage: 0.007, noise: 0.25 },
    load: 7.0,
};

/// AGX Orin 64 GB: twice the DRAM bandwidth of the NX, hence twice the rate; modes of 50 W and 30 W; a heatsink twice as
/// good and three times as heavy. All but the bandwidth and the modes' names is assumed.
pub const AGX: Board = Board {
    name: "AGX",
    modes: [
        Mode { idle: 9.0, gpu: 38.0, cpu: 24.0, gpu_rate: 30.0, cpu_rate: 7.0 },
        Mode { idle: 9.0, gpu: 20.0, cpu: 14.0, gpu_rate: 20.0, cpu_rate: 5.0 },
    ],
    thermals: Thermals { windy: 0.9, still: 3.0, sink: 150.0, die: 0.25, die_lag: 5.0, leakage: 0.007, noise: 0.25 },
    load: 7.0,
};

/// Orin Nano 8 GB. Measured by others: about 12 W with an LLM at 25 W mode. Assumed: the rest.
pub const NANO: Board = Board {
    name: "Nano",
    modes: [
        Mode { idle: 4.0, gpu: 11.0, cpu: 7.0, gpu_rate: 11.0, cpu_rate: 2.5 },
        Mode { idle: 4.0, gpu: 7.0, cpu: 5.0, gpu_rate: 8.0, cpu_rate: 2.0 },
    ],
    thermals: Thermals { windy: 2.2, still: 6.0, sink: 35.0, die: 0.5, die_lag: 3.0, leakage: 0.007, noise: 0.25 },
    load: 7.0,
};

pub const BOARDS: [Board; 3] = [NX, AGX, NANO];
