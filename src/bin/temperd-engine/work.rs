//! The batch loop: commands are taken between steps, and waited for where nothing runs or pace has it pause.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    time::{Duration, Instant},
};

use temperd::wire::engine::{Heartbeat, Load, Saved, from_engine::Frame};

use crate::{
    decode::Decoder,
    embed::Embedder,
    handover::Leaving,
    link::{Command, Link},
    pace::Pace,
};

/// How often the daemon hears of the engine at work, and where nothing runs.
pub const AT_WORK: Duration = Duration::from_millis(250);
/// As above.
pub const IDLE: Duration = Duration::from_secs(5);

/// Between the end of an answer and the next turn of a conversation mostly lies more than this: until then nothing is tidied.
const PAUSE: Duration = Duration::from_millis(500);

/// A model at work, with all that is told of it.
pub struct Work<'a> {
    decoder: Decoder<'a>,
    embedder: Embedder<'a>,
    link: &'a Link,
    leaving: Leaving<'a>,
    /// The beginning of the time by which `pace` goes.
    began: Instant,
    pace: Pace,
    /// When the daemon was told last.
    beat: Instant,
    /// When something was done last, while there may be something to tidy.
    untidy: Option<Instant>,
}

/// What comes next.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, taken apart at once")]
enum Next {
    Command(Command),
    /// A step is due.
    Step,
    /// Only the time for a heartbeat.
    Nothing,
    /// The reader is gone.
    End,
}

impl<'a> Work<'a> {
    /// Nothing runs yet.
    pub fn new(decoder: Decoder<'a>, embedder: Embedder<'a>, link: &'a Link, leaving: Leaving<'a>) -> Self {
        let now = Instant::now();
        Self { decoder, embedder, link, leaving, began: now, pace: Pace::new(), beat: now, untidy: Some(now) }
    }

    /// Decodes until another model is wanted (returned) or the reader is gone.
    pub fn run(mut self, commands: &Receiver<Command>) -> Option<Load> {
        let (mut working, mut parked) = (false, 0);
        loop {
            // What came of a step goes out before cells are moved because of it.
            self.decoder.flush();
            self.decoder.settle();
            self.decoder.flush();
            let (works, waiting) = (self.works(), self.decoder.parked());
            let due = if works { AT_WORK } else { IDLE };
            let over = self.beat.elapsed() >= due;
            if over || (working && !works) || waiting != parked {
                self.tell();
            }
            if over && !works {
                self.decoder.interrupt();
                self.decoder.rest();
            }
            if self.untidy.is_some_and(|since| !works && since.elapsed() >= PAUSE) {
                self.untidy = self.decoder.park_at_rest().then(Instant::now);
            }
            // Once nothing is to be tidied.
            let idles = !works && self.untidy.is_none() && (self.decoder.measures() || self.decoder.reads_ahead());
            (working, parked) = (works, waiting);
            let next = self.next(commands, works || idles, due);
            if !matches!(next, Next::Step | Next::Nothing) {
                self.decoder.interrupt();
            }
            match next {
                Next::Command(Command::Start(start)) => self.decoder.start(start),
                Next::Command(Command::Embed(embed)) => self.embedder.push(embed),
                Next::Command(Command::Stop(id)) => {
                    self.decoder.stop(id);
                    self.embedder.stop(id);
                }
                Next::Command(Command::Operate(operate)) => {
                    self.pace.set(f64::from(operate.pace));
                    self.decoder.operate(&operate);
                }
                Next::Command(Command::Save) => self.save(),
                Next::Command(Command::Prefix(prefix)) => self.decoder.name_prefix(prefix),
                Next::Command(Command::Load(load)) => {
                    self.decoder.fail_all("another model is being loaded");
                    self.decoder.flush();
                    self.embedder.fail_all("another model is being loaded");
                    return Some(load);
                }
                Next::Step if idles => self.idle_piece(),
                Next::Step => self.step(),
                Next::Nothing => {}
                Next::End => return None,
            }
        }
    }

    fn works(&self) -> bool {
        self.decoder.works() || (!self.embedder.idle() && !self.decoder.has_left())
    }

    /// `works`: there is a step to make, if only to measure it.
    fn next(&self, commands: &Receiver<Command>, works: bool, due: Duration) -> Next {
        let pause = if works { self.pace.pause(self.seconds()) } else { IDLE.as_secs_f64() };
        if pause <= 0.0 {
            return match commands.try_recv() {
                Ok(command) => Next::Command(command),
                Err(TryRecvError::Empty) => Next::Step,
                Err(TryRecvError::Disconnected) => Next::End,
            };
        }
        let tidy = self.untidy.filter(|_| !works).map_or(IDLE, |since| PAUSE.saturating_sub(since.elapsed()));
        let pause = Duration::from_secs_f64(pause).min(due.saturating_sub(self.beat.elapsed())).min(tidy);
        match commands.recv_timeout(pause) {
            Ok(command) => Next::Command(command),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        }
    }

    fn step(&mut self) {
        let began = self.seconds();
        if self.decoder.works() {
            self.decoder.step();
            self.untidy = Some(Instant::now());
        }
        self.embedder.step(self.decoder.works());
        self.pace.worked(began, self.seconds() - began);
    }

    /// What is done while nobody waits for anything.
    fn idle_piece(&mut self) {
        let began = self.seconds();
        if self.decoder.measures() {
            self.decoder.measure();
        } else if self.decoder.read_ahead() {
            self.untidy = Some(Instant::now());
        }
        self.pace.worked(began, self.seconds() - began);
    }

    fn save(&mut self) {
        let saved = match self.decoder.leave(&self.leaving) {
            Ok(bytes) => Saved { bytes, error: None },
            Err(error) => {
                tracing::warn!("the KV cache was not saved: {error}");
                Saved { bytes: 0, error: Some(error) }
            }
        };
        self.link.send(Frame::Saved(saved));
    }

    fn tell(&mut self) {
        let (at_s, computed_s) = (self.seconds(), self.pace.computed());
        self.link.send(Frame::Heartbeat(Heartbeat { at_s, computed_s, ..self.decoder.heartbeat() }));
        self.beat = Instant::now();
    }

    /// Since the model is ready.
    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
