//! "Rewrite this text with one word changed", at temperature 0: what prompt lookup brings, beside llama-server's n-gram
//! drafts.

use anyhow::{Result, anyhow};

use crate::{
    Session,
    client::Ask,
    peer::Server,
    stats::{Must, median},
};

const TOKENS: usize = 200;
/// What llama-server drafts by without a draft model.
const KINDS: [&str; 5] = ["ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"];

/// Texts to rewrite, each longer than the answer.
const TEXTS: &str = include_str!("rewrite.txt");

/// Asks for the text of this round. Behind the last one they begin again, with another number in front, so that no cache
/// has seen them.
fn prompt(round: usize) -> Ask {
    let texts: Vec<&str> = TEXTS.split("---").map(str::trim).collect();
    let text = texts[round % texts.len()];
    Ask::Chat(vec![(
        "user",
        format!(
            "{round}. Rewrite this text, and change the word \"river\" to \"stream\". Write nothing but the text.\n\n{text}"
        ),
    )])
}

pub fn rewrite(session: &mut Session) -> Result<()> {
    let model = session.places.small.clone();
    let with = Server::temperd(&model, "")?;
    let without = Server::temperd(&model, "lookup = false")?;
    let peers = KINDS.map(|kind| (kind, Server::llama(&session.places, &model, &["--spec-type", kind])));
    let (mut ours, mut plain, mut theirs) = (Vec::new(), Vec::new(), vec![Vec::new(); KINDS.len()]);
    let mut drafted = [(0, 0); KINDS.len()];
    let mut same = 0;
    for round in 0..=session.rounds {
        let ask = prompt(round);
        let (quick, slow) = (with.at.stream(&ask, TOKENS)?, without.at.stream(&ask, TOKENS)?);
        eprintln!("round {round}: with {:.1}, without {:.1} tokens/s", quick.rate(TOKENS), slow.rate(TOKENS));
        if quick.text == slow.text {
            same += 1;
        } else {
            session.report.note(difference(&with, &without, &ask)?);
        }
        for (((kind, server), rates), drafted) in peers.iter().zip(&mut theirs).zip(&mut drafted) {
            let server = server.as_ref().map_err(|error| anyhow!("{error}"))?;
            let answer = server.at.stream(&ask, TOKENS)?;
            let rate = answer.rate(TOKENS);
            *drafted = (drafted.0 + answer.drafted.0, drafted.1 + answer.drafted.1);
            eprintln!("round {round}: llama-server {kind} {rate:.1} tokens/s");
            if round > 0 {
                rates.push(rate);
            }
        }
        if round > 0 {
            ours.push(quick.rate(TOKENS));
            plain.push(slow.rate(TOKENS));
        } else {
            session.report.note(format!("Rewritten: {:?}", quick.text));
        }
    }
    let best = (0..KINDS.len()).max_by(|a, b| median(&theirs[*a]).total_cmp(&median(&theirs[*b]))).unwrap_or_default();
    let row = |what: &str| format!("rewrite with one word changed, temperature 0: {what}");
    let report = &mut session.report;
    report.ratio(&row("lookup / without"), &ours, &plain, "tokens/s", Must::AtLeast(1.5));
    let peer = format!("lookup / llama-server's best ({})", KINDS[best]);
    report.ratio(&row(&peer), &ours, &theirs[best], "tokens/s", Must::AtLeast(1.2));
    let (all, right) = with.at.drafted()?;
    let (peers, peers_right) = drafted[best];
    report.note(format!(
        "Drafted tokens that were right, of all rounds: temperd {right} of {all}, llama-server {} {peers_right} of {peers}.",
        KINDS[best]
    ));
    report.note(format!("Rewritten alike with and without lookup: {same} of {} texts.", session.rounds + 1));
    Ok(())
}

/// Where the two first differ, and how near the best two tokens were there.
fn difference(with: &Server, without: &Server, ask: &Ask) -> Result<String> {
    let (ours, plain) = (with.at.best_two(ask, TOKENS)?, without.at.best_two(ask, TOKENS)?);
    let chosen = |place: &Vec<(String, f64)>| place.first().map(|(token, _)| token.clone());
    let Some(at) = ours.iter().zip(&plain).position(|(a, b)| chosen(a) != chosen(b)) else {
        return Ok("Two rewritten texts differ, and did not when asked again.".to_owned());
    };
    let gap = plain.get(at).and_then(|place| Some((place.first()?.1 - place.get(1)?.1).abs())).unwrap_or(f64::NAN);
    Ok(format!("Two rewritten texts differ from token {at} on, where the best two are {gap:.4} apart (log)."))
}
