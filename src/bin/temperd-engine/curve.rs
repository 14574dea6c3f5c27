//! What a step costs on this machine with this model: seconds over its rows and over how many cells of the KV cache each
//! of them looks at. Both bend very differently from machine to machine (eight rows may cost as much as one, or eight
//! times as much; attention may be most of a step or next to nothing), so they are measured at load and kept up to date
//! by every step. Pure; `measure.rs` does the measuring.

/// Weight of a new reading: the last ten steps of a size count most.
const FRESH: f64 = 0.1;
/// Weight of a new reading for how fast the machine is at present, whatever the size: clocks and neighbours change that
/// within seconds.
const PRESENT: f64 = 0.2;
/// As slow or fast a machine may be thought to have become.
const SLOWNESS: (f64, f64) = (0.05, 20.0);

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
    per_output: f64,
    /// What all that is multiplied by at present.
    slowness: f64,
}

impl Curve {
    /// A curve through measured points `(rows, seconds without outputs and cells)` and `(rows, seconds per cell of
    /// depth)`; seconds of one output.
    ///
    /// More rows never cost less, which noise may suggest: such points are lifted.
    pub fn new(rows: Vec<(usize, f64)>, cells: Vec<(usize, f64)>, per_output: f64) -> Self {
        let per_output = if per_output.is_finite() { per_output.max(0.0) } else { 0.0 };
        Self { rows: Line::new(rows, 1e-3), cells: Line::new(cells, 0.0), per_output, slowness: 1.0 }
    }

    /// Seconds of a step. Between the points it is a straight line, beyond the last one it goes on at the last point's
    /// cost of a row.
    pub fn seconds(&self, size: Size) -> f64 {
        let outputs = self.per_output * size.outputs as f64;
        self.slowness * (self.rows.at(size.rows) + self.cells.at(size.rows) * size.depth + outputs)
    }

    /// Seconds that one more cell in the way of every row adds to a step of `rows` rows.
    pub fn of_cell(&self, rows: usize) -> f64 {
        self.slowness * self.cells.at(rows)
    }

    /// The most rows, up to `most`, of a step that takes at most `seconds` beside `outputs`; 0 where not even one does.
    pub fn rows_within(&self, seconds: f64, outputs: usize, depth: f64, most: usize) -> usize {
        let (mut fits, mut exceeds) = (0, most + 1);
        while exceeds - fits > 1 {
            let rows = fits + (exceeds - fits) / 2;
            if self.seconds(Size { rows, outputs, depth }) <= seconds { fits = rows } else { exceeds = rows }
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

    /// Takes in what a step of this size took. All moves a little; of what is still off, the points around it, each by
    /// its nearness, and rows and cells by what they were thought to take of it.
    pub fn observe(&mut self, size: Size, seconds: f64) {
        let expected = self.seconds(size);
        if size.rows == 0 || !seconds.is_finite() || seconds <= 0.0 || expected <= 0.0 {
            return;
        }
        // A stall of the machine says little about the model.
        let error = (seconds / expected - 1.0).clamp(-1.0, 2.0);
        self.slowness = (self.slowness * (1.0 + error * PRESENT)).clamp(SLOWNESS.0, SLOWNESS.1);
        let (of_rows, of_cells) = (self.rows.at(size.rows), self.cells.at(size.rows) * size.depth);
        let rest = error * (1.0 - PRESENT);
        self.rows.learn(size.rows, of_rows * rest);
        if of_cells > 0.0 {
            self.cells.learn(size.rows, of_cells / size.depth * rest);
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

    /// Moves toward what was off by `error` at so many rows.
    fn learn(&mut self, rows: usize, error: f64) {
        // A size far beyond what is known becomes a point of its own.
        if self.0.last().is_some_and(|last| rows >= last.0 * 2) {
            let value = (self.at(rows) + error).max(0.0);
            self.0.push((rows, value));
        } else {
            let above = self.0.partition_point(|point| point.0 < rows);
            let (low, high) = (above.saturating_sub(1), above.min(self.0.len() - 1));
            let span = (self.0[high].0 - self.0[low].0) as f64;
            let toward_high = if span > 0.0 { (rows - self.0[low].0) as f64 / span } else { 1.0 };
            self.0[low].1 += error * FRESH * (1.0 - toward_high);
            self.0[high].1 += error * FRESH * toward_high;
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
            curve.observe(size(8, 0, 0.0), 2.0 * truth(8));
        }
        let found = curve.seconds(size(64, 0, 0.0)) / truth(64);
        assert!((1.5..2.0).contains(&found), "{found}");
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

    proptest! {
        #[test]
        fn more_rows_never_cost_less(
            points in prop::collection::vec((1usize..600, 1e-4f64..5.0), 0..8),
            cells in prop::collection::vec((1usize..600, 1e-7f64..1e-3), 0..3),
            seen in prop::collection::vec((1usize..600, 0.0f64..9000.0, 1e-4f64..5.0), 0..40),
            a in 1usize..700, b in 1usize..700, budget in 0.0f64..3.0, depth in 0.0f64..9000.0,
        ) {
            let mut curve = Curve::new(points, cells, 1e-4);
            for (rows, depth, seconds) in seen {
                curve.observe(size(rows, 1, depth), seconds);
            }
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(curve.seconds(size(less, 1, depth)) <= curve.seconds(size(more, 1, depth)) + 1e-12);
            let fits = curve.rows_within(budget, 1, depth, 600);
            prop_assert!(fits == 0 || curve.seconds(size(fits, 1, depth)) <= budget);
            prop_assert!(fits == 600 || curve.seconds(size(fits + 1, 1, depth)) > budget);
        }
    }
}
