//! Memory under true pressure: a real daemon and engine answer long contexts while a helper eats memory until the reserve is
//! broken, again and again. Run by `scripts/bench --governor pressure`, which brings the model.
//!
//! ```text
//!   hog (a process) ── eats ──▶ MemAvailable < reserve ── governor ── Operate ──▶ engine: ends its step, smaller cache
//!                                     ▲                      │ its log                │ chunks of the streams
//!   watch (a thread) ── MemAvailable, the engine's RssAnon, every 5 ms ──┴──────── analysis ──┘
//! ```
//! The reserve is put next to what is available when the daemon starts, and the memory ladder has many small steps, so that one
//! reading of a long prompt gives many repetitions, and the helper takes little from other programs.

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::Parser;

#[allow(dead_code, reason = "the figures use more of it")]
#[path = "../figures/client.rs"]
mod client;
mod daemon;
mod hog;
mod report;
mod run;
#[allow(dead_code, reason = "the figures use more of it")]
#[path = "../figures/stats.rs"]
mod stats;
#[path = "../figures/texts.rs"]
mod texts;
mod watch;

use run::Case;

/// Repetitions from which on the 95th percentile is not the longest of all.
const ENOUGH: usize = 20;

#[derive(Debug, Parser)]
struct Options {
    /// Cargo says so to benches; without it nothing is measured.
    #[arg(long)]
    bench: bool,
    /// Be the helper that eats memory.
    #[arg(long)]
    hog: bool,
    /// Daemons that are started one after the other, each for some repetitions; as many as give twenty by default.
    #[arg(long)]
    rounds: Option<usize>,
    /// The small model.
    #[arg(long)]
    small: Option<PathBuf>,
    /// The file of Mistral's shape.
    #[arg(long)]
    shape: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.hog {
        return hog::eat();
    }
    // `cargo test --benches` runs this too; it is not a test.
    if !options.bench {
        return Ok(());
    }
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder)?;
    let cases = [options.small.map(Case::small), options.shape.map(Case::shape)];
    let mut text = String::new();
    for case in cases.into_iter().flatten() {
        let mut found = report::Found::default();
        for round in 0..options.rounds.unwrap_or(ENOUGH.div_ceil(case.steps.len())) {
            eprintln!("--- {}, round {round}", case.name);
            found.add(run::round(&case)?);
        }
        text += &found.markdown(&case);
        fs::write(folder.join("pressure.md"), &text)?;
    }
    println!("{text}\ntable: {}", folder.join("pressure.md").display());
    Ok(())
}
