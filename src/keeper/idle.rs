//! Whether nobody has asked anything for so long that the model need not be in memory. Pure.

use std::time::Duration;

use crate::dispatch::Demand;

/// Counts from the last request's end.
#[derive(Debug)]
pub struct Idle {
    after: Option<Duration>,
    /// Since when there is nothing to do.
    since: Duration,
    admitted: u64,
}

impl Idle {
    /// Asleep after so long; never without.
    #[must_use]
    pub fn new(after: Option<Duration>) -> Self {
        Self { after, since: Duration::ZERO, admitted: 0 }
    }

    /// Whether it is so at `now`. A load counts as something to do.
    pub fn asleep(&mut self, now: Duration, demand: Demand, loading: bool) -> bool {
        // A request may have come and gone between two looks.
        if demand.requests > 0 || demand.admitted != self.admitted || loading {
            (self.since, self.admitted) = (now, demand.admitted);
        }
        self.after.is_some_and(|after| demand.requests == 0 && now.saturating_sub(self.since) >= after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_the_last_request() {
        let mut idle = Idle::new(Some(Duration::from_secs(60)));
        let mut asleep = |seconds, requests, admitted| {
            idle.asleep(Duration::from_secs(seconds), Demand { requests, admitted }, false)
        };
        assert!(!asleep(59, 0, 0));
        assert!(asleep(60, 0, 0));
        assert!(!asleep(61, 1, 1), "a request wakes it");
        assert!(!asleep(500, 1, 1), "however long it takes");
        assert!(!asleep(559, 0, 1));
        assert!(asleep(560, 0, 1));
        assert!(!asleep(600, 0, 2), "one that came and went");
        assert!(asleep(660, 0, 2));
    }

    #[test]
    fn without_a_time_it_never_sleeps() {
        assert!(!Idle::new(None).asleep(Duration::from_secs(1_000_000), Demand::default(), false));
    }

    #[test]
    fn a_model_that_is_being_loaded_is_wanted() {
        let mut idle = Idle::new(Some(Duration::from_secs(1)));
        assert!(!idle.asleep(Duration::from_secs(5), Demand::default(), true));
        assert!(!idle.asleep(Duration::from_millis(5900), Demand::default(), false));
        assert!(idle.asleep(Duration::from_secs(6), Demand::default(), false));
    }
}
