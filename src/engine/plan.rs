//! What an engine is loaded with, and whether orders can be met by the one that lives. Pure.
//!
//! Context and pace change within a living engine. Layers, and a context beyond what was loaded, do not: there is one way
//! to lose an engine, and that is its end.

use super::operate::Orders;
use crate::{config, governor::Admit};

/// What an engine is loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Layers on the GPU; `None`: as many as fit.
    pub gpu_layers: Option<u32>,
    /// Tokens that its KV cache may ever hold.
    pub context: u32,
}

/// Why an engine is ended while nothing is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Another number of layers.
    GpuLayers,
    /// More context than it was loaded for.
    Context,
    /// It takes more memory than its model and its operating point explain.
    Leak,
    /// Memory is needed, or an operator wants it.
    Unload,
    /// Nobody has asked anything for long.
    Sleep,
}

impl Change {
    /// As the status writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GpuLayers => "gpu_layers",
            Self::Context => "context",
            Self::Leak => "leak",
            Self::Unload => "unload",
            Self::Sleep => "idle",
        }
    }

    /// Whether another engine takes its place at once.
    #[must_use]
    pub fn goes_on(self) -> bool {
        matches!(self, Self::GpuLayers | Self::Context | Self::Leak)
    }
}

impl Plan {
    /// For these orders. `layers` is how many there are, 0 while nobody knows; `scarce` says that the configured context
    /// could not be loaded.
    #[must_use]
    pub fn new(config: &config::Engine, orders: &Orders, layers: u32, scarce: bool) -> Self {
        let full = config.gpu_layers.unwrap_or(layers).min(layers);
        let bound = orders.point.gpu_layers;
        let gpu_layers = if layers == 0 || bound >= full { config.gpu_layers } else { Some(bound) };
        let context = if scarce { orders.point.context.min(config.context) } else { config.context };
        Self { gpu_layers, context }
    }

    /// Layers at most.
    #[must_use]
    pub fn most_layers(self) -> u32 {
        self.gpu_layers.unwrap_or(u32::MAX)
    }
}

/// Whether an engine may be started under these orders. Under `hold` none is, since a load is no small thing to begin
/// while something is short; but for one that takes the place of another, so that what ran can finish.
#[must_use]
pub fn wanted(orders: &Orders, replaces: bool) -> bool {
    let most = if replaces { Admit::Hold } else { Admit::Run };
    orders.point.admit <= most && !orders.asleep
}

/// Why the engine that lives has to end; `None` where it can go on. `has` is how many layers it has on the GPU, `None`
/// while it loads: what it will have is not known then.
#[must_use]
pub fn change(loaded: Plan, has: Option<u32>, plan: Plan, orders: &Orders) -> Option<Change> {
    if orders.asleep {
        return Some(Change::Sleep);
    }
    if orders.point.admit == Admit::Unload {
        return Some(Change::Unload);
    }
    let has = has?;
    // Where fewer fit than were asked for, to ask for more of them changes nothing.
    if plan.most_layers() < has || plan.most_layers() > loaded.most_layers() {
        return Some(Change::GpuLayers);
    }
    (plan.context > loaded.context).then_some(Change::Context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, Overrides};

    fn config(toml: &str) -> config::Engine {
        let machine =
            Machine { hostname: "test".into(), default_socket: Some("/tmp/socket".into()), state_directory: None };
        let overrides = Overrides { model: Some("model.gguf".into()), ..Overrides::default() };
        config::parse(toml, overrides, &machine).expect("a configuration").engine
    }

    fn orders(config: &config::Engine, gpu_layers: u32) -> Orders {
        let mut orders = Orders::full(config);
        orders.point.gpu_layers = gpu_layers;
        orders
    }

    #[test]
    fn what_is_configured_is_asked_for_until_a_bound_lies_below_it() {
        let auto = config("");
        let asks = |config: &config::Engine, bound, layers| {
            Plan::new(config, &orders(config, bound), layers, false).gpu_layers
        };
        assert_eq!(asks(&auto, u32::MAX, 0), None);
        assert_eq!(asks(&auto, 0, 0), None, "nobody knows how many there are: the bound means nothing");
        assert_eq!(asks(&auto, 33, 33), None);
        assert_eq!(asks(&auto, 16, 33), Some(16));
        let some = config("[engine]\ngpu_layers = 20");
        assert_eq!(asks(&some, 20, 33), Some(20));
        assert_eq!(asks(&some, 8, 33), Some(8));
    }

    #[test]
    fn another_number_of_layers_takes_another_engine_and_one_that_did_not_fit_does_not() {
        let auto = config("");
        let loaded = Plan { gpu_layers: None, context: 8192 };
        let change = |loaded, has, bound| {
            let orders = orders(&auto, bound);
            change(loaded, Some(has), Plan::new(&auto, &orders, 33, false), &orders)
        };
        assert_eq!(change(loaded, 33, 33), None);
        assert_eq!(change(loaded, 20, 33), None, "only 20 fitted");
        assert_eq!(change(loaded, 20, 24), None);
        assert_eq!(change(loaded, 20, 16), Some(Change::GpuLayers));
        let fewer = Plan { gpu_layers: Some(16), ..loaded };
        assert_eq!(change(fewer, 16, 16), None);
        assert_eq!(change(fewer, 16, 24), Some(Change::GpuLayers));
        assert_eq!(change(fewer, 16, 33), Some(Change::GpuLayers));
    }

    #[test]
    fn without_a_gpu_nothing_but_unload_and_sleep_ends_an_engine() {
        let auto = config("");
        let loaded = Plan::new(&auto, &orders(&auto, u32::MAX), 0, false);
        for bound in [0, 1, u32::MAX] {
            let orders = orders(&auto, bound);
            assert_eq!(change(loaded, Some(0), Plan::new(&auto, &orders, 0, false), &orders), None);
        }
        let mut unload = orders(&auto, 0);
        unload.point.admit = Admit::Unload;
        assert_eq!(change(loaded, None, loaded, &unload), Some(Change::Unload));
        let asleep = Orders { asleep: true, ..orders(&auto, 0) };
        assert_eq!(change(loaded, Some(0), loaded, &asleep), Some(Change::Sleep));
        assert!(!wanted(&asleep, true) && !wanted(&unload, true) && wanted(&orders(&auto, 0), false));
        let mut hold = orders(&auto, 0);
        hold.point.admit = Admit::Hold;
        assert!(!wanted(&hold, false) && wanted(&hold, true));
    }

    #[test]
    fn a_context_that_could_not_be_loaded_comes_back_with_another_engine() {
        let auto = config("");
        let mut low = orders(&auto, 0);
        low.point.context = 4096;
        assert_eq!(Plan::new(&auto, &low, 0, false).context, 8192, "it is lowered within the engine");
        let loaded = Plan::new(&auto, &low, 0, true);
        assert_eq!(loaded.context, 4096);
        let full = orders(&auto, 0);
        assert_eq!(change(loaded, Some(0), Plan::new(&auto, &full, 0, true), &full), Some(Change::Context));
        assert_eq!(change(loaded, Some(0), Plan::new(&auto, &low, 0, true), &low), None);
    }
}
