//! Pictures of what was measured, as SVG.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Points of one line, and its name.
pub type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// Where pictures go.
pub struct Plots {
    folder: PathBuf,
}

impl Plots {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Lines over a common x axis, both axes from 0.
    pub fn lines(&self, name: &str, caption: &str, lines: &[Line<'_>]) -> Result<()> {
        let path = self.folder.join(format!("{name}.svg"));
        let most = |of: fn(&(f64, f64)) -> f64| lines.iter().flat_map(|line| &line.1).map(of).fold(1e-9, f64::max);
        let (right, top) = (most(|point| point.0), most(|point| point.1) * 1.05);
        let area = SVGBackend::new(&path, (800, 480)).into_drawing_area();
        let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{}: {error}", path.display());
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..right, 0.0..top)
            .map_err(failed)?;
        chart.configure_mesh().draw().map_err(failed)?;
        for (nth, (name, points)) in lines.iter().enumerate() {
            let colour = Palette99::pick(nth).to_rgba();
            let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)));
            drawn.map_err(failed)?.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw().map_err(failed)?;
        area.present().map_err(failed)
    }
}
