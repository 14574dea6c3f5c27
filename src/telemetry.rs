//! What the daemon counts and publishes about itself. Nothing here ever holds text of a prompt or an answer.

pub mod logging;
pub mod metrics;
pub mod snapshot;
