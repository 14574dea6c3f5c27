//! One stream at a time: decode speed against the bare loop, and a conversation that grows.

use std::path::Path;

use anyhow::Result;

use crate::{
    Session,
    client::Ask,
    peer::{self, Bare, Server},
    stats::{Must, median},
};

/// Tokens of an answer of the small model, and of the 7B shape.
const SMALL: usize = 256;
const SHAPE: usize = 48;

pub fn single(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    of(session, &model, "small model", SMALL)
}

pub fn single_of_shape(session: &mut Session) -> Result<()> {
    let model = session.places.shape.clone();
    of(session, &model, "7B shape", SHAPE)
}

fn of(session: &mut Session, model: &Path, name: &str, tokens: usize) -> Result<()> {
    let shipped = Server::temperd(model, "")?;
    let attention = shipped.at.flash_attention()?;
    let mut bare = Bare::start(&session.places, model, &attention)?;
    let plain = Server::temperd(model, "lookup = false")?;
    let llama = Server::llama(&session.places, model, &[])?;
    let (mut bares, mut ours, mut without, mut theirs) = (vec![], vec![], vec![], vec![]);
    let (mut empties, mut tool) = (vec![], vec![]);
    // The first round warms all of them up.
    for round in 0..=session.rounds {
        let prompt = session.texts.text(24);
        let ask = Ask::Prompt(prompt.clone());
        let rate = |server: &Server| -> Result<f64> { Ok(server.at.stream(&ask, tokens)?.rate(tokens)) };
        let found = if round % 2 == 0 {
            let bare = bare.rate(&prompt, tokens)?;
            (bare, rate(&shipped)?, rate(&plain)?)
        } else {
            let (plain, shipped) = (rate(&plain)?, rate(&shipped)?);
            (bare.rate(&prompt, tokens)?, shipped, plain)
        };
        let llama = rate(&llama)?;
        // From an empty cache, as llama-bench does.
        let (empty, bench) = (bare.rate("", tokens)?, peer::llama_bench(&session.places, model, &attention, tokens)?);
        eprintln!(
            "round {round}: bare, temperd, without lookup {found:.1?}, llama-server {llama:.1}, \
             bare from an empty cache {empty:.1}, llama-bench {bench:.1}"
        );
        if round > 0 {
            bares.push(found.0);
            ours.push(found.1);
            without.push(found.2);
            theirs.push(llama);
            empties.push(empty);
            tool.push(bench);
        }
    }
    let row = |what: &str| format!("single stream decode, {name}: {what}");
    let report = &mut session.report;
    report.ratio(&row("temperd / bare loop"), &ours, &bares, "tokens/s", Must::AtLeast(0.97));
    report.ratio(&row("temperd without lookup / bare loop"), &without, &bares, "tokens/s", Must::Nothing);
    report.ratio(&row("llama-server / bare loop"), &theirs, &bares, "tokens/s", Must::Nothing);
    report.ratio(&row("bare loop / llama-bench tg"), &empties, &tool, "tokens/s", Must::AtLeast(0.98));
    Ok(())
}

/// Turns of a conversation, and tokens of each question and answer.
const TURNS: usize = 10;
const QUESTION: usize = 20;
const ANSWER: usize = 40;

pub fn turns(session: &mut Session) -> Result<()> {
    let server = Server::temperd(&session.places.small, "")?;
    let llama = Server::llama(&session.places, &session.places.small, &[])?;
    let (mut ours, mut theirs) = (vec![Vec::new(); TURNS], vec![Vec::new(); TURNS]);
    for _ in 0..session.rounds {
        let questions: Vec<String> = (0..TURNS).map(|_| session.texts.text(QUESTION)).collect();
        for (server, firsts) in [(&server, &mut ours), (&llama, &mut theirs)] {
            let mut messages = Vec::new();
            for (question, firsts) in questions.iter().zip(firsts) {
                messages.push(("user", question.clone()));
                let answer = server.at.stream(&Ask::Chat(messages.clone()), ANSWER)?;
                firsts.push(answer.first().as_secs_f64() * 1e3);
                messages.push(("assistant", answer.text));
            }
        }
    }
    let [second, tenth] = [1, TURNS - 1].map(|turn| ours[turn].clone());
    let figure = "10-turn conversation: time to first token at turn 10 / turn 2";
    session.report.ratio(figure, &tenth, &second, "ms", Must::AtMost(1.5));
    let [second, tenth] = [1, TURNS - 1].map(|turn| theirs[turn].clone());
    session.report.ratio(&format!("{figure}, llama-server"), &tenth, &second, "ms", Must::Nothing);
    let medians = |side: &[Vec<f64>]| side.iter().enumerate().map(|(at, all)| (at as f64 + 1.0, median(all))).collect();
    let lines = [("temperd", medians(&ours)), ("llama-server", medians(&theirs))];
    session.plots.lines("turns", "time to first token of each turn (ms)", &lines)
}
