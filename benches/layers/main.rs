//! How long streams pause while GPU layers come and go, against a bare load of the same layers in a fresh process and
//! reading again (or restoring) what the streams hold, taking turns in one run. Run by `scripts/bench --layers`, on Mesa's
//! software device unless told otherwise.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;

mod bare;
mod daemon;
#[allow(dead_code, reason = "the other bench uses more of it")]
#[path = "../figures/stats.rs"]
mod stats;

use bare::Bare;
use daemon::Daemon;
use stats::{Must, Report};

/// Tokens of the KV cache on both sides.
const CONTEXT: u32 = 1024;
/// Rows of a step at most, on both sides: the software device takes half a minute for large ones.
const ROWS: u32 = 32;
/// Layers before, and after each change.
const FIRST: u32 = 30;
const CHANGES: [u32; 3] = [12, 0, 30];

#[derive(Debug, Parser)]
struct Options {
    /// Cargo says so to benches; without it nothing is measured.
    #[arg(long)]
    bench: bool,
    /// Be a bare load of this model.
    #[arg(long, value_name = "GGUF")]
    bare: Option<PathBuf>,
    #[command(flatten)]
    load: Bare,
    /// Rounds of all changes.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The model.
    #[arg(long, default_value = ".")]
    model: PathBuf,
    /// The engine for Vulkan.
    #[arg(long, default_value = ".")]
    engine: PathBuf,
    /// This bench, built for Vulkan.
    #[arg(long, default_value = ".")]
    vulkan: PathBuf,
    /// The device, by its number among Vulkan's.
    #[arg(long, default_value = "0")]
    device: String,
}

/// Of one change, round by round, in seconds.
#[derive(Debug, Default)]
struct Row {
    pauses: Vec<f64>,
    bare: Vec<f64>,
    loads: Vec<f64>,
    handed_over: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // `cargo test --benches` runs this too; it is not a test.
    if !options.bench {
        return Ok(());
    }
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
    if let Some(model) = &options.bare {
        return bare::run(model, &options.load);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(measure(&options))?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("layers.md"), report.markdown())?;
    println!("\n{}", report.markdown());
    Ok(())
}

async fn measure(options: &Options) -> Result<Report> {
    let environment = [("GGML_VK_VISIBLE_DEVICES", options.device.as_str())];
    let itself = std::env::current_exe()?;
    let daemon = Daemon::start(&options.model, &options.engine, &environment).await?;
    let mut rows = CHANGES.map(|layers| (layers, Row::default()));
    for _ in 0..options.rounds {
        let mut streams = daemon.streams().await?;
        let mut before = FIRST;
        for (layers, row) in &mut rows {
            let change = daemon.change(&mut streams, *layers, FIRST).await?;
            let program = if *layers == 0 { &itself } else { &options.vulkan };
            let (threads, flash_attention) = daemon.settings().await?;
            let load = Bare { layers: *layers, threads, flash_attention, tokens: change.tokens };
            let took = bare::measure(program, &options.model, &load, &environment)?;
            let cells = if change.handed_over { took.restore } else { took.read };
            row.pauses.push(change.pause.as_secs_f64());
            row.bare.push((took.load + cells).as_secs_f64());
            row.loads.push(took.load.as_secs_f64());
            row.handed_over += usize::from(change.handed_over);
            let (pause, load, cells) = (change.pause, took.load, cells);
            eprintln!("{before} -> {layers} layers: {pause:.2?}, bare load {load:.2?} and {cells:.2?} for its cells");
            before = *layers;
        }
        daemon.finish(streams).await?;
    }
    let mut report = Report::default();
    let mut before = FIRST;
    for (layers, row) in rows {
        let figure = format!("{before} -> {layers} layers: longest pause / bare load + re-read or restore");
        report.ratio(&figure, &row.pauses, &row.bare, "s", Must::AtMost(1.2));
        report.note(format!(
            "{before} -> {layers}: the bare load alone takes {:.2} s; handed over {} of {} times",
            stats::median(&row.loads),
            row.handed_over,
            options.rounds
        ));
        before = layers;
    }
    Ok(report)
}

/// As long as anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for it, but not for ever.
async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, future).await.with_context(|| format!("{what} does not come"))
}
