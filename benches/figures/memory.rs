//! Peak memory of all processes of a side, each side alone on the machine: what both map counts half for each
//! otherwise.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{Session, client::Ask, peer::Server, stats::Must, together};

const EVERY: Duration = Duration::from_millis(100);

pub fn small(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    of(session, &model, "small model", 512, 64)
}

pub fn of_shape(session: &mut Session) -> Result<()> {
    let model = session.places.shape.clone();
    of(session, &model, "7B shape", 96, 8)
}

/// Eight at once with a common system prompt of `system` tokens and answers of `tokens`.
fn of(session: &mut Session, model: &Path, name: &str, system: usize, tokens: usize) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // Memory varies little; two rounds show that.
    for _ in 0..session.rounds.min(2) {
        let asks = together::questions(&mut session.texts, system);
        ours.push(peak(Server::temperd(model, "")?, &asks, tokens)?);
        theirs.push(peak(Server::llama(&session.places, model, &["--cache-ram", "0"])?, &asks, tokens)?);
    }
    let figure = format!("peak PSS of all processes, {name}: temperd / llama-server --cache-ram 0");
    session.report.ratio(&figure, &ours, &theirs, "MB", Must::AtMost(1.0));
    Ok(())
}

fn peak(server: Server, asks: &[Ask], tokens: usize) -> Result<f64> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| -> Result<u64> {
            let mut peak = 0;
            while !over.load(Ordering::Relaxed) {
                peak = peak.max(server.pss()?);
                thread::sleep(EVERY);
            }
            Ok(peak)
        });
        let answers = together::at_once(&server.at, asks, tokens);
        over.store(true, Ordering::Relaxed);
        let peak = watch.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        answers?;
        Ok(peak as f64 / 1e6)
    })
}
