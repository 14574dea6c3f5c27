//! What a step costs on this machine with this model: seconds over its rows. The curve bends very differently from
//! machine to machine (eight rows may cost as much as one, or eight times as much), so it is measured at load and kept
//! up to date by every step. Pure; `measure.rs` does the measuring.

/// Weight of a new reading: the last ten steps of a size count most.
const FRESH: f64 = 0.1;

/// Seconds of a step by its rows, and of each row whose logits are wanted on top.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Rows and seconds, by rows ascending, at least one; the first is for one row.
    points: Vec<(usize, f64)>,
    per_output: f64,
}

impl Curve {
    /// A curve through measured points `(rows, seconds without the rows' outputs)`; seconds of one output.
    ///
    /// More rows never cost less, which noise may suggest: such points are lifted.
    pub fn new(mut points: Vec<(usize, f64)>, per_output: f64) -> Self {
        points.retain(|(rows, seconds)| *rows > 0 && seconds.is_finite() && *seconds > 0.0);
        points.sort_unstable_by_key(|point| point.0);
        points.dedup_by_key(|point| point.0);
        if points.first().is_none_or(|first| first.0 != 1) {
            let first = points.first().map_or(1e-3, |(rows, seconds)| seconds / *rows as f64);
            points.insert(0, (1, first));
        }
        let mut curve = Self { points, per_output: if per_output.is_finite() { per_output.max(0.0) } else { 0.0 } };
        curve.lift();
        curve
    }

    /// Seconds of a step of `rows` rows, of which `outputs` are sampled from. Between the points it is a straight
    /// line, beyond the last one it goes on at the last point's cost of a row.
    pub fn seconds(&self, rows: usize, outputs: usize) -> f64 {
        self.rows_seconds(rows) + self.per_output * outputs as f64
    }

    fn rows_seconds(&self, rows: usize) -> f64 {
        let above = self.points.partition_point(|point| point.0 < rows);
        match (above.checked_sub(1).and_then(|below| self.points.get(below)), self.points.get(above)) {
            (Some(&(low, less)), Some(&(high, more))) => {
                less + (more - less) * (rows - low) as f64 / (high - low) as f64
            }
            (Some(&(low, seconds)), None) => seconds * rows as f64 / low as f64,
            (None, Some(&(_, seconds))) => seconds,
            (None, None) => 0.0,
        }
    }

    /// The most rows, up to `most`, of a step that takes at most `seconds` beside `outputs`; 0 where not even one does.
    pub fn rows_within(&self, seconds: f64, outputs: usize, most: usize) -> usize {
        let (mut fits, mut exceeds) = (0, most + 1);
        while exceeds - fits > 1 {
            let middle = fits + (exceeds - fits) / 2;
            if self.seconds(middle, outputs) <= seconds { fits = middle } else { exceeds = middle }
        }
        fits
    }

    /// The fewest rows, up to `most`, whose rows per second are `share` of the best that steps of up to `seconds` reach;
    /// at least 1.
    pub fn efficient_rows(&self, seconds: f64, share: f64, most: usize) -> usize {
        let rate = |rows: usize| rows as f64 / self.seconds(rows, 1);
        let limit = self.rows_within(seconds, 1, most).max(1);
        let best = (1..=limit).map(rate).fold(0.0, f64::max);
        (1..=limit).find(|rows| rate(*rows) >= best * share).unwrap_or(limit)
    }

    /// Takes in what a step of this size took. The points around it move, each by its nearness.
    pub fn observe(&mut self, rows: usize, outputs: usize, seconds: f64) {
        let alone = seconds - self.per_output * outputs as f64;
        if rows == 0 || !alone.is_finite() || alone <= 0.0 {
            return;
        }
        // A size far beyond what is known becomes a point of its own.
        if self.points.last().is_some_and(|last| rows >= last.0 * 2) {
            self.points.push((rows, alone));
            self.lift();
            return;
        }
        // A stall of the machine says little about the model.
        let expected = self.rows_seconds(rows);
        let error = (alone - expected).clamp(-expected, expected * 2.0);
        let above = self.points.partition_point(|point| point.0 < rows);
        let (low, high) = (above.saturating_sub(1), above.min(self.points.len() - 1));
        let span = (self.points[high].0 - self.points[low].0) as f64;
        let toward_high = if span > 0.0 { (rows - self.points[low].0) as f64 / span } else { 1.0 };
        self.points[low].1 += error * FRESH * (1.0 - toward_high);
        self.points[high].1 += error * FRESH * toward_high;
        self.lift();
    }

    fn lift(&mut self) {
        let mut least = 0.0_f64;
        for point in &mut self.points {
            least = least.max(point.1);
            point.1 = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_goes_through_its_points_and_on_beyond_them() {
        let curve = Curve::new(vec![(8, 0.8), (1, 0.2)], 0.01);
        assert!((curve.seconds(1, 0) - 0.2).abs() < 1e-9);
        assert!((curve.seconds(8, 2) - 0.82).abs() < 1e-9);
        assert!((curve.seconds(16, 0) - 1.6).abs() < 1e-9);
        assert_eq!(curve.rows_within(0.801, 0, 100), 8);
        assert_eq!(curve.rows_within(0.1, 0, 100), 0);
        assert_eq!(curve.rows_within(9.0, 0, 20), 20);
    }

    #[test]
    fn it_follows_a_machine_that_has_become_slower() {
        let mut curve = Curve::new(vec![(1, 0.01), (8, 0.04)], 0.0);
        for _ in 0..200 {
            curve.observe(8, 0, 0.08);
        }
        assert!((curve.seconds(8, 0) - 0.08).abs() < 0.002, "{curve:?}");
        assert!((curve.seconds(1, 0) - 0.01).abs() < 1e-9);
        curve.observe(64, 0, 0.5);
        assert!((curve.seconds(64, 0) - 0.5).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn more_rows_never_cost_less(
            points in prop::collection::vec((1usize..600, 1e-4f64..5.0), 0..8),
            seen in prop::collection::vec((1usize..600, 1e-4f64..5.0), 0..40),
            a in 1usize..700, b in 1usize..700, budget in 0.0f64..3.0,
        ) {
            let mut curve = Curve::new(points, 1e-4);
            for (rows, seconds) in seen {
                curve.observe(rows, 1, seconds);
            }
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(curve.seconds(less, 1) <= curve.seconds(more, 1) + 1e-12);
            let fits = curve.rows_within(budget, 1, 600);
            prop_assert!(fits == 0 || curve.seconds(fits, 1) <= budget);
            prop_assert!(fits == 600 || curve.seconds(fits + 1, 1) > budget);
        }
    }
}
