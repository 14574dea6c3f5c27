//! Looks at the board on a thread of its own: reading files may take a driver's time, which the runtime must not wait for.

use std::{
    io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use crate::board::{
    Board, Sample,
    host::{self, Process, Processes},
    identity::Identity,
};

/// A look that takes longer is given up, and the governor decides without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two walks through the folders, for devices whose drivers came later.
const WALK: Duration = Duration::from_secs(300);

/// One look.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// The board.
    pub sample: Sample,
    /// This process.
    pub daemon: Option<Process>,
    /// The engine's.
    pub engine: Option<Process>,
}

/// Asks the thread. It ends with this.
#[derive(Debug)]
pub struct Sampler {
    ask: mpsc::Sender<Ask>,
}

#[derive(Debug)]
struct Ask {
    engine: Option<u32>,
    reply: oneshot::Sender<Look>,
}

impl Sampler {
    /// Starts the thread; it says what the board is as soon as it has looked it over.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(root: PathBuf) -> io::Result<(Self, oneshot::Receiver<Identity>)> {
        let (ask, asks) = mpsc::channel(1);
        let (identity, identified) = oneshot::channel();
        thread::Builder::new().name("board".into()).spawn(move || serve(root, identity, asks))?;
        Ok((Self { ask }, identified))
    }

    /// One look; `None` where it takes too long.
    pub async fn look(&self, engine: Option<u32>) -> Option<Look> {
        let (reply, answer) = oneshot::channel();
        // Where the thread is still at the look before, there is no use in asking again.
        self.ask.try_send(Ask { engine, reply }).ok()?;
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

fn serve(root: PathBuf, identity: oneshot::Sender<Identity>, mut asks: mpsc::Receiver<Ask>) {
    // Where the daemon's own cgroup is not known, its limit is not seen.
    let mut board = Board::open(&root, &host::own_cgroup().unwrap_or_default());
    let _nobody_asks = identity.send(board.identity().clone());
    let mut processes = Processes::default();
    let mut walked = Instant::now();
    while let Some(Ask { engine, reply }) = asks.blocking_recv() {
        let now = Instant::now();
        if now.duration_since(walked) >= WALK {
            walked = now;
            board.rediscover();
        }
        let own = std::process::id();
        let pids: Vec<u32> = [own].into_iter().chain(engine).collect();
        let mut found = processes.read(&pids).into_iter();
        let (daemon, engine) = (found.next().flatten(), found.next().flatten());
        let _too_late = reply.send(Look { sample: board.sample(now), daemon, engine });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_looks_at_a_board_and_at_this_process() {
        let (sampler, identity) = Sampler::start(PathBuf::from("/")).expect("a thread");
        identity.await.expect("a board");
        let look = sampler.look(None).await.expect("a look");
        assert!(look.sample.memory.is_ok() && look.daemon.is_some() && look.engine.is_none());
    }
}
