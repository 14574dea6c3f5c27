//! What the daemon knows of an engine: how to find, start, feed and replace the process, and the vocabulary it told us.
//!
//! ```text
//!   bad file, no flavour of use ───────┐
//!        │ SIGHUP, file changed        ▼
//!   Starting ─ Vocabulary ─ Ready    Failed
//!     ▲  ▲ ▲                │ │ │      │
//!     │  │ └── back-off ◀ crash, hang  └── SIGHUP, file changed ──▶ Starting
//!     │  └─ other layers, a leak ◀┘ │
//!     └─ run, a request ── Unloaded
//! ```
//! Starting is one process for each flavour that is tried ([`flavours`]). [`supervisor`] walks these states, by what it sees and by the governor's [`operate::Orders`], and tells the dispatcher
//! by [`EngineEvent`]s; an [`EngineHandle`] reaches whatever engine lives now. The engine keeps nothing that cannot be
//! rebuilt.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    chat::Prompter,
    wire::engine::{
        Embed, FromEngine, Operate, Prefix, Save, Segment, Start, Stop, ToEngine, Tokenise, Tokenised, from_engine,
        to_engine,
    },
};

pub mod backoff;
pub mod binaries;
pub mod flavours;
mod follow;
pub mod frames;
pub mod growth;
pub mod handover;
pub mod kernel;
mod load;
pub mod locate;
pub mod operate;
pub mod plan;
mod prefixes;
pub mod process;
pub mod pulse;
pub mod supervisor;
pub mod watch;

use plan::Change;

/// Frames on their way to the engine. Requests in flight are bounded by queue and slots, so this never fills up in
/// practice; where it does, senders wait.
const OUTGOING: usize = 256;

/// What happens to the engine, for the dispatcher.
#[derive(Debug)]
pub enum EngineEvent {
    /// A process is started to read the model.
    Loading,
    /// It has said hello.
    Greeted {
        /// What it was built for: "cpu", "cuda" or "vulkan".
        flavour: String,
    },
    /// Prompts can be rendered and tokenised from here on.
    Vocabulary(Arc<Prompter>),
    /// Requests can run.
    Ready(crate::wire::engine::Ready),
    /// The KV cache has another size.
    Resized(crate::wire::engine::Resized),
    /// It is known by how many threads steps are made best.
    Measured(crate::wire::engine::Measured),
    /// Tokens.
    Step(crate::wire::engine::Step),
    /// Vectors of texts.
    Embedded(crate::wire::engine::Embedded),
    /// The process is gone by itself; another will be started.
    Ended {
        /// For people.
        reason: String,
    },
    /// The process was ended on purpose.
    Changing(Change),
    /// No engine is started until the governor's orders allow one.
    Unloaded {
        /// Whether that is only because nobody asks anything: the next request ends it.
        asleep: bool,
    },
    /// No engine is started again until SIGHUP or a change of the model file.
    Failed {
        /// For people.
        reason: String,
    },
}

/// Why the engine did not tokenise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokeniseError {
    /// There is no engine with a vocabulary now.
    #[error("no engine is there to tokenise")]
    Gone,
    /// The engine's own words.
    #[error("the engine could not tokenise: {0}")]
    Engine(String),
}

/// Reaches the engine that lives now. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct EngineHandle {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    outgoing: Option<mpsc::Sender<ToEngine>>,
    next_tokenise: u64,
    tokenising: HashMap<u64, oneshot::Sender<Tokenised>>,
}

impl EngineHandle {
    /// A std mutex: nothing is awaited while it is held.
    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects a new process; frames for it come out of the receiver, `first` before any other.
    pub(crate) fn attach(&self, first: [to_engine::Frame; 2]) -> mpsc::Receiver<ToEngine> {
        let (sender, receiver) = mpsc::channel(OUTGOING);
        for frame in first {
            sender.try_send(ToEngine { frame: Some(frame) }).expect("a new channel has room for two frames");
        }
        let mut shared = self.lock();
        shared.outgoing = Some(sender);
        shared.tokenising.clear();
        receiver
    }

    /// Forgets the process; whoever waits for tokens learns that it is gone.
    pub(crate) fn detach(&self) {
        let mut shared = self.lock();
        shared.outgoing = None;
        shared.tokenising.clear();
    }

    async fn send(&self, frame: to_engine::Frame) -> bool {
        let Some(outgoing) = self.lock().outgoing.clone() else { return false };
        outgoing.send(ToEngine { frame: Some(frame) }).await.is_ok()
    }

    /// Starts a sequence. `false` where there is no engine: its end is then on the way as an event.
    pub async fn start(&self, start: Start) -> bool {
        self.send(to_engine::Frame::Start(start)).await
    }

    /// Starts reading texts for their vectors. As [`Self::start`].
    pub async fn embed(&self, embed: Embed) -> bool {
        self.send(to_engine::Frame::Embed(embed)).await
    }

    /// Stops a sequence; the engine confirms with its `finished`.
    pub async fn stop(&self, sequence: u64) -> bool {
        self.send(to_engine::Frame::Stop(Stop { sequence })).await
    }

    /// Sets the engine's part of the operating point.
    pub(crate) async fn operate(&self, operate: Operate) -> bool {
        self.send(to_engine::Frame::Operate(operate)).await
    }

    /// Has a system prompt of the configuration kept.
    pub(crate) async fn prefix(&self, prefix: Prefix) -> bool {
        self.send(to_engine::Frame::Prefix(prefix)).await
    }

    /// Asks for the state; the engine makes no step any more, and answers with `Saved`.
    pub(crate) async fn save(&self) -> bool {
        self.send(to_engine::Frame::Save(Save {})).await
    }

    /// Token ids of a prompt, and how many of them, from the first, are the operator's. `public` is its operator's part followed by a stand-in for the rest; empty for a prompt
    /// that has none.
    ///
    /// # Errors
    /// Where no engine lives, it ends before it answers, or it refuses.
    pub async fn tokenise(
        &self,
        segments: Vec<Segment>,
        public: Vec<Segment>,
    ) -> Result<(Vec<u32>, u32), TokeniseError> {
        let ask = Tokenise { segments, public, add_bos: true, ..Tokenise::default() };
        self.ask_tokens(ask).await.map(|answer| (answer.tokens, answer.public_prefix))
    }

    /// Token ids of a text by itself, with whatever the model wants around it; control tokens in it stay text.
    ///
    /// # Errors
    /// As [`Self::tokenise`].
    pub async fn tokenise_text(&self, text: &str) -> Result<Vec<u32>, TokeniseError> {
        let segments = vec![Segment { text: text.into(), special: false }];
        let ask = Tokenise { segments, add_special: true, ..Tokenise::default() };
        self.ask_tokens(ask).await.map(|answer| answer.tokens)
    }

    async fn ask_tokens(&self, ask: Tokenise) -> Result<Tokenised, TokeniseError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut shared = self.lock();
            let id = shared.next_tokenise;
            shared.next_tokenise += 1;
            shared.tokenising.insert(id, sender);
            id
        };
        if !self.send(to_engine::Frame::Tokenise(Tokenise { id, ..ask })).await {
            self.lock().tokenising.remove(&id);
            return Err(TokeniseError::Gone);
        }
        match receiver.await {
            Err(_) => Err(TokeniseError::Gone),
            Ok(Tokenised { error: Some(error), .. }) => Err(TokeniseError::Engine(error)),
            Ok(answer) => Ok(answer),
        }
    }

    /// Whether anybody waits for tokens.
    pub(crate) fn is_tokenising(&self) -> bool {
        !self.lock().tokenising.is_empty()
    }

    /// Hands an answer to whoever asked for it.
    pub(crate) fn tokenised(&self, answer: Tokenised) {
        if let Some(sender) = self.lock().tokenising.remove(&answer.id) {
            let _asker_gone = sender.send(answer);
        }
    }
}

/// The frame inside, if the engine sent one that this build knows.
fn inner(frame: FromEngine) -> Option<from_engine::Frame> {
    frame.frame
}
