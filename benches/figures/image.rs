//! A system prompt whose image is on the disk, against one that is read: the first answer of a daemon that has just become
//! ready, at the 7B shape.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Result;

use crate::{Session, client::Ask, peer::Server, stats::Must};

/// Tokens of the system prompt by the small model's tokenizer; a note says how many the other one makes of it.
const SYSTEM: usize = 512;
/// Tokens of the question, and of the answer.
const QUESTION: usize = 8;
const ANSWER: usize = 4;

pub fn image(session: &mut Session) -> Result<()> {
    let model = session.places.shape.clone();
    let system = session.texts.text(SYSTEM);
    let named = format!("[[system_prompt]]\nname = \"bench\"\ntext = {system:?}");
    let state = tempfile::tempdir()?;
    let bytes = made(&model, &named, state.path())?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let mut tokens = 0;
    for round in 0..session.rounds {
        let question = session.texts.text(QUESTION);
        let ask = Ask::Chat(vec![("system", system.clone()), ("user", question)]);
        let first = |settings: &str, state: Option<&Path>| -> Result<(f64, u64)> {
            let server = Server::start(&model, settings, state)?;
            let first = server.at.stream(&ask, ANSWER)?.first().as_secs_f64();
            Ok((first, server.at.prompt_tokens(&ask)?))
        };
        let (by_image, by_reading) = if round % 2 == 0 {
            let read = first("", None)?;
            (first(&named, Some(state.path()))?, read)
        } else {
            (first(&named, Some(state.path()))?, first("", None)?)
        };
        eprintln!("round {round}: with its image {:.3} s, by reading {:.3} s", by_image.0, by_reading.0);
        with.push(by_image.0);
        without.push(by_reading.0);
        tokens = by_image.1;
    }
    let figure = "first token behind a system prompt, 7B shape: by reading it / with its image";
    session.report.ratio(figure, &without, &with, "s", Must::AtLeast(10.0));
    session.report.note(format!("The prompt with the system prompt has {tokens} tokens; the image {bytes} bytes."));
    Ok(())
}

/// Has the image made, and says how large it is.
fn made(model: &Path, named: &str, state: &Path) -> Result<u64> {
    let _server = Server::start(model, named, Some(state))?;
    let image = state.join("prefixes/bench.kv");
    loop {
        match fs::metadata(&image) {
            Ok(about) => return Ok(about.len()),
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}
