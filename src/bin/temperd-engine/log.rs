//! llama.cpp's log and our own become Log frames, on a thread of their own: a line never holds up a decode. What the
//! thread cannot take in time is dropped and counted.
//!
//! llama.cpp tells some hundred things about each load at level info, for those who develop it: they go to debug. What it
//! has at debug level is not made at all.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
};

use temperd::wire::engine::{Log, from_engine::Frame};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

use crate::{buffers::Buffers, link::Link};

/// Under this target come the lines of llama.cpp and ggml.
const LLAMA: &str = "llama-cpp-2";

const LINES: usize = 1024;

/// Error lines kept for the reason of a failed load.
const KEPT: usize = 8;

/// The error lines of llama.cpp since [`Errors::clear`]: its functions say *that* they failed, its log says why.
#[derive(Default)]
pub struct Errors(Mutex<Vec<String>>);

impl Errors {
    /// Forgets what was kept.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The kept lines in one, or `otherwise` where llama.cpp said nothing.
    pub fn reason(&self, otherwise: &str) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The last line of each failed load repeats only that it failed.
        let lines: Vec<&str> =
            lines.iter().map(String::as_str).filter(|line| *line != "failed to load model").collect();
        if lines.is_empty() { otherwise.to_owned() } else { lines.join("; ") }
    }

    fn keep(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The vocabulary is read beside the weights, and meets the same fault.
        if lines.len() < KEPT && !lines.iter().any(|kept| kept == line) {
            lines.push(line.to_owned());
        }
    }
}

/// What is taken from llama.cpp's lines on their way.
#[derive(Default)]
pub struct Heard {
    /// Why something failed.
    pub errors: Errors,
    /// What it has allocated.
    pub buffers: Buffers,
}

/// Installs the subscriber for the whole process.
///
/// # Errors
/// Where another one is installed or the thread cannot start.
pub fn install(link: Arc<Link>) -> io::Result<Arc<Heard>> {
    let (lines, from_threads) = mpsc::sync_channel(LINES);
    let (heard, dropped) = (Arc::new(Heard::default()), Arc::new(AtomicUsize::new(0)));
    thread::Builder::new().name("log".into()).spawn({
        let dropped = Arc::clone(&dropped);
        move || forward(&from_threads, &dropped, &link)
    })?;
    let subscriber = Lines { lines, dropped, heard: Arc::clone(&heard) };
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(heard)
}

fn forward(lines: &Receiver<Log>, dropped: &AtomicUsize, link: &Link) {
    while let Ok(line) = lines.recv() {
        link.send(Frame::Log(line));
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let message = format!("{lost} log lines of the engine were dropped");
            link.send(Frame::Log(Log { level: "warn".to_owned(), message }));
        }
    }
}

struct Lines {
    lines: SyncSender<Log>,
    dropped: Arc<AtomicUsize>,
    heard: Arc<Heard>,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = line.message.trim();
        if text.is_empty() {
            return;
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ if event.metadata().target() == LLAMA => "debug",
            _ => "info",
        };
        match level {
            "error" => self.heard.errors.keep(text),
            "debug" => self.heard.buffers.note(text),
            _ => {}
        }
        let message = if line.module.is_empty() { text.to_owned() } else { format!("{}: {text}", line.module) };
        if self.lines.try_send(Log { level: level.to_owned(), message }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    // Spans are never enabled.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    module: String,
}

impl Line {
    fn add(&mut self, field: &Field, value: &dyn fmt::Display) {
        use fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            "module" => write!(self.module, "{value}"),
            name => write!(self.message, " {name}={value}"),
        };
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format_args!("{value:?}"));
    }
}
