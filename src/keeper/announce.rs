//! What is said of the governor's decisions, and when. Pure.
//!
//! Decisions come twice a second, and most differ from the one before by a hundredth of the pace. What is retained at
//! `/state`, published at `/event` and written to the log changes with what a person would call another decision:
//! - another context, number of layers or sequences, admission, or pin: at once;
//! - a pace that has moved by [`PACE`], or has come to one of its ends: not more often than each [`PACE_APART`];
//! - other reasons or skipped steps alone: not more often than each [`WHY_APART`].

use std::{mem::discriminant, sync::Arc, time::Duration};

use crate::{
    governor::{Code, Decision, LEAST, OperatingPoint, Reading, Skipped},
    wire::v1,
};

/// How far pace moves before it is said.
const PACE: f64 = 0.05;
/// Between two words on pace.
const PACE_APART: Duration = Duration::from_secs(2);
/// Between two words on reasons alone: a reading at its limit goes back and forth with each look.
const WHY_APART: Duration = Duration::from_secs(5);

/// Names of what was read.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The hottest zone.
    pub zone: Option<Arc<str>>,
    /// Active throttle alerts.
    pub alerts: Vec<String>,
}

/// What is to be said.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// The point in force.
    pub point: v1::OperatingPoint,
    /// The one that was said before.
    pub previous: v1::OperatingPoint,
    /// All reasons, most pressing first.
    pub reasons: Vec<v1::Reason>,
    /// Steps that were passed over, with the reason.
    pub skipped: Vec<String>,
}

/// What was said last.
#[derive(Debug)]
pub struct Announcer {
    point: OperatingPoint,
    codes: Vec<Code>,
    skipped: Vec<Skipped>,
    at: Duration,
    /// When each reason came up, by the governor's clock and by the calendar: the latter may jump.
    since: Vec<(Code, Duration, f64)>,
}

impl Announcer {
    /// Nothing was said but the full point.
    #[must_use]
    pub fn new(full: OperatingPoint) -> Self {
        Self { point: full, codes: Vec::new(), skipped: Vec::new(), at: Duration::ZERO, since: Vec::new() }
    }

    /// What is to be said of a decision; `None` where it is as good as said. `asked`: somebody waits for an answer.
    /// `unix` is the calendar's time, in seconds, at `now`.
    pub fn hear(
        &mut self,
        decision: &Decision,
        asked: bool,
        now: Duration,
        unix: f64,
        sources: &Sources,
    ) -> Option<News> {
        let known = std::mem::take(&mut self.since);
        self.since = (decision.reasons.iter())
            .map(|reason| {
                let before = known.iter().find(|(code, since, _)| (*code, *since) == (reason.code, reason.since));
                let ago = now.saturating_sub(reason.since).as_secs_f64();
                before.copied().unwrap_or((reason.code, reason.since, unix - ago))
            })
            .collect();
        let codes: Vec<Code> = decision.reasons.iter().map(|reason| reason.code).collect();
        if !asked && !self.is_news(decision, &codes, now) {
            return None;
        }
        let previous = std::mem::replace(&mut self.point, decision.point);
        (self.codes, self.at) = (codes, now);
        self.skipped.clone_from(&decision.skipped);
        let reasons = decision.reasons.iter().zip(&self.since).map(|(reason, (_, _, since))| v1::Reason {
            code: reason.code.as_str().into(),
            reading: reason.reading.as_str().into(),
            value: reason.value.map(tenths),
            limit: reason.limit.map(tenths),
            since: (since * 1000.0).round() / 1000.0,
            source: match reason.reading {
                Reading::HottestC => sources.zone.as_deref().map(Into::into),
                Reading::ThrottleAlert => Some(sources.alerts.join(", ")).filter(|alerts| !alerts.is_empty()),
                _ => None,
            },
        });
        Some(News {
            point: wire(decision.point),
            previous: wire(previous),
            reasons: reasons.collect(),
            skipped: decision.skipped.iter().map(ToString::to_string).collect(),
        })
    }

    fn is_news(&self, decision: &Decision, codes: &[Code], now: Duration) -> bool {
        let point = decision.point;
        let steps = |point: OperatingPoint| OperatingPoint { pace: 1.0, ..point };
        if steps(point) != steps(self.point) {
            return true;
        }
        let apart = now.saturating_sub(self.at);
        let moved = (point.pace - self.point.pace).abs();
        let at_its_end = (point.pace >= 1.0 || point.pace <= LEAST) && moved > 0.0;
        if (moved >= PACE || at_its_end) && apart >= PACE_APART {
            return true;
        }
        let same = |(one, other): (&Skipped, &Skipped)| {
            one.step == other.step && discriminant(&one.why) == discriminant(&other.why)
        };
        let skipped =
            decision.skipped.len() == self.skipped.len() && decision.skipped.iter().zip(&self.skipped).all(same);
        (lasting(codes) != lasting(&self.codes) || !skipped) && apart >= WHY_APART
    }
}

/// Reasons for pace come and go with it, and are said with it.
fn lasting(codes: &[Code]) -> Vec<Code> {
    codes.iter().copied().filter(|code| !matches!(code, Code::Hot | Code::OverCurrent)).collect()
}

/// As the status writes it.
#[must_use]
pub fn wire(point: OperatingPoint) -> v1::OperatingPoint {
    #[allow(clippy::cast_possible_truncation, reason = "a share between 0 and 1")]
    let pace = ((point.pace * 1000.0).round() / 1000.0) as f32;
    v1::OperatingPoint {
        context: point.context,
        gpu_layers: point.gpu_layers,
        parallel: point.parallel,
        pace,
        admit: point.admit.as_str().into(),
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::governor::{Admit, Cache, Reason, Step, Why};

    const FULL: OperatingPoint =
        OperatingPoint { context: 8192, gpu_layers: 0, parallel: 8, pace: 1.0, admit: Admit::Run };

    fn decision(point: OperatingPoint, codes: &[Code]) -> Decision {
        let reason = |code: &Code| Reason {
            code: *code,
            reading: Reading::HottestC,
            value: Some(88.04),
            limit: Some(87.0),
            since: Duration::from_secs(90),
        };
        Decision {
            point,
            cache: Cache::Keep,
            grow_to: 8192,
            pinned: false,
            layers_failed: false,
            reasons: codes.iter().map(reason).collect(),
            skipped: Vec::new(),
        }
    }

    fn paced(pace: f64) -> Decision {
        decision(OperatingPoint { pace, ..FULL }, if pace < 1.0 { &[Code::Hot] } else { &[] })
    }

    fn hear(announcer: &mut Announcer, decision: &Decision, seconds: f64) -> Option<News> {
        let sources = Sources { zone: Some("tj-thermal".into()), alerts: Vec::new() };
        announcer.hear(decision, false, Duration::from_secs_f64(seconds), 1e9 + seconds, &sources)
    }

    #[test]
    fn pace_is_said_when_it_has_moved_or_come_to_its_end() {
        let mut announcer = Announcer::new(FULL);
        let mut said = |pace, seconds| hear(&mut announcer, &paced(pace), seconds).map(|news| news.point.pace);
        assert_eq!(said(0.97, 100.0), None);
        assert_eq!(said(0.94, 100.5), Some(0.94));
        assert_eq!(said(0.80, 101.0), None, "not so soon");
        assert_eq!(said(0.70, 102.5), Some(0.7));
        assert_eq!(said(0.66, 110.0), None);
        assert_eq!(said(1.0, 110.5), Some(1.0));
        assert_eq!(said(0.97, 120.0), None);
        assert_eq!(said(1.0, 120.5), None, "it is what was said");
    }

    #[test]
    fn a_step_is_said_at_once_with_its_reasons() {
        let mut announcer = Announcer::new(FULL);
        let hold = OperatingPoint { admit: Admit::Hold, ..FULL };
        let news = hear(&mut announcer, &decision(hold, &[Code::TooHot]), 100.0).expect("news");
        assert_eq!((news.point.admit.as_str(), news.previous.admit.as_str()), ("hold", "run"));
        let [reason] = &news.reasons[..] else { panic!("one reason: {news:?}") };
        assert_eq!((reason.code.as_str(), reason.value, reason.limit), ("too_hot", Some(88.0), Some(87.0)));
        assert_eq!((reason.since, reason.source.as_deref()), (1e9 + 90.0, Some("tj-thermal")));
        assert!(hear(&mut announcer, &decision(FULL, &[]), 100.1).is_some());
    }

    #[test]
    fn reasons_that_go_back_and_forth_are_said_seldom() {
        let mut announcer = Announcer::new(FULL);
        let codes = [Code::MemoryLow, Code::MemoryRecovering];
        let said = (0..600).filter(|half| {
            let code = codes[half % 2];
            hear(&mut announcer, &decision(FULL, &[code]), 0.5 * *half as f64).is_some()
        });
        let said = said.count();
        assert!((2..=60).contains(&said), "{said} in five minutes");
    }

    #[test]
    fn since_is_kept_while_the_calendar_jumps() {
        let mut announcer = Announcer::new(FULL);
        let sources = Sources::default();
        let mut since = |pace, seconds, unix| {
            let news = announcer.hear(&paced(pace), true, Duration::from_secs(seconds), unix, &sources);
            news.expect("asked for").reasons[0].since
        };
        assert_eq!(since(0.5, 100, 50.0), 40.0);
        assert_eq!(since(0.6, 101, 2e9), 40.0);
    }

    #[test]
    fn skipped_steps_are_said_once() {
        let mut announcer = Announcer::new(FULL);
        let skipped = Skipped { step: Step::Layers(50), why: Why::NoGain };
        let decision = Decision { skipped: vec![skipped], ..decision(FULL, &[]) };
        let news = hear(&mut announcer, &decision, 10.0).expect("news");
        assert_eq!(news.skipped, ["layers 50 would change nothing now"]);
        assert_eq!(hear(&mut announcer, &decision, 100.0), None);
    }

    proptest! {
        /// Whatever pace does, it is said at most every two seconds, and what was said last is near what is in force.
        #[test]
        fn pace_is_never_a_flood_and_never_far_from_what_was_said(paces in prop::collection::vec(LEAST..=1.0_f64, 1..200)) {
            let mut announcer = Announcer::new(FULL);
            let (mut last, mut at) = (1.0, f64::NEG_INFINITY);
            for (half, pace) in paces.into_iter().enumerate() {
                let now = 10.0 + 0.5 * half as f64;
                if hear(&mut announcer, &paced(pace), now).is_some() {
                    prop_assert!(now - at >= 2.0);
                    (last, at) = (pace, now);
                }
                prop_assert!((pace - last).abs() < PACE || now - at < 2.0);
            }
        }
    }
}
