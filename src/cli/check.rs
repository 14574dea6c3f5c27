//! `temperd check`: looks at everything that `temperd run` with the same arguments would use, changes nothing, and
//! says of each thing whether it is fine, and if not, what to do.

use std::{
    fmt,
    io::{self, Write},
    time::Instant,
};

use super::{CliError, RunArgs};
use crate::board::{Board, host};

mod adapters;
mod board;
mod broker;
mod local;

/// How it stands with a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Ok,
    /// temperd will run, but not as it should.
    Warn,
    /// temperd will not run, or not answer.
    Problem,
}

/// One thing that was looked at: what was found and, where it is not fine, the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    grade: Grade,
    thing: &'static str,
    text: String,
}

impl Finding {
    fn ok(thing: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Ok, thing, text: text.into() }
    }

    fn warn(thing: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Warn, thing, text: text.into() }
    }

    fn problem(thing: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Problem, thing, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Problem => "problem",
        };
        write!(f, "{grade:<8}{}: {}", self.thing, self.text)
    }
}

/// Looks and prints, one line for each finding.
///
/// # Errors
/// [`CliError::BadConfiguration`], or [`CliError::Problems`] where a finding is one.
pub async fn run(args: RunArgs) -> Result<(), CliError> {
    let config = match args.load() {
        Ok(config) => config,
        Err(errors) => {
            errors.0.into_iter().for_each(|error| print(&Finding::problem("configuration", error)));
            return Err(CliError::BadConfiguration);
        }
    };
    let mut worst = Worst::default();
    worst.add(Finding::ok("configuration", format!("node {}, {} at once", config.node, config.engine.parallel)));
    let (model, summary) = local::model(&config.engine.model);
    worst.add(model);
    for adapter in &config.engine.adapters {
        worst.add(adapters::adapter(adapter, summary.as_ref()));
    }
    worst.add(local::engine(&config.engine));
    let mut board = Board::open(&config.board_root, &host::own_cgroup().unwrap_or_default());
    let sample = board.sample(Instant::now());
    let need = summary.map(|summary| local::need(&summary, &config.engine));
    worst.add(local::memory(&config.board_root, &sample.memory, need));
    worst.add(local::cpus(&config.board_root, &config.engine));
    board::board(board.identity(), &sample).into_iter().for_each(|finding| worst.add(finding));
    worst.add(local::socket(&config.socket.path));
    match &config.mqtt {
        None => worst.add(Finding::ok("broker", "none is configured; temperd will be on the socket alone")),
        Some(mqtt) => broker::look(mqtt).await.into_iter().for_each(|finding| worst.add(finding)),
    }
    worst.verdict()
}

/// Prints findings as they come and counts the problems.
#[derive(Debug, Default)]
struct Worst {
    problems: usize,
}

impl Worst {
    fn add(&mut self, finding: Finding) {
        self.problems += usize::from(finding.grade == Grade::Problem);
        print(&finding);
    }

    fn verdict(self) -> Result<(), CliError> {
        match self.problems {
            0 => Ok(()),
            1 => Err(CliError::Problems("1 problem".into())),
            n => Err(CliError::Problems(format!("{n} problems"))),
        }
    }
}

/// Where nobody reads, the exit code still tells.
fn print(finding: &Finding) {
    let _ = writeln!(io::stdout(), "{finding}");
}
