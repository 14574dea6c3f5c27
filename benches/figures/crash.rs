//! The pause of four streams whose engine is killed, against a bare load and a bare reading of the same prompts with what was
//! answered so far. Each round has a daemon of its own: the first end of an engine is followed by another at once, later ones
//! are not.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::{
    Session,
    client::{Answer, Ask},
    peer::{Bare, Server},
    stats::Must,
};

const STREAMS: usize = 4;
/// Tokens of each question, and of its answer.
const QUESTION: usize = 256;
const ANSWER: usize = 160;
/// Pieces of each answer before the engine is killed.
const BEFORE: usize = 32;
/// Cells that the engine allocates at first.
const CELLS: u32 = 2048;
/// How long all of them may take to begin.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn crash(session: &mut Session) -> Result<()> {
    let places = session.places.clone();
    of(session, &places.small, "small model")?;
    of(session, &places.shape, "7B shape")
}

fn of(session: &mut Session, model: &Path, name: &str) -> Result<()> {
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for round in 0..session.rounds {
        let prompts: Vec<String> = (0..STREAMS).map(|_| session.texts.text(QUESTION)).collect();
        let server = Server::temperd(model, "")?;
        let attention = server.at.flash_attention()?;
        let (pause, begun) = killed(&server, &prompts)?;
        drop(server);
        let began = Instant::now();
        let mut bare = Bare::start_with(&session.places, model, &attention, CELLS)?;
        for text in &begun {
            bare.rate(text, 1)?;
        }
        let bare = began.elapsed().as_secs_f64();
        eprintln!("round {round}: pause {pause:.3} s, bare load and reading {bare:.3} s");
        ours.push(pause);
        bares.push(bare);
    }
    let figure = format!("engine killed under {STREAMS} streams, {name}: longest pause / bare load and reading");
    session.report.ratio(&figure, &ours, &bares, "s", Must::AtMost(2.0));
    Ok(())
}

/// Kills the engine once all streams run. The longest that one of them waits for its next piece, in seconds, and each prompt
/// with what had been answered by then.
fn killed(server: &Server, prompts: &[String]) -> Result<(f64, Vec<String>)> {
    let (running, all_run) = mpsc::channel();
    thread::scope(|scope| {
        let streams: Vec<_> = (prompts.iter())
            .map(|prompt| {
                let running = running.clone();
                scope.spawn(move || {
                    server.at.stream_to(&Ask::Prompt(prompt.clone()), ANSWER, |pieces| {
                        if pieces == BEFORE {
                            // Nobody listens any more where another has failed.
                            let _failed = running.send(());
                        }
                    })
                })
            })
            .collect();
        for _ in prompts {
            all_run.recv_timeout(PATIENCE)?;
        }
        let killed = Instant::now();
        server.kill_engine()?;
        let answers = streams.into_iter().map(|stream| stream.join().map_err(|_| anyhow!("a client panicked"))?);
        let answers: Vec<Answer> = answers.collect::<Result<_>>()?;
        let pause = answers.iter().map(|answer| answer.longest_gap(killed, answer.last())).max().unwrap_or_default();
        let begun = prompts.iter().zip(&answers).map(|(prompt, answer)| format!("{prompt}{}", answer.before(killed)));
        Ok((pause.as_secs_f64(), begun.collect()))
    })
}
