//! One engine process: started with one end of a socket pair as its standard input, ended when dropped.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use prost::Message;
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, ChildStderr, Command},
    sync::mpsc,
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::{binaries::Program, frames, handover::Handover};
use crate::wire::engine::{FromEngine, ToEngine};

/// Longest line of the engine's standard error that is logged.
const STDERR_LINE: u64 = 2048;

/// Between the end of its socket and its own; a core dump takes the most of it.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// A living engine.
#[derive(Debug)]
pub struct EngineProcess {
    child: Child,
    incoming: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
}

impl EngineProcess {
    /// Starts the program, with what it inherits: the file that is kept open, and where that cannot be (no `/proc`), what is
    /// at its path. Frames that come out of `outgoing` are written to it, until the channel or the process closes.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn spawn(
        program: &Program<'_>,
        environment: &[(&str, &str)],
        handover: &Handover,
        outgoing: mpsc::Receiver<ToEngine>,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        let numbers = handover.inherited().map(|(name, file)| (name, file.as_raw_fd().to_string()));
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| (*name, (*value).to_owned())).chain(numbers).collect();
        let start = |name: &Path, stdin: OwnedFd| {
            Command::new(name)
                .arg0(program.path)
                .envs(environment.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::from(stdin))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                // Ctrl-C in a terminal goes to the whole group: the daemon drains, and needs its engine for that.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
        };
        let theirs = OwnedFd::from(theirs);
        // No other process is started by this one, so nobody else inherits them meanwhile.
        for (_, file) in handover.inherited() {
            fcntl_setfd(file, FdFlags::empty())?;
        }
        let spawned = match program.by_descriptor() {
            Some(kept) => start(&kept, theirs.try_clone()?).or_else(|error| {
                log::warn!(target: "temperd::engine", path:% = program.path.display();
                    "what is kept open does not start, what is at its path is tried: {error}");
                start(program.path, theirs)
            }),
            None => start(program.path, theirs),
        };
        for (_, file) in handover.inherited() {
            fcntl_setfd(file, FdFlags::CLOEXEC)?;
        }
        let mut child = spawned?;
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log_stderr(stderr));
        }
        tokio::spawn(write_frames(write, outgoing));
        Ok(Self { child, incoming: FramedRead::new(read, frames::codec()) })
    }

    /// The next frame; `None` where the engine has closed its end, also with frames that it has not read.
    ///
    /// # Errors
    /// A broken or oversized frame.
    pub async fn next(&mut self) -> io::Result<Option<FromEngine>> {
        let bytes = match self.incoming.next().await {
            None => return Ok(None),
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Some(bytes) => bytes?,
        };
        FromEngine::decode(bytes).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the process and says how it ended, or had ended before.
    ///
    /// # Errors
    /// Those of waiting for it.
    pub async fn end(mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.child.start_kill()?;
        self.child.wait().await
    }

    /// How the process ended, once it has closed its end of the socket. One that lives on without it is killed.
    ///
    /// # Errors
    /// Those of waiting for it.
    pub async fn status(&mut self) -> io::Result<ExitStatus> {
        if let Ok(status) = tokio::time::timeout(ENDS_WITHIN, self.child.wait()).await {
            return status;
        }
        self.child.start_kill()?;
        self.child.wait().await
    }
}

async fn write_frames(write: OwnedWriteHalf, mut outgoing: mpsc::Receiver<ToEngine>) {
    let mut sink = FramedWrite::new(write, frames::codec());
    while let Some(frame) = outgoing.recv().await {
        // The end of the process is noticed where its frames are read.
        if sink.send(Bytes::from(frame.encode_to_vec())).await.is_err() {
            return;
        }
    }
}

/// What llama.cpp writes as it dies (its log comes in frames): assertions and the backtrace, never a prompt.
async fn log_stderr(stderr: ChildStderr) {
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(STDERR_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => log::warn!(target: "temperd::engine", "stderr: {}", String::from_utf8_lossy(&line).trim_end()),
        }
    }
}
