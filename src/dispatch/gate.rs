//! Leave to run. A way in that has to write something down before a request runs for the first time shuts a gate before
//! it. When its turn has come, the owner knocks; the request starts once leave is given, and keeps its place until then.
//!
//! ```text
//!   shut ── its turn ──▶ asked ── Leave::give ──▶ open
//! ```

use std::future::pending;

use tokio::sync::oneshot;

/// The owner's side.
#[derive(Debug)]
pub struct Gate(State);

#[derive(Debug)]
enum State {
    Shut(oneshot::Sender<Leave>),
    Asked,
    Open,
}

/// The way in's side: tells when the request's turn has come.
#[derive(Debug)]
pub struct Knock(Option<oneshot::Receiver<Leave>>);

/// Lets the request run, given or dropped: whoever is gone has nothing to write down, and its request ends anyhow.
#[derive(Debug)]
pub struct Leave(oneshot::Sender<()>);

impl Gate {
    /// No gate.
    #[must_use]
    pub fn open() -> Self {
        Self(State::Open)
    }

    /// A gate, and what is heard of it.
    #[must_use]
    pub fn shut() -> (Self, Knock) {
        let (knock, heard) = oneshot::channel();
        (Self(State::Shut(knock)), Knock(Some(heard)))
    }

    /// Whether the request may run.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.0, State::Open)
    }

    /// Its turn has come. `None` where there is no gate, or where it was asked for before.
    #[must_use]
    pub fn knock(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        if !matches!(self.0, State::Shut(_)) {
            return None;
        }
        let State::Shut(knock) = std::mem::replace(&mut self.0, State::Asked) else { return None };
        let (leave, given) = oneshot::channel();
        let _way_in_gone = knock.send(Leave(leave));
        Some(async move {
            let _given_or_dropped = given.await;
        })
    }

    /// Leave was given.
    pub fn opened(&mut self) {
        self.0 = State::Open;
    }
}

impl Knock {
    /// Of a request without a gate.
    #[must_use]
    pub fn never() -> Self {
        Self(None)
    }

    /// The request's turn has come: said once, and never where it ends before. Cancel-safe.
    pub async fn heard(&mut self) -> Leave {
        if let Some(heard) = &mut self.0 {
            let leave = heard.await;
            self.0 = None;
            if let Ok(leave) = leave {
                return leave;
            }
        }
        pending().await
    }
}

impl Leave {
    /// It may run.
    pub fn give(self) {
        let _owner_gone = self.0.send(());
    }
}
