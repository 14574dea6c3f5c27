//! Many at a time: eight kiosks with one system prompt, a long prompt into running streams, a rising rate of questions.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::{
    Session,
    client::{Answer, Ask, Endpoint},
    peer::Server,
    stats::{Must, median, percentile},
    texts::Texts,
};

const KIOSKS: usize = 8;

/// Settings under which temperd is reported beside: results that do not depend on what else runs.
pub const INVARIANT: &str = "batch_invariant = true";

/// Eight questions of 24 tokens behind one system prompt.
pub fn questions(texts: &mut Texts, system: usize) -> Vec<Ask> {
    let system = texts.text(system);
    let ask = |_| Ask::Chat(vec![("system", system.clone()), ("user", texts.text(24))]);
    (0..KIOSKS).map(ask).collect()
}

/// All at the same time; their answers in the same order.
pub fn at_once(endpoint: &Endpoint, asks: &[Ask], tokens: usize) -> Result<Vec<Answer>> {
    thread::scope(|scope| {
        let all: Vec<_> = asks.iter().map(|ask| scope.spawn(|| endpoint.stream(ask, tokens))).collect();
        all.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?).collect()
    })
}

/// A first answer of each, which pays for the first touch of its memory.
fn warm(servers: &[Server]) -> Result<()> {
    servers.iter().try_for_each(|server| server.at.stream(&Ask::Prompt("Good day.".into()), 16).map(|_| ()))
}

/// Seconds in all, and the 95th percentile of the times to the first token.
fn eight_times(server: &Server, asks: &[Ask]) -> Result<(f64, f64)> {
    let answers = at_once(&server.at, asks, 64)?;
    let (first, last) = (answers.iter().map(|a| a.sent).min(), answers.iter().map(Answer::last).max());
    let total = last.zip(first).map_or(f64::NAN, |(last, first)| last.duration_since(first).as_secs_f64());
    let waits: Vec<f64> = answers.iter().map(|answer| answer.first().as_secs_f64()).collect();
    Ok((total, percentile(&waits, 95.0)))
}

pub fn eight(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    let servers = [
        Server::temperd(&model, "")?,
        Server::temperd(&model, INVARIANT)?,
        Server::llama(&session.places, &model, &[])?,
    ];
    warm(&servers)?;
    let mut found = vec![(Vec::new(), Vec::new()); servers.len()];
    for round in 0..session.rounds {
        let asks = questions(&mut session.texts, 512);
        for (server, (totals, firsts)) in servers.iter().zip(&mut found) {
            let (total, first) = eight_times(server, &asks)?;
            eprintln!("round {round}: {total:.2} s, p95 of the first {first:.2} s");
            totals.push(total);
            firsts.push(first);
        }
    }
    let [ours, invariant, theirs] = found.try_into().map_err(|_| anyhow!("three sides"))?;
    let report = &mut session.report;
    let row = |what: &str| format!("8 at once, shared 512-token system prompt: {what}");
    report.ratio(&row("total / llama-server"), &ours.0, &theirs.0, "s", Must::AtMost(0.40));
    report.ratio(&row("p95 time to first token / llama-server"), &ours.1, &theirs.1, "s", Must::AtMost(0.25));
    report.ratio(&row("total, batch_invariant / llama-server"), &invariant.0, &theirs.0, "s", Must::Nothing);
    report.ratio(&row("p95 first, batch_invariant / llama-server"), &invariant.1, &theirs.1, "s", Must::Nothing);
    Ok(())
}

const STREAMS: usize = 4;
/// Tokens of each running stream: they outlast the long prompt.
const RUNNING: usize = 420;
/// Pieces that each has delivered before the long prompt comes.
const BEFORE: usize = 16;

/// Seconds: the running streams' longest gap from the long prompt's arrival to its end, and its time to first token.
fn long_times(server: &Server, asks: &[Ask], long: &Ask) -> Result<(f64, f64, Vec<Vec<Instant>>, Instant)> {
    let endpoint = &server.at;
    let (running, all_run) = mpsc::channel();
    thread::scope(|scope| {
        let streams = asks.iter().map(|ask| {
            let running = running.clone();
            scope.spawn(move || {
                endpoint.stream_to(ask, RUNNING, |pieces| {
                    if pieces == BEFORE {
                        // Nobody listens any more where another has failed.
                        let _failed = running.send(());
                    }
                })
            })
        });
        let streams: Vec<_> = streams.collect();
        for _ in asks {
            all_run.recv_timeout(Duration::from_secs(60))?;
        }
        let answer = endpoint.stream(long, 8)?;
        let mut gap = Duration::ZERO;
        let mut pieces = Vec::new();
        for stream in streams {
            let stream = stream.join().map_err(|_| anyhow!("a client panicked"))??;
            anyhow::ensure!(stream.last() > answer.last(), "a running stream ended before the long prompt was read");
            gap = gap.max(stream.longest_gap(answer.sent, answer.last()));
            pieces.push(stream.pieces);
        }
        Ok((gap.as_secs_f64(), answer.first().as_secs_f64(), pieces, answer.sent))
    })
}

pub fn long_prompt(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    let names = ["temperd", "temperd, batch_invariant", "llama-server", "llama-server tuned"];
    let servers = [
        Server::temperd(&model, "")?,
        Server::temperd(&model, INVARIANT)?,
        Server::llama(&session.places, &model, &[])?,
        Server::llama(&session.places, &model, &["-b", "64", "-ub", "64"])?,
    ];
    let mut found = vec![(Vec::new(), Vec::new()); servers.len()];
    let mut flows = Vec::new();
    warm(&servers)?;
    for round in 0..session.rounds {
        let asks: Vec<Ask> = (0..STREAMS).map(|_| Ask::Prompt(session.texts.text(24))).collect();
        let long = Ask::Prompt(session.texts.text(2000));
        flows.clear();
        for ((server, (gaps, firsts)), name) in servers.iter().zip(&mut found).zip(names) {
            let (gap, first, pieces, sent) = long_times(server, &asks, &long)?;
            eprintln!("round {round}: {name}: longest gap {gap:.3} s, first token of the long prompt {first:.2} s");
            gaps.push(gap);
            firsts.push(first);
            flows.push((name, flow(&pieces, sent)));
        }
    }
    session.plots.lines("long", "pieces of four streams, a 2,000-token prompt comes at 0 s", &flows)?;
    let [ours, invariant, theirs, tuned] = found.try_into().map_err(|_| anyhow!("four sides"))?;
    let report = &mut session.report;
    let row = |what: &str| format!("2,000-token prompt into 4 running streams: {what}");
    report.ratio(&row("longest gap / llama-server"), &ours.0, &theirs.0, "s", Must::AtMost(0.10));
    report.ratio(&row("longest gap / llama-server tuned"), &ours.0, &tuned.0, "s", Must::AtMost(0.50));
    report.ratio(&row("longest gap, batch_invariant / llama-server"), &invariant.0, &theirs.0, "s", Must::Nothing);
    report.ratio(&row("its time to first token / llama-server"), &ours.1, &theirs.1, "s", Must::AtMost(1.3));
    report.ratio(&row("the same, batch_invariant"), &invariant.1, &theirs.1, "s", Must::AtMost(2.2));
    report.ratio(&row("its time to first token / llama-server tuned"), &ours.1, &tuned.1, "s", Must::Nothing);
    Ok(())
}

/// Pieces of all streams that have come so many seconds after `sent`.
fn flow(streams: &[Vec<Instant>], sent: Instant) -> Vec<(f64, f64)> {
    let mut times: Vec<f64> =
        streams.iter().flatten().filter(|at| **at >= sent).map(|at| (*at - sent).as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    times.into_iter().zip(1u32..).map(|(at, count)| (at, f64::from(count))).collect()
}

/// The first rate, how it rises, how long each lasts, and what the 95th percentile may be.
const RATE: f64 = 2.0;
const RISE: f64 = 1.12;
const LASTS: f64 = 6.0;
const WAIT_MS: f64 = 400.0;
const STEPS: i32 = 24;

/// Questions per second that come in at random times, step by step more, and the times to first token of each step in
/// milliseconds, up to the first step that does not hold.
fn rates(server: &Server, asks: &[Vec<(f64, Ask)>]) -> Result<Vec<(f64, f64)>> {
    let mut steps = Vec::new();
    for (arrivals, rate) in asks.iter().zip((0..STEPS).map(|step| RATE * RISE.powi(step))) {
        let began = Instant::now();
        let waits = thread::scope(|scope| {
            let mut all = Vec::new();
            for (at, ask) in arrivals {
                thread::sleep((began + Duration::from_secs_f64(*at)).saturating_duration_since(Instant::now()));
                all.push(scope.spawn(|| server.at.stream(ask, 30)));
            }
            let wait = |one: thread::ScopedJoinHandle<'_, Result<Answer>>| -> Result<f64> {
                Ok(one.join().map_err(|_| anyhow!("a client panicked"))??.first().as_secs_f64() * 1e3)
            };
            all.into_iter().map(wait).collect::<Result<Vec<f64>>>()
        })?;
        let p95 = percentile(&waits, 95.0);
        steps.push((rate, p95));
        if p95 > WAIT_MS {
            break;
        }
    }
    Ok(steps)
}

/// Questions with their arrival times, for each rate: exponentially distributed distances, the same for every side.
fn arrivals(texts: &mut Texts, random: &mut fastrand::Rng) -> Vec<Vec<(f64, Ask)>> {
    let step = |step| {
        let rate = RATE * RISE.powi(step);
        let mut at = 0.0;
        let mut all = Vec::new();
        loop {
            at += -(1.0 - random.f64()).ln() / rate;
            if at > LASTS {
                return all;
            }
            all.push((at, Ask::Prompt(texts.text(20))));
        }
    };
    (0..STEPS).map(step).collect()
}

pub fn rising_rate(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    let ours = Server::temperd(&model, "")?;
    let theirs = Server::llama(&session.places, &model, &[])?;
    let tuned = Server::llama(&session.places, &model, &["-b", "64", "-ub", "64"])?;
    let mut best = [Vec::new(), Vec::new(), Vec::new()];
    let mut curves = Vec::new();
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..session.rounds {
        curves.clear();
        let asks = arrivals(&mut session.texts, &mut random);
        for ((server, best), name) in
            [&ours, &theirs, &tuned].into_iter().zip(&mut best).zip(["temperd", "llama-server", "tuned"])
        {
            let steps = rates(server, &asks)?;
            let held = steps.iter().filter(|(_, p95)| *p95 <= WAIT_MS).map(|(rate, _)| *rate).fold(0.0, f64::max);
            eprintln!("round {round}: {name} holds {held:.2} questions/s");
            best.push(held);
            curves.push((name, steps));
        }
    }
    session.plots.lines("rate", "p95 time to first token (ms) over questions per second", &curves)?;
    let [ours, theirs, tuned] = best;
    let row =
        |what: &str| format!("short questions at a rising rate, most per second with p95 first <= 400 ms: {what}");
    session.report.ratio(&row("temperd / llama-server"), &ours, &theirs, "per s", Must::AtLeast(1.3));
    session.report.ratio(&row("temperd / llama-server tuned"), &ours, &tuned, "per s", Must::Nothing);
    session.report.note(format!("Rates rise by {RISE} from {RATE}, {LASTS} s each; median held {:.2}.", median(&ours)));
    Ok(())
}
