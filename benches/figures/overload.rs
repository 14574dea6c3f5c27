//! A flood: how long those who are taken wait while a hundred times as many are refused.

use std::thread;

use anyhow::{Result, anyhow, ensure};

use crate::{
    Session,
    client::{Ask, Endpoint, Refused},
    peer::Server,
    stats::{Must, median, percentile},
};

/// Requests that run at once, and that wait.
const PARALLEL: usize = 8;
const QUEUE: usize = 16;
/// What there is room for.
const CAPACITY: usize = PARALLEL + QUEUE;
/// How many times as many come in the flood.
const TIMES: usize = 100;
/// Tokens of a question and of its answer.
const QUESTION: usize = 24;
const ANSWER: usize = 32;
/// Bytes of a client's stack: there are thousands of them.
const STACK: usize = 256 * 1024;

/// Seconds from the request to the end of the answer, of those that were taken.
fn waits(endpoint: &Endpoint, asks: &[Ask]) -> Result<Vec<f64>> {
    thread::scope(|scope| {
        let client = |ask| {
            let client = move || endpoint.stream(ask, ANSWER);
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, client)
        };
        let clients = asks.iter().map(client).collect::<std::io::Result<Vec<_>>>()?;
        let mut waits = Vec::new();
        for client in clients {
            match client.join().map_err(|_| anyhow!("a client panicked"))? {
                Ok(answer) => waits.push(answer.last().duration_since(answer.sent).as_secs_f64()),
                Err(error) if error.is::<Refused>() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(waits)
    })
}

pub fn overload(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    let server = Server::temperd(&model, &format!("parallel = {PARALLEL}\n[limits]\nqueue = {QUEUE}\nshare = 100"))?;
    let mut found = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    let mut refused = Vec::new();
    for round in 0..session.rounds {
        for ((p95s, medians), asked) in found.iter_mut().zip([CAPACITY, CAPACITY * TIMES]) {
            let asks: Vec<Ask> = (0..asked).map(|_| Ask::Prompt(session.texts.text(QUESTION))).collect();
            let waits = waits(&server.at, &asks)?;
            ensure!(waits.len() >= CAPACITY, "{} of {asked} were answered, there is room for {CAPACITY}", waits.len());
            let (p95, middle) = (percentile(&waits, 95.0), median(&waits));
            eprintln!("round {round}: {asked} asked, {} answered: p95 {p95:.2} s, median {middle:.2} s", waits.len());
            p95s.push(p95);
            medians.push(middle);
            if asked > CAPACITY {
                refused.push((asked - waits.len()) as f64);
            }
        }
    }
    let [full, flood] = found;
    let report = &mut session.report;
    let row =
        |what: &str| format!("{TIMES} times as many requests as there is room for, to the end of the answer: {what}");
    report.ratio(&row("p95 of the answered / of a full queue"), &flood.0, &full.0, "s", Must::AtMost(1.2));
    report.ratio(&row("median of the answered / of a full queue"), &flood.1, &full.1, "s", Must::Nothing);
    report.note(format!("Room for {CAPACITY}; refused in the flood, median: {}.", median(&refused)));
    Ok(())
}
