//! From nothing loaded to the first token, against a bare load: a daemon whose model rests (`engine.idle_unload_s`) is
//! asked, and a bare loop is started; both have a process to start, a file in the page cache to read, and as many cells to
//! allocate.

use std::{path::Path, time::Instant};

use anyhow::Result;

use crate::{
    Session,
    client::Ask,
    peer::{Bare, Server},
    stats::Must,
};

/// Tokens of the question, and of the answer.
const QUESTION: usize = 8;
const ANSWER: usize = 4;
/// Cells that the engine allocates at first.
const CELLS: u32 = 2048;

pub fn cold(session: &mut Session) -> Result<()> {
    let places = session.places.clone();
    of(session, &places.small, "small model")?;
    of(session, &places.shape, "7B shape")
}

fn of(session: &mut Session, model: &Path, name: &str) -> Result<()> {
    let server = Server::temperd(model, "idle_unload_s = 1")?;
    let attention = server.at.flash_attention()?;
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    // The first round brings the file into the page cache.
    for round in 0..=session.rounds {
        let prompt = session.texts.text(QUESTION);
        let daemon = || -> Result<f64> {
            server.at.until_unloaded()?;
            Ok(server.at.stream(&Ask::Prompt(prompt.clone()), ANSWER)?.first().as_secs_f64())
        };
        let bare = || -> Result<f64> {
            server.at.until_unloaded()?;
            let began = Instant::now();
            Bare::start_with(&session.places, model, &attention, CELLS)?.rate(&prompt, 1)?;
            Ok(began.elapsed().as_secs_f64())
        };
        let (our, bare) = if round % 2 == 0 {
            let bare = bare()?;
            (daemon()?, bare)
        } else {
            (daemon()?, bare()?)
        };
        eprintln!("round {round}: temperd {our:.3} s, bare load {bare:.3} s");
        if round > 0 {
            ours.push(our);
            bares.push(bare);
        }
    }
    let figure = format!("cold start to the first token, {name}: temperd / bare load");
    session.report.ratio(&figure, &ours, &bares, "s", Must::AtMost(1.1));
    Ok(())
}
