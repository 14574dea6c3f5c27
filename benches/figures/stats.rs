//! Medians, percentiles, and the table.

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The value that `percent` of all do not exceed (nearest rank).
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// What a figure must be.
#[derive(Debug, Clone, Copy)]
pub enum Must {
    AtLeast(f64),
    AtMost(f64),
    /// Reported beside.
    Nothing,
}

/// The table, row by row.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// A ratio of two sides measured in turns: the median of the rounds' ratios, and both sides' medians.
    pub fn ratio(&mut self, figure: &str, ours: &[f64], theirs: &[f64], unit: &str, must: Must) {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let found = median(&ratios);
        let (low, high) = (percentile(&ratios, 0.0), percentile(&ratios, 100.0));
        let (wanted, met) = match must {
            Must::AtLeast(bound) => (format!(">= {bound}"), if found >= bound { "yes" } else { "**no**" }),
            Must::AtMost(bound) => (format!("<= {bound}"), if found <= bound { "yes" } else { "**no**" }),
            Must::Nothing => (String::new(), ""),
        };
        let row = format!(
            "| {figure} | {found:.3} ({low:.2} to {high:.2}) | {:.4} / {:.4} {unit} | {wanted} | {met} |",
            median(ours),
            median(theirs)
        );
        eprintln!("{row}");
        self.rows.push(row);
    }

    /// A line below the table.
    pub fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let head = "| figure | median of the rounds' ratios (all) | medians | must be | met |\n|---|---|---|---|---|\n";
        format!("{head}{}\n\n{}\n", self.rows.join("\n"), self.notes.join("\n"))
    }
}
