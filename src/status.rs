//! What the daemon says of itself, in one place: each part writes its own fields, every way in reads the whole.

use std::sync::Arc;

use tokio::sync::watch;

use crate::wire::v1;

/// The status in force. Clones share it.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    sender: Arc<watch::Sender<v1::Status>>,
}

impl StatusBoard {
    /// Starts with what the configuration knows.
    #[must_use]
    pub fn new(initial: v1::Status) -> Self {
        Self { sender: Arc::new(watch::Sender::new(initial)) }
    }

    /// A copy of the status now.
    #[must_use]
    pub fn get(&self) -> v1::Status {
        self.sender.borrow().clone()
    }

    /// Changes fields; watchers wake only where something really changed.
    pub fn update(&self, change: impl FnOnce(&mut v1::Status)) {
        self.sender.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    /// To wait for changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<v1::Status> {
        self.sender.subscribe()
    }
}
