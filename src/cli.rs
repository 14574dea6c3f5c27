//! The command line: what can be said, and what each way to end is worth as an exit code.

use std::{fmt::Display, path::PathBuf};

use clap::{Parser, Subcommand};

use crate::{
    config::{Config, ConfigErrors, Machine, Overrides},
    daemon::{self, DaemonError},
    telemetry,
};

pub mod ask;
pub mod check;
pub mod client;
pub mod status;

/// An LLM daemon for edge boxes: answers over MQTT and a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "temperd", version, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run(RunArgs),
    /// Ask a question, and print the answer as it comes.
    Ask(ask::AskArgs),
    /// Show what the daemon is doing.
    Status(status::StatusArgs),
    /// Say what is fine and what is not, with the remedy.
    Check(RunArgs),
}

/// The settings that can be given on the command line; `check` takes the same as `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Configuration file in TOML; config.example.toml describes every key.
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Model file.
    #[arg(long, value_name = "GGUF")]
    model: Option<PathBuf>,
    /// Where the Unix socket is.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The MQTT broker; user and password go into the configuration.
    #[arg(long, value_name = "mqtt[s]://HOST[:PORT]")]
    mqtt: Option<String>,
    /// Name of this box in MQTT topics.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Take board readings (/sys, /proc/meminfo, …) from below this directory.
    #[arg(long, value_name = "DIR")]
    board_root: Option<PathBuf>,
}

impl RunArgs {
    /// The checked configuration.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(self) -> Result<Config, ConfigErrors> {
        let overrides = Overrides {
            model: self.model,
            socket: self.socket,
            mqtt: self.mqtt,
            node: self.node,
            board_root: self.board_root,
        };
        crate::config::load(self.config.as_deref(), overrides, &Machine::detect())
    }
}

impl Args {
    /// Does what was asked for.
    ///
    /// # Errors
    /// Every way to end that is not a success.
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Run(args) => {
                let config = args.load()?;
                telemetry::logging::init(config.log);
                runtime(&mut tokio::runtime::Builder::new_multi_thread())?.block_on(daemon::run(config))?;
                Ok(())
            }
            Command::Ask(args) => client_runtime()?.block_on(ask::run(args)),
            Command::Status(args) => client_runtime()?.block_on(status::run(args)),
            Command::Check(args) => client_runtime()?.block_on(check::run(args)),
        }
    }
}

/// A client has one thing to do at a time.
fn client_runtime() -> Result<tokio::runtime::Runtime, CliError> {
    runtime(&mut tokio::runtime::Builder::new_current_thread())
}

fn runtime(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, CliError> {
    builder.enable_all().build().map_err(|error| CliError::Failed(format!("cannot start the runtime: {error}")))
}

/// Every way to end that is not a success.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error("bad configuration\n  {}", .0.0.join("\n  "))]
    Config(#[from] ConfigErrors),
    /// The same, where the errors have been printed.
    #[error("bad configuration")]
    BadConfiguration,
    /// The daemon could not run.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// `check` has found something.
    #[error("{0} to be put right")]
    Problems(String),
    /// Arguments that do not fit.
    #[error("{0}")]
    Usage(String),
    /// No daemon listens.
    #[error("nobody there: {0}; start the daemon with `temperd run`, or name its socket with `--socket`")]
    Nobody(String),
    /// The request was not accepted.
    #[error("refused: {0}")]
    Refused(String),
    /// The request was accepted and failed, or something on our side did.
    #[error("{0}")]
    Failed(String),
    /// The request was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The request's deadline came first.
    #[error("expired: {0}")]
    Expired(String),
}

impl CliError {
    /// 69 and 78 are sysexits' EX_UNAVAILABLE and EX_CONFIG.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Daemon(_) | Self::Problems(_) | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::Cancelled => 4,
            Self::Expired(_) => 5,
            Self::Nobody(_) => 69,
            Self::Config(_) | Self::BadConfiguration => 78,
        }
    }

    /// An option that a later version brings.
    fn later(option: impl Display) -> Self {
        Self::Usage(format!("{option} is not available yet"))
    }
}
