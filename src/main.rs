//! `temperd`: daemon and client. Everything is in the library; here a result becomes an exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use temperd::cli::Args;

fn main() -> ExitCode {
    match Args::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when this fails.
            let _ = writeln!(io::stderr(), "temperd: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
