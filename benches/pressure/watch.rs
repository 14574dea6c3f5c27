//! What is available and what the engine holds, as time goes on.

use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use temperd::engine::kernel;

/// Two reads of procfs, some 50 us: 1 % of a core.
const EVERY: Duration = Duration::from_millis(5);

/// One look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub at: Instant,
    /// `MemAvailable - CmaFree`, as the governor counts, in bytes.
    pub available: u64,
    /// `RssAnon` of the engine, in bytes.
    pub anonymous: u64,
}

/// Looks until it is dropped.
pub struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Of this engine. A look that fails is left out: the engine's end shows elsewhere.
    pub fn start(engine: u32) -> Self {
        let (looks, over) = (Arc::<Mutex<Vec<Look>>>::default(), Arc::<AtomicBool>::default());
        let (to, end) = (Arc::clone(&looks), Arc::clone(&over));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if let Ok(look) = look(engine) {
                    to.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                }
                thread::sleep(EVERY);
            }
        });
        Self { looks, over, thread: Some(thread) }
    }

    /// The last look.
    pub fn now(&self) -> Result<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).last().copied().context("a first look")
    }

    /// All looks of a time.
    pub fn between(&self, from: Instant, to: Instant) -> Vec<Look> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.iter().filter(|look| look.at >= from && look.at <= to).copied().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn look(engine: u32) -> Result<Look> {
    let anonymous = kernel::anonymous(engine).context("RssAnon of the engine")?.0;
    Ok(Look { available: available()?, anonymous, at: Instant::now() })
}

/// What is available to a new program.
pub fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    // A kernel without a contiguous area has no such line.
    Ok(kib(&text, "MemAvailable:")?.saturating_sub(kib(&text, "CmaFree:").unwrap_or(0)))
}

/// How many processes the kernel has ended for want of memory since it started.
pub fn killed() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.context("oom_kill of /proc/vmstat")?.trim().parse().context("a count")
}

fn kib(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
