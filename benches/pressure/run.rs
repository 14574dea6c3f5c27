//! One daemon under pressure: streams that answer, a cache that is larger than they need, and a step down for each time that
//! the reserve is broken.

use std::{
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    client::{Answer, Ask},
    daemon::{Daemon, Decision},
    hog::Hog,
    texts::Texts,
    watch::{self, Look, Watch},
};

const MIB: u64 = 1 << 20;
/// What is left between what the engine may come to hold and the reserve.
const BESIDE: u64 = 768 * MIB;
/// How far the helper goes below the reserve: less than any step gives back.
const BELOW: u64 = 24 * MIB;
/// What the helper takes at a time on its way to the reserve, so little that the governor sees no fall.
const SIP: u64 = 24 * MIB;
/// More than one interval of the governor.
const SETTLE: Duration = Duration::from_millis(600);
/// How often it tries to break the reserve, where other programs give memory back.
const BITES: usize = 8;
/// How long a step down may take, and until the engine's memory is still.
const PATIENCE: Duration = Duration::from_secs(10);
const STILL: Duration = Duration::from_millis(500);

/// A model and what is asked of it.
pub struct Case {
    pub name: &'static str,
    pub model: PathBuf,
    /// Most seconds until memory is back, at the 95th percentile.
    pub must: f64,
    /// Cells, all of which are allocated when the first pressure comes.
    pub context: u32,
    /// Steps of the memory ladder, in percent of the context.
    pub steps: &'static [u8],
    /// Tokens of the prompts of the streams, and of the answer to each.
    pub prompts: &'static [usize],
    pub answer: usize,
    /// MiB between reserve and critical: the engine's copy of what lives needs some of it for a moment.
    pub to_critical: u64,
    /// Tokens of a prompt for which the whole context is needed; it is cancelled before it is read.
    pub guest: usize,
}

impl Case {
    /// 22.5 KiB a cell: steps of 129 and 140 MiB. The streams fill up to 4,084 cells.
    pub fn small(model: PathBuf) -> Self {
        Self {
            name: "small model",
            model,
            must: 0.3,
            context: 16384,
            steps: &[64, 26],
            prompts: &[500; 4],
            answer: 520,
            to_critical: 256,
            guest: 4600,
        }
    }

    /// 128 KiB a cell: steps of 64 to 96 MiB. The streams fill 4,100 cells at first and 4,582 in the end.
    pub fn shape(model: PathBuf) -> Self {
        Self {
            name: "7B shape",
            model,
            must: 1.5,
            context: 12288,
            steps: &[94, 88, 82, 76, 70, 64, 58, 52, 46, 42, 38],
            prompts: &[4000, 100],
            answer: 240,
            to_critical: 768,
            guest: 2400,
        }
    }

    fn toml(&self, reserve: u64) -> String {
        let steps: Vec<String> = self.steps.iter().map(|percent| format!("\"context {percent}\"")).collect();
        let critical = reserve / MIB - self.to_critical;
        format!(
            "[engine]\ncontext = {}\n[governor]\nreserve_mib = {}\ncritical_mib = {critical}\nmemory_ladder = [{}, \"hold\", \
             \"unload\"]\n",
            self.context,
            reserve / MIB,
            steps.join(", ")
        )
    }
}

/// One time that the reserve was broken.
#[derive(Debug)]
pub struct Pressure {
    /// When the reserve was broken, and when the governor had read it and decided.
    pub crossed: Instant,
    pub decided: Instant,
    /// The end of the decode step that ran then, and how long it was.
    pub step_end: Instant,
    pub step: Duration,
    /// When the engine's memory was what it should be, for good.
    pub back: Instant,
    /// Bytes that the engine was to give back, and has.
    pub predicted: u64,
    pub freed: u64,
    /// Whether the reserve was there again.
    pub restored: bool,
}

/// What one daemon has shown.
#[derive(Debug)]
pub struct Round {
    pub pressures: Vec<Pressure>,
    /// The longest decode step of all, outside of changes of the cache.
    pub longest_step: Duration,
    /// Processes that the kernel has ended meanwhile.
    pub killed: u64,
}

/// A pressure before the streams have told when their steps ended.
struct Raw {
    crossed: Instant,
    decided: Instant,
    back: Instant,
    predicted: u64,
    freed: u64,
    restored: bool,
}

pub fn round(case: &Case) -> Result<Round> {
    let cell = temperd::gguf::inspect(&case.model)?.cache_bytes(1, [false, false]).context("the size of a cell")?;
    let mut texts = Texts::new(&case.model)?;
    let prompts: Vec<String> = case.prompts.iter().map(|tokens| texts.text(*tokens)).collect();
    let guest = texts.text(case.guest);
    drop(texts);
    let killed = watch::killed()?;
    let all = cell * u64::from(case.context);
    let reserve = (watch::available()?.checked_sub(all + BESIDE).context("memory for this")?) / MIB * MIB;
    ensure!(reserve / MIB > 2 * case.to_critical, "{} MiB are available, too little", watch::available()? / MIB);
    let daemon = Daemon::start(&case.model, &case.toml(reserve))?;
    let watch = Watch::start(daemon.engine()?);
    thread::scope(|scope| {
        let (to, begun) = mpsc::channel();
        let ask = |prompt| {
            let (to, daemon) = (to.clone(), &daemon);
            let stream = move || {
                daemon.at.stream_to(&Ask::Prompt(prompt), case.answer, |_| {
                    let _nobody_waits = to.send(());
                })
            };
            scope.spawn(stream)
        };
        // One after the other, so that each has begun to be answered before the next is read.
        let mut streams = Vec::new();
        for prompt in prompts {
            streams.push(ask(prompt));
            begun.recv().context("the first token of a stream")?;
            while begun.try_recv().is_ok() {}
        }
        let waits = daemon.ask(&guest)?;
        until("the whole context is allocated", || Ok(daemon.allocated()? == u64::from(case.context)))?;
        drop(waits);
        let mut hog = Hog::start()?;
        // From there on the governor looks at how fast memory falls.
        approach(&mut hog, &watch, reserve, reserve + case.to_critical / 2 * MIB + 2 * SIP)?;
        let mut raw = Vec::new();
        while daemon.allocated()? > lowest(case) {
            thread::sleep(2 * SETTLE);
            if streams.iter().any(|stream| stream.is_finished()) {
                eprintln!("the streams have ended before the last step");
                break;
            }
            raw.push(press(&daemon, &mut hog, &watch, (reserve, cell))?);
        }
        drop(hog);
        let answers = streams.into_iter().map(|stream| stream.join().map_err(|_| anyhow!("a client panicked"))?);
        let answers = answers.collect::<Result<Vec<Answer>>>()?;
        let status = daemon.status()?;
        ensure!(status["engine"]["restarts"] == 0, "the engine was started anew: {status}");
        Ok(analyse(raw, &answers, watch::killed()? - killed))
    })
}

fn lowest(case: &Case) -> u64 {
    let percent = case.steps.last().copied().unwrap_or(100);
    u64::from(case.context * u32::from(percent) / 100 / 256 * 256)
}

/// Eats until a little is left above the reserve.
fn approach(hog: &mut Hog, watch: &Watch, reserve: u64, near: u64) -> Result<()> {
    let now = watch.now()?.available;
    hog.eat(now.saturating_sub(near).max(MIB))?;
    loop {
        thread::sleep(SETTLE);
        if watch.now()?.available < reserve + 6 * SIP {
            return Ok(());
        }
        hog.eat(SIP)?;
    }
}

/// Breaks the reserve, and waits until memory is back and still.
fn press(daemon: &Daemon, hog: &mut Hog, watch: &Watch, (reserve, cell): (u64, u64)) -> Result<Raw> {
    let (cells, context) = (daemon.allocated()?, daemon.context()?);
    let (before, began, decision) = decided(daemon, hog, watch, reserve, context)?;
    if !decision.to.ends_with("run") {
        bail!("the governor went further than the context; does another program take memory? {}", decision.to);
    }
    until("the cache is smaller", || Ok(daemon.allocated()? < cells))?;
    thread::sleep(STILL);
    let after = watch.now()?;
    let predicted = cell * (cells - daemon.allocated()?);
    let looks = watch.between(began, after.at);
    let crossed = looks.iter().find(|look| look.available < reserve).context("the reserve was never broken")?;
    // While the cache is made anew, memory is free that is taken again: the last time that it is too much counts.
    let much = |look: &&Look| before.anonymous.saturating_sub(look.anonymous) < predicted / 10 * 9;
    let last = looks.iter().rev().find(much).context("the engine gave nothing back")?;
    let back = looks.iter().find(|look| look.at > last.at).context("the engine's memory is not back")?.at;
    Ok(Raw {
        crossed: crossed.at,
        decided: decision.at,
        back,
        predicted,
        freed: before.anonymous.saturating_sub(after.anonymous),
        restored: looks.iter().any(|look| look.at >= back && look.available >= reserve),
    })
}

/// Eats until the governor goes below this context; another program may give memory back meanwhile. With it comes how things
/// were before the last bite.
fn decided(
    daemon: &Daemon,
    hog: &mut Hog,
    watch: &Watch,
    reserve: u64,
    context: u64,
) -> Result<(Look, Instant, Decision)> {
    for _ in 0..BITES {
        let (before, began) = (watch.now()?, Instant::now());
        hog.eat((before.available + BELOW).saturating_sub(reserve).max(MIB))?;
        while began.elapsed() < 2 * SETTLE {
            if let Some(decision) = daemon.decided(began).into_iter().find(|decision| decision.context < context) {
                return Ok((before, began, decision));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    bail!(
        "the governor does nothing about {} MiB, of which {} are reserved",
        watch.now()?.available / MIB,
        reserve / MIB
    )
}

/// Puts the ends of steps to the pressures: a step is over when the first stream has something of it.
fn analyse(raw: Vec<Raw>, answers: &[Answer], killed: u64) -> Round {
    let mut ends: Vec<Instant> = answers.iter().flat_map(|answer| &answer.pieces).copied().collect();
    ends.sort();
    // All streams tell of the same step; what follows within so little is one of these.
    ends.dedup_by(|later, earlier| later.duration_since(*earlier) < Duration::from_millis(4));
    let steps = || ends.windows(2).map(|pair| (pair[0], pair[1]));
    let first = answers.iter().filter_map(|answer| answer.pieces.first()).max();
    let calm = |(from, to): &(Instant, Instant)| {
        first.is_some_and(|first| from > first) && !raw.iter().any(|raw| *from <= raw.back && *to >= raw.decided)
    };
    let longest_step = steps().filter(calm).map(|(from, to)| to.duration_since(from)).max().unwrap_or_default();
    let pressures = raw.iter().filter_map(|raw| {
        let (began, step_end) = steps().find(|(_, end)| *end >= raw.decided)?;
        let Raw { crossed, decided, back, predicted, freed, restored, .. } = *raw;
        Some(Pressure {
            crossed,
            decided,
            step_end,
            step: step_end.duration_since(began),
            back,
            predicted,
            freed,
            restored,
        })
    });
    Round { pressures: pressures.collect(), longest_step, killed }
}

fn until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !reached()? {
        ensure!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
