//! What happens to a board in the course of some hours.

use super::{
    board::{BOARDS, Board, Mode, Thermals},
    plant::{Fan, Outside},
    policy::SET_POINT,
};

/// A course of events. All times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    pub name: String,
    pub board: Board,
    pub seconds: f64,
    pub ambient: Ambient,
    pub fan: bool,
    /// From, until: it does not turn.
    pub blocked: Option<(f64, f64)>,
    pub load: Load,
    /// When the other power mode is chosen; the first is the one with least power where there is any.
    pub switches: Vec<f64>,
    /// From, until: `tj` cannot be read.
    pub lost: Option<(f64, f64)>,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ambient {
    Steady(f64),
    /// From the first to the second and back, each in this time.
    Ramp(f64, f64, f64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// There is always work.
    Steady,
    /// Work for the first time, none for the second, and so on.
    Bursts(f64, f64),
}

impl Scenario {
    /// An hour of work at an ambient temperature.
    pub fn hour(name: &str, board: Board, ambient: f64, fan: bool) -> Self {
        Self {
            name: name.into(),
            board,
            seconds: 3600.0,
            ambient: Ambient::Steady(ambient),
            fan,
            blocked: None,
            load: Load::Steady,
            switches: Vec::new(),
            lost: None,
            seed: 1,
        }
    }

    pub fn outside(&self, at: f64) -> Outside {
        let ambient = match self.ambient {
            Ambient::Steady(ambient) => ambient,
            Ambient::Ramp(low, high, time) => {
                let phase = at / time % 2.0;
                low + (high - low) * if phase < 1.0 { phase } else { 2.0 - phase }
            }
        };
        let blocked = self.blocked.is_some_and(|(from, until)| (from..until).contains(&at));
        let fan = if self.fan && !blocked { Fan::Works } else { Fan::Still };
        Outside { ambient, fan, mode: self.mode(at) }
    }

    fn mode(&self, at: f64) -> Mode {
        let [most, less] = self.board.modes;
        let switched = self.switches.iter().filter(|switch| **switch <= at).count();
        if self.switches.is_empty() || switched % 2 == 1 { most } else { less }
    }

    pub fn work(&self, at: f64) -> bool {
        match self.load {
            Load::Steady => true,
            Load::Bursts(on, off) => at % (on + off) < on,
        }
    }

    pub fn lost(&self, at: f64) -> bool {
        self.lost.is_some_and(|(from, until)| (from..until).contains(&at))
    }

    /// Whether power jumps here, for reasons that no controller can foresee.
    pub fn jumps(&self, before: f64, at: f64) -> bool {
        self.work(before) != self.work(at) || self.mode(before) != self.mode(at)
    }

    /// Whether nothing happens in it.
    pub fn steady(&self) -> bool {
        let still = matches!(self.ambient, Ambient::Steady(_)) && self.load == Load::Steady;
        still && self.switches.is_empty() && self.lost.is_none() && self.blocked.is_none()
    }
}

/// The table's scenarios for a board.
pub fn all(board: Board) -> Vec<Scenario> {
    let steady = |name: &str, ambient, fan| Scenario::hour(name, board, ambient, fan);
    let hot = |name: &str| steady(name, 45.0, true);
    vec![
        steady("steady, 25 C, fan", 25.0, true),
        hot("steady, 45 C, fan"),
        steady("steady, 25 C, no fan", 25.0, false),
        steady("steady, 45 C, no fan", 45.0, false),
        steady("steady, 0 C, no fan", 0.0, false),
        Scenario { load: Load::Bursts(120.0, 60.0), ..steady("bursts 120 s / 60 s, 35 C, no fan", 35.0, false) },
        Scenario { load: Load::Bursts(15.0, 15.0), ..steady("bursts 15 s / 15 s, 35 C, no fan", 35.0, false) },
        Scenario { load: Load::Bursts(600.0, 600.0), ..hot("bursts 10 min / 10 min, 45 C, fan") },
        Scenario {
            ambient: Ambient::Ramp(10.0, 50.0, 3600.0),
            seconds: 7200.0,
            ..steady("ambient 10 to 50 C and back in 2 h, fan", 0.0, true)
        },
        Scenario {
            ambient: Ambient::Ramp(0.0, 40.0, 900.0),
            ..steady("ambient 0 to 40 C in 15 min, no fan", 0.0, false)
        },
        Scenario { switches: vec![1200.0, 2400.0], ..hot("mode switch, 45 C, fan") },
        Scenario { switches: vec![1200.0, 2400.0], ..steady("mode switch, 30 C, no fan", 30.0, false) },
        Scenario { blocked: Some((1200.0, 2400.0)), ..steady("fan blocked for 20 min, 35 C", 35.0, true) },
        Scenario { lost: Some((1200.0, 1800.0)), ..hot("sensor lost for 10 min, 45 C, fan") },
        Scenario { board: closed(board), ..steady("closed box, 50 C: idle alone 1 K below", 50.0, false) },
    ]
}

/// A board in a box where it settles one kelvin below the set-point without any work, at 50 C ambient.
fn closed(mut board: Board) -> Board {
    let die = SET_POINT - 1.0;
    let watts = board.modes[0].idle * (1.0 + board.thermals.leakage * (die - 60.0));
    board.thermals.still = (die - 50.0) / watts - board.thermals.die;
    board
}

/// How many numbers a scenario is drawn from.
pub const DRAWS: usize = 16;

/// A scenario of numbers between 0 and 1, over the whole of what is assumed of Orins: heatsink 1.0 to 2.5 K/W with a
/// fan and 3 to 7 without, 60 to 600 s with the fan at full speed; die 0.2 to 0.6 K/W, 1 to 8 s; 0 to 50 C; noise 0.1 to
/// 0.5 K; leakage 0.5 to 1 % per kelvin; power 0.6 to 1.2 of the board's. A die has at most half the heat capacity of
/// its heatsink: with more it would not be one.
pub fn drawn(draws: [f64; DRAWS], seed: u64) -> Scenario {
    let mut draws = draws.into_iter();
    let mut unit = move || draws.next().unwrap_or(0.5);
    let mut between = |low: f64, high: f64| low + (high - low) * unit();
    let mut board = BOARDS[index(between(0.0, 3.0), BOARDS.len())];
    let power = between(0.6, 1.2);
    for mode in &mut board.modes {
        (mode.gpu, mode.cpu) = (mode.gpu * power, mode.cpu * power);
    }
    let (windy, still, die) = (between(1.0, 2.5), between(3.0, 7.0), between(0.2, 0.6));
    let sink = between(60.0, 600.0) / windy;
    let die_lag = between(1.0, 8.0).min(0.5 * sink * die);
    let (leakage, noise) = (between(0.005, 0.01), between(0.1, 0.5));
    board.thermals = Thermals { windy, still, sink, die, die_lag, leakage, noise };
    let (ambient, fan) = (between(0.0, 50.0), between(0.0, 1.0) < 0.5);
    let base = Scenario { seed, ..Scenario::hour("drawn", board, ambient, fan) };
    let (first, second) = (between(0.0, 1.0), between(0.0, 1.0));
    let time = |part: f64, least: f64, most: f64| least * (most / least).powf(part);
    match index(between(0.0, 6.0), 6) {
        0 => base,
        1 => Scenario { ambient: Ambient::Ramp(ambient, 50.0 * first, time(second, 900.0, 3600.0)), ..base },
        2 => Scenario { load: Load::Bursts(time(first, 10.0, 900.0), time(second, 10.0, 900.0)), ..base },
        3 => Scenario { switches: vec![600.0 + 1200.0 * first, 2000.0 + 1200.0 * second], ..base },
        4 => Scenario { fan: true, blocked: Some((600.0 + 600.0 * first, 1800.0 + 1200.0 * second)), ..base },
        _ => Scenario { lost: Some((600.0 + 600.0 * first, 1800.0 + 1200.0 * second)), ..base },
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
fn index(number: f64, length: usize) -> usize {
    (number.max(0.0) as usize).min(length - 1)
}
