//! What a step costs on this machine with this model: seconds over its rows and over how many cells of the KV cache each
//! of them looks at. Both bend very differently from machine to machine (eight rows may cost as much as one, or eight
//! times as much; attention may be most of a step or next to nothing), so they are measured once nothing runs (`measure`), assumed
//! until then, and kept up to date by every step. Pure.

/// Weight of a new reading: the last ten steps of a size count most. Where it is off by more than [`WRONG`], the curve is
/// more likely wrong than the reading: sizes that were measured in a bad moment would be chosen again and again.
const FRESH: f64 = 0.1;
const FRESH_WHERE_WRONG: f64 = 0.4;
const WRONG: f64 = 0.4;
/// A stall of the machine says little about the model: logarithms of seconds over expected ones count up to here.
const STALL: f64 = std::f64::consts::LN_2;
/// Weight of a new reading for how fast the machine is at present, whatever the size: clocks and neighbours change that
/// within seconds.
const PRESENT: f64 = 0.1;
/// As slow or fast a machine may be thought to have become.
const SLOWNESS: (f64, f64) = (0.05, 20.0);

/// Bytes of weights that a machine reads in a second, rows of a step and what they cost in steps of one row, and what a cell
/// costs a row: as they are on small machines, before anything was measured.
const READ: f64 = 12e9;
const ROWS: [(usize, f64); 4] = [(1, 1.0), (8, 4.0), (64, 20.0), (512, 120.0)];
const CELL: f64 = 1e-4;
/// Steps by which an assumed curve is corrected as a whole.
const FIRST_STEPS: u32 = 5;

/// From so many rows on, flash attention on a CPU goes tile by tile where K and V are of the same float type, several
/// times faster a cell than row by row (ggml-cpu/ops.cpp, `use_tiled`).
pub const TILE: usize = 64;

/// The size of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Tokens that are decoded.
    pub rows: usize,
    /// Rows that are sampled from.
    pub outputs: usize,
    /// Cells that each row looks at, in the mean.
    pub depth: f64,
}

/// Seconds of a step by its rows, of each cell that its rows look at, and of each row whose logits are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    rows: Line,
    /// Seconds of a step for each cell of depth.
    cells: Line,
    /// Seconds of each row of a step of [`TILE`] or more for each cell of depth, once it was seen.
    tiled: Option<f64>,
    per_output: f64,
    /// What all that is multiplied by at present.
    slowness: f64,
    /// Steps that tell more than what is assumed: nothing was measured yet.
    assumed: u32,
}

impl Curve {
    /// A curve through measured points `(rows, seconds without outputs and cells)` and `(rows, seconds per cell of
    /// depth)`; seconds of one output.
    ///
    /// More rows never cost less, which noise may suggest: such points are lifted.
    pub fn new(rows: Vec<(usize, f64)>, cells: Vec<(usize, f64)>, per_output: f64) -> Self {
        let per_output = if per_output.is_finite() { per_output.max(0.0) } else { 0.0 };
        let (rows, cells) = (Line::new(rows, 1e-3), Line::new(cells, 0.0));
        Self { rows, cells, tiled: None, per_output, slowness: 1.0, assumed: 0 }
    }

    /// What can be assumed of a model of so many bytes before anything was measured. The first steps that are made correct it
    /// at once.
    pub fn assumed(bytes: u64) -> Self {
        let row = bytes.max(1) as f64 / READ;
        let rows = ROWS.iter().map(|(rows, cost)| (*rows, row * cost)).collect();
        let cells = ROWS.iter().map(|(rows, _)| (*rows, row * CELL * *rows as f64)).collect();
        Self { assumed: FIRST_STEPS, ..Self::new(rows, cells, 0.0) }
    }

    /// Seconds of a step. Between the points it is a straight line, beyond the last one it goes on at the last point's
    /// cost of a row.
    pub fn seconds(&self, size: Size) -> f64 {
        let outputs = self.per_output * size.outputs as f64;
        self.slowness * (self.rows.at(size.rows) + self.cells_at(size.rows) * size.depth + outputs)
    }

    fn rescale(&mut self, factor: f64) {
        for point in self.rows.0.iter_mut().chain(&mut self.cells.0) {
            point.1 *= factor;
        }
    }

    fn cells_at(&self, rows: usize) -> f64 {
        self.tiled.filter(|_| rows >= TILE).map_or_else(|| self.cells.at(rows), |tiled| tiled * rows as f64)
    }

    /// Whether it was seen what cells cost in steps of [`TILE`] rows and more.
    pub fn knows_tiles(&self) -> bool {
        self.tiled.is_some()
    }

    /// Seconds that one more cell in the way of every row adds to a step of `rows` rows.
    pub fn of_cell(&self, rows: usize) -> f64 {
        self.slowness * self.cells_at(rows)
    }

    /// The most rows, up to `most`, of a step that takes at most `seconds` beside `outputs`; 0 where not even one does.
    pub fn rows_within(&self, seconds: f64, outputs: usize, depth: f64, most: usize) -> usize {
        let takes = |rows| self.seconds(Size { rows, outputs, depth });
        // A tile may cost less than fewer rows do; below and above, more rows never cost less.
        let (mut fits, mut exceeds) =
            if most >= TILE && takes(TILE) <= seconds { (TILE, most + 1) } else { (0, most.min(TILE - 1) + 1) };
        while exceeds - fits > 1 {
            let middle = fits + (exceeds - fits) / 2;
            if takes(middle) <= seconds { fits = middle } else { exceeds = middle }
        }
        fits
    }

    /// The fewest rows beside `answers` rows that are sampled from, up to `most` in all, by which prompts are read at
    /// `share` of the best speed that steps of up to `seconds` without answers reach; at least 1.
    pub fn efficient_rows(&self, answers: usize, share: f64, seconds: f64, depth: f64, most: usize) -> usize {
        let rate = |rows: usize, answers: usize| {
            rows as f64 / self.seconds(Size { rows: rows + answers, outputs: answers.max(1), depth })
        };
        let limit = self.rows_within(seconds, 1, depth, most).max(1);
        let best = (1..=limit).map(|rows| rate(rows, 0)).fold(0.0, f64::max);
        let most = limit.saturating_sub(answers).max(1);
        (1..=most).find(|rows| rate(*rows, answers) >= best * share).unwrap_or(most)
    }

    /// Takes in what a step of this size took. All moves a little, and the points around it by what is still off, each by
    /// its nearness; rows and cells by the same factor, since one step does not tell them apart.
    pub fn observe(&mut self, size: Size, seconds: f64) {
        let expected = self.seconds(size);
        if size.rows == 0 || !seconds.is_finite() || seconds <= 0.0 || expected <= 0.0 {
            return;
        }
        if self.assumed > 0 {
            self.assumed -= 1;
            match FIRST_STEPS - self.assumed {
                // It also reads weights from a disk, and touches memory for the first time.
                1 => {}
                2 => self.rescale(seconds / expected),
                _ => self.rescale((seconds / expected).sqrt()),
            }
            return;
        }
        let error = (seconds / expected).ln().clamp(-STALL, STALL);
        self.slowness = (self.slowness * (error * PRESENT).exp()).clamp(SLOWNESS.0, SLOWNESS.1);
        let fresh = if error.abs() > WRONG { FRESH_WHERE_WRONG } else { FRESH };
        // What tiles cost is not known before the first: it says nothing of rows.
        if size.rows < TILE || self.tiled.is_some() || size.depth < 1.0 {
            self.rows.learn(size.rows, error * (1.0 - PRESENT), fresh);
        }
        if size.rows >= TILE && size.depth > 0.0 {
            let rest = seconds / self.slowness - self.rows.at(size.rows) - self.per_output * size.outputs as f64;
            let seen = rest.max(0.0) / size.depth / size.rows as f64;
            let most = self.cells.at(TILE) / TILE as f64;
            self.tiled = Some(self.tiled.map_or(seen, |tiled| tiled + (seen - tiled) * fresh).min(most));
        } else if size.depth > 0.0 {
            self.cells.learn(size.rows, error * (1.0 - PRESENT), fresh);
        }
    }
}

/// Values by number of rows, ascending in both.
#[derive(Debug, Clone, PartialEq)]
struct Line(Vec<(usize, f64)>);

impl Line {
    /// Through these points. Where there is none for one row, it is the first one's share, or `default`.
    fn new(mut points: Vec<(usize, f64)>, default: f64) -> Self {
        points.retain(|(rows, value)| *rows > 0 && value.is_finite() && *value > 0.0);
        points.sort_unstable_by_key(|point| point.0);
        points.dedup_by_key(|point| point.0);
        if points.first().is_none_or(|first| first.0 != 1) {
            let first = points.first().map_or(default, |(rows, value)| value / *rows as f64);
            points.insert(0, (1, first));
        }
        let mut line = Self(points);
        line.lift();
        line
    }

    fn at(&self, rows: usize) -> f64 {
        let above = self.0.partition_point(|point| point.0 < rows);
        match (above.checked_sub(1).and_then(|below| self.0.get(below)), self.0.get(above)) {
            (Some(&(low, less)), Some(&(high, more))) => {
                less + (more - less) * (rows - low) as f64 / (high - low) as f64
            }
            (Some(&(low, value)), None) => value * rows as f64 / low as f64,
            (None, Some(&(_, value))) => value,
            (None, None) => 0.0,
        }
    }

    /// Moves by `fresh` of what was off at so many rows, as a logarithm.
    fn learn(&mut self, rows: usize, error: f64, fresh: f64) {
        // A size far beyond what is known becomes a point of its own.
        if self.0.last().is_some_and(|last| rows >= last.0 * 2) {
            let value = self.at(rows) * error.exp();
            self.0.push((rows, value));
        } else {
            let above = self.0.partition_point(|point| point.0 < rows);
            let (low, high) = (above.saturating_sub(1), above.min(self.0.len() - 1));
            let span = (self.0[high].0 - self.0[low].0) as f64;
            let toward_high = if span > 0.0 { (rows - self.0[low].0) as f64 / span } else { 1.0 };
            self.0[low].1 *= (error * fresh * (1.0 - toward_high)).exp();
            self.0[high].1 *= (error * fresh * toward_high).exp();
        }
        self.lift();
    }

    fn lift(&mut self) {
        let mut least = 0.0_f64;
        for point in &mut self.0 {
            least = least.max(point.1);
            point.1 = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(rows: usize, outputs: usize, depth: f64) -> Size {
        Size { rows, outputs, depth }
    }

    #[test]
    fn it_goes_through_its_points_and_on_beyond_them() {
        let curve = Curve::new(vec![(8, 0.8), (1, 0.2)], vec![(1, 0.001), (8, 0.004)], 0.01);
        assert!((curve.seconds(size(1, 0, 0.0)) - 0.2).abs() < 1e-9);
        assert!((curve.seconds(size(8, 2, 0.0)) - 0.82).abs() < 1e-9);
        assert!((curve.seconds(size(8, 2, 100.0)) - 1.22).abs() < 1e-9);
        assert!((curve.seconds(size(16, 0, 100.0)) - 2.4).abs() < 1e-9);
        assert_eq!(curve.rows_within(0.801, 0, 0.0, 100), 8);
        assert_eq!(curve.rows_within(0.801, 0, 100.0, 100), 4);
        assert_eq!(curve.rows_within(0.1, 0, 0.0, 100), 0);
        assert_eq!(curve.rows_within(9.0, 0, 0.0, 20), 20);
    }

    #[test]
    fn reading_beside_answers_takes_as_many_rows_as_keep_its_speed() {
        let even = Curve::new(vec![(1, 0.01), (100, 1.0)], Vec::new(), 0.0);
        assert_eq!(even.efficient_rows(0, 0.9, 1.0, 0.0, 100), 1);
        // 36 of 40 rows are the prompt's.
        assert_eq!(even.efficient_rows(4, 0.899, 1.0, 0.0, 100), 36);
        assert_eq!(even.efficient_rows(4, 0.9, 0.2, 0.0, 100), 16);
        // Rows that cost nothing more: the answers' are no burden.
        let flat = Curve::new(vec![(1, 0.5), (64, 0.5), (128, 1.0)], Vec::new(), 0.0);
        assert_eq!(flat.efficient_rows(4, 0.9, 1.0, 0.0, 128), 58);
    }

    #[test]
    fn it_follows_a_machine_that_has_become_slower() {
        let mut curve = Curve::new(vec![(1, 0.01), (8, 0.04)], Vec::new(), 0.0);
        for _ in 0..200 {
            curve.observe(size(8, 0, 500.0), 0.08);
        }
        assert!((curve.seconds(size(8, 0, 0.0)) - 0.08).abs() < 0.002, "{curve:?}");
    }

    #[test]
    fn one_size_tells_of_all_where_everything_has_become_slower() {
        let truth = |rows: usize| 0.01 * rows as f64;
        let mut curve = Curve::new(vec![(1, truth(1)), (8, truth(8)), (64, truth(64))], Vec::new(), 0.0);
        for _ in 0..8 {
            curve.observe(size(8, 0, 0.0), 1.4 * truth(8));
        }
        let found = curve.seconds(size(64, 0, 0.0)) / truth(64);
        assert!((1.1..1.4).contains(&found), "{found}");
    }

    #[test]
    fn steps_of_several_depths_tell_cells_from_rows() {
        let truth = Curve::new(vec![(1, 0.01), (8, 0.04)], vec![(1, 4e-6), (8, 3e-5)], 0.0);
        let mut curve = Curve::new(vec![(1, 0.01), (8, 0.04)], vec![(1, 1e-6), (8, 1e-5)], 0.0);
        for step in 0..2000 {
            let size = size(8, 0, f64::from(step % 40) * 50.0);
            curve.observe(size, truth.seconds(size));
        }
        for depth in [0.0, 1000.0, 2000.0] {
            let (found, right) = (curve.seconds(size(8, 0, depth)), truth.seconds(size(8, 0, depth)));
            assert!((found / right - 1.0).abs() < 0.15, "at {depth}: {found} and {right}");
        }
    }

    #[test]
    fn a_tile_seen_once_is_worth_more_than_fewer_rows() {
        let mut curve = Curve::new(vec![(1, 0.01), (64, 0.64)], vec![(1, 2e-5), (64, 1.28e-3)], 0.0);
        assert_eq!(curve.rows_within(1.0, 0, 2000.0, 512), 20);
        curve.observe(size(64, 0, 2000.0), 0.9);
        assert!(curve.knows_tiles());
        let rows = curve.rows_within(1.0, 0, 2000.0, 512);
        assert!((64..80).contains(&rows), "{rows}");
        assert!(curve.rows_within(0.5, 0, 2000.0, 512) < 20);
        assert!((60..72).contains(&curve.efficient_rows(4, 0.92, 1.0, 2000.0, 512)));
    }

    #[test]
    fn an_assumed_curve_is_right_after_a_few_steps_but_for_the_first() {
        for (bytes, row) in [(100 << 20, 0.5), (3 << 30, 0.02)] {
            let mut curve = Curve::assumed(bytes);
            let shape = curve.clone();
            let truth = |size: Size| shape.seconds(size) / shape.seconds(size_of_one()) * row;
            curve.observe(size(8, 0, 0.0), 60.0);
            assert_eq!(curve.seconds(size_of_one()), shape.seconds(size_of_one()));
            for rows in [8, 4, 8, 1] {
                curve.observe(size(rows, 0, 100.0), truth(size(rows, 0, 100.0)));
            }
            for rows in [1, 64] {
                let off = curve.seconds(size(rows, 0, 100.0)) / truth(size(rows, 0, 100.0));
                assert!((0.8..1.25).contains(&off), "{rows}: {off}");
            }
        }
    }

    fn size_of_one() -> Size {
        size(1, 0, 0.0)
    }

    #[test]
    fn what_was_measured_in_a_bad_moment_is_corrected_within_a_few_steps() {
        let truth = |rows: usize| 0.01 * rows as f64;
        // One row took as long as sixteen.
        let mut curve = Curve::new(vec![(1, truth(16)), (16, truth(16))], Vec::new(), 0.0);
        for _ in 0..12 {
            curve.observe(size(1, 0, 0.0), truth(1));
        }
        let share = curve.seconds(size(16, 0, 0.0)) / curve.seconds(size(1, 0, 0.0));
        assert!(share > 5.0, "{share}");
    }

    proptest! {
        #[test]
        fn more_rows_never_cost_less(
            points in prop::collection::vec((1usize..600, 1e-4f64..5.0), 0..8),
            cells in prop::collection::vec((1usize..600, 1e-7f64..1e-3), 0..3),
            seen in prop::collection::vec((1usize..600, 0.0f64..9000.0, 1e-4f64..5.0), 0..40),
            assumed: bool, a in 1usize..700, b in 1usize..700, budget in 0.0f64..3.0, depth in 0.0f64..9000.0,
        ) {
            let mut curve = if assumed { Curve::assumed(1 << 28) } else { Curve::new(points, cells, 1e-4) };
            for (rows, depth, seconds) in seen {
                curve.observe(size(rows, 1, depth), seconds);
            }
            let (less, more) = (a.min(b), a.max(b));
            if (less < TILE) == (more < TILE) {
                let takes = |rows| curve.seconds(size(rows, 1, depth));
                prop_assert!(takes(less) <= takes(more) + 1e-12);
            }
            let fits = curve.rows_within(budget, 1, depth, 600);
            prop_assert!(fits == 0 || curve.seconds(size(fits, 1, depth)) <= budget);
            prop_assert!(fits == 600 || curve.seconds(size(fits + 1, 1, depth)) > budget);
        }
    }
}
