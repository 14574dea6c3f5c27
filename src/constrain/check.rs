//! Constraints at admission: compiled beside the runtime, one at a time, and forgotten.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{Constrainer, Constraint};
use crate::request::{ErrorCode, RequestError};

/// Some compile in a millisecond, all that the limits let through in a fraction of a second. What takes longer is
/// refused, since the engine would stand still as long.
const LONGEST: Duration = Duration::from_secs(2);

/// Looks at constraints. Clones share the one place to do it, so that a client that sends costly ones takes one core.
#[derive(Debug, Clone)]
pub struct Checker(Arc<Semaphore>);

impl Default for Checker {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Checker {
    /// Refuses what cannot be compiled.
    ///
    /// # Errors
    /// `invalid_request` naming the field, with the reason.
    pub async fn check(&self, constraint: &Constraint) -> Result<(), RequestError> {
        let param = constraint.param();
        let (constraint, place) = (constraint.clone(), self.0.clone());
        let compiled = async {
            let permit = place.acquire_owned().await;
            let compiled = tokio::task::spawn_blocking(move || {
                // It stays taken where nobody waits for the result any more.
                let _permit = permit;
                Constrainer::of_bytes()?.matcher(&constraint)?.allowed().map(drop)
            });
            compiled.await
        };
        match tokio::time::timeout(LONGEST, compiled).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(reason))) => Err(RequestError::invalid(param, reason)),
            Ok(Err(error)) => Err(RequestError::new(ErrorCode::Internal, format!("{param}: {error}"))),
            Err(_) => {
                let seconds = LONGEST.as_secs();
                Err(RequestError::invalid(param, format_args!("takes over {seconds} s to compile; make it smaller")))
            }
        }
    }
}
