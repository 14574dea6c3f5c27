//! temperd against a bare llama.cpp loop and llama-server, taking turns in one run, with cold caches on both sides:
//! every prompt begins with a number of its own. Run by `scripts/bench figures`, which brings models and peers.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;

mod bare;
mod client;
mod cold;
mod crash;
mod image;
mod memory;
mod overload;
mod peer;
mod plot;
mod rewrite;
mod stats;
mod streams;
mod texts;
mod together;

use peer::Places;
use stats::Report;
use texts::Texts;

#[derive(Debug, Parser)]
struct Options {
    /// Cargo says so to benches; without it nothing is measured.
    #[arg(long)]
    bench: bool,
    /// Be the bare loop of this model.
    #[arg(long, value_name = "GGUF")]
    bare: Option<PathBuf>,
    /// Alternating rounds of each row.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The folder of llama-server and llama-bench.
    #[arg(long, default_value = ".")]
    peers: PathBuf,
    /// The small model.
    #[arg(long, default_value = ".")]
    small: PathBuf,
    /// The file of Mistral's shape.
    #[arg(long, default_value = ".")]
    shape: PathBuf,
    /// Only these rows: cold, image, crash, single, eight, long, rate, rewrite, turns, memory, overload, shape.
    rows: Vec<String>,
}

/// A bench session: what rows share.
struct Session {
    places: Places,
    texts: Texts,
    report: Report,
    plots: plot::Plots,
    rounds: usize,
}

/// Measures, and adds to the report.
type Row = fn(&mut Session) -> Result<()>;

fn main() -> Result<()> {
    let options = Options::parse();
    // `cargo test --benches` runs this too; it is not a test.
    if !options.bench {
        return Ok(());
    }
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
    if let Some(model) = &options.bare {
        return bare::run(model);
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder)?;
    let threads = sysinfo::System::physical_core_count().unwrap_or(1);
    let places = Places { peers: options.peers, small: options.small, shape: options.shape, threads };
    let mut session = Session {
        texts: Texts::new(&places.small)?,
        places,
        report: Report::default(),
        plots: plot::Plots::new(folder.clone()),
        rounds: options.rounds,
    };
    let rows: [(&str, Row); 12] = [
        ("cold", cold::cold),
        ("image", image::image),
        ("crash", crash::crash),
        ("single", streams::single),
        ("eight", together::eight),
        ("long", together::long_prompt),
        ("rate", together::rising_rate),
        ("rewrite", rewrite::rewrite),
        ("turns", streams::turns),
        ("memory", memory::small),
        ("overload", overload::overload),
        ("shape", shape),
    ];
    if let Some(unknown) = options.rows.iter().find(|name| rows.iter().all(|(known, _)| known != name)) {
        bail!("no row is called {unknown:?}: there are {:?}", rows.map(|(name, _)| name));
    }
    for (name, row) in rows {
        if options.rows.is_empty() || options.rows.iter().any(|wanted| wanted == name) {
            eprintln!("--- {name}");
            row(&mut session).with_context(|| format!("row {name}"))?;
            fs::write(folder.join("figures.md"), session.report.markdown())?;
        }
    }
    println!("\n{}", session.report.markdown());
    println!("table and pictures: {}", folder.display());
    Ok(())
}

/// The rows that are measured at Mistral's size too.
fn shape(session: &mut Session) -> Result<()> {
    streams::single_of_shape(session)?;
    memory::of_shape(session)
}
