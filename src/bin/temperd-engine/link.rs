//! The socket to the daemon: one writer for all threads, and the thread that reads.

use std::{
    io::{self, BufReader},
    os::unix::net::UnixStream,
    sync::{
        Mutex, PoisonError,
        mpsc::{SyncSender, TrySendError},
    },
};

use temperd::{
    engine::frames,
    wire::engine::{
        Embed, FromEngine, Hello, Load, Log, Operate, Prefix, Start, ToEngine, Tokenised, from_engine, to_engine,
    },
};

use crate::vocabulary::Job;

/// What the owner of the model is told.
pub enum Command {
    /// Load this model, in place of another if there is one.
    Load(Load),
    /// Answer this prompt.
    Start(Start),
    /// Make vectors of these texts.
    Embed(Embed),
    /// End this sequence.
    Stop(u64),
    /// Work at this operating point from now on.
    Operate(Operate),
    /// Leave the KV cache to another engine.
    Save,
    /// Keep this system prompt.
    Prefix(Prefix),
}

/// The writing half.
pub struct Link(Mutex<UnixStream>);

impl Link {
    /// A link over the daemon's socket.
    pub fn new(socket: UnixStream) -> Self {
        Self(Mutex::new(socket))
    }

    /// Sends one frame. Does not return where the daemon is gone.
    pub fn send(&self, frame: from_engine::Frame) {
        // The lock holds no state that a panic could leave half-changed but the socket, and a panic ends the process.
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if frames::write(&mut *socket, &FromEngine { frame: Some(frame) }).is_err() {
            leave();
        }
    }
}

/// Ends the process at once. The exit handlers of C++ (ggml's and CUDA's registries) must not run: they would free
/// what a decode on another thread is using.
pub fn leave() -> ! {
    // SAFETY: `_exit` takes no pointers and does not return; no state of ours outlives the process.
    unsafe { libc::_exit(0) }
}

/// The reader thread: hands each frame to whom it concerns until the daemon closes the socket.
pub fn read(socket: UnixStream, link: &Link, owner: &SyncSender<Command>, tokeniser: &SyncSender<Job>) {
    let mut socket = BufReader::new(socket);
    match next(&mut socket) {
        Ok(Some(to_engine::Frame::Hello(hello))) if fits(&hello) => {}
        Ok(Some(to_engine::Frame::Hello(hello))) => refuse(
            link,
            &format!(
                "engine {} with protocol {} cannot work for daemon {} with protocol {}: install both from one build",
                frames::BUILD,
                frames::PROTOCOL,
                hello.build,
                hello.protocol
            ),
        ),
        Ok(Some(_)) => refuse(link, "the daemon's first frame is not Hello"),
        Ok(None) => leave(),
        Err(error) => refuse(link, &format!("the daemon's first frame cannot be read: {error}")),
    }
    loop {
        let command = match next(&mut socket) {
            Ok(Some(to_engine::Frame::Load(load))) => Command::Load(load),
            Ok(Some(to_engine::Frame::Start(start))) => Command::Start(start),
            Ok(Some(to_engine::Frame::Embed(embed))) => Command::Embed(embed),
            Ok(Some(to_engine::Frame::Stop(stop))) => Command::Stop(stop.sequence),
            Ok(Some(to_engine::Frame::Tokenise(tokenise))) => {
                if let Err(TrySendError::Full(Job::Tokenise(tokenise))) = tokeniser.try_send(Job::Tokenise(tokenise)) {
                    // Waiting here would hold up the stop of a running sequence behind texts.
                    let error = Some(format!("{} texts already wait for the tokeniser", crate::JOBS));
                    link.send(from_engine::Frame::Tokenised(Tokenised {
                        id: tokenise.id,
                        error,
                        ..Tokenised::default()
                    }));
                }
                continue;
            }
            Ok(Some(to_engine::Frame::Operate(operate))) => Command::Operate(operate),
            Ok(Some(to_engine::Frame::Prefix(prefix))) => Command::Prefix(prefix),
            Ok(Some(to_engine::Frame::Save(_))) => Command::Save,
            Ok(Some(to_engine::Frame::Hello(_))) => continue,
            Ok(None) => leave(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                refuse(link, &format!("a frame of the daemon cannot be read: {error}"))
            }
            Err(_) => leave(),
        };
        if owner.send(command).is_err() {
            return;
        }
    }
}

/// The next frame that this build knows; `None` at the end.
fn next(socket: &mut BufReader<UnixStream>) -> io::Result<Option<to_engine::Frame>> {
    loop {
        match frames::read::<ToEngine>(socket)? {
            None => return Ok(None),
            Some(ToEngine { frame: Some(frame) }) => return Ok(Some(frame)),
            Some(ToEngine { frame: None }) => {}
        }
    }
}

fn fits(hello: &Hello) -> bool {
    hello.protocol == frames::PROTOCOL && hello.build == frames::BUILD
}

#[allow(clippy::exit, reason = "the reader cannot return through main, whose thread may be in the midst of a decode")]
fn refuse(link: &Link, why: &str) -> ! {
    link.send(from_engine::Frame::Log(Log { level: "error".to_owned(), message: why.to_owned() }));
    std::process::exit(1)
}
