//! Pictures of a board's temperature and pace, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use crate::sim::{
    board::Board,
    plant::TRIP,
    policy::{NONE, OnOff, Ours, SET_POINT},
    run::{Outcome, run},
    scenario::{Ambient, Load, Scenario},
};

/// The governor, what is compared with it, and the two lines.
const OURS: RGBColor = RGBColor(0, 110, 180);
const OTHER: RGBColor = RGBColor(215, 90, 20);
const THIRD: RGBColor = RGBColor(140, 140, 140);

/// All of them, of one board; `keeps-its-temper.svg` is the one for the README.
pub fn all(folder: &Path, board: Board) -> Result<()> {
    let steady = |ambient, fan| Scenario::hour("", board, ambient, fan);
    let scenarios = [
        (
            "keeps-its-temper",
            "Orin NX (simulated), 35 C: the fan is blocked after 20 minutes, for 20 minutes",
            Scenario { blocked: Some((1200.0, 2400.0)), ..steady(35.0, true) },
        ),
        (
            "governor-bursts",
            "Orin NX (simulated) without a fan, 35 C: two minutes of work, one of rest",
            Scenario { load: Load::Bursts(120.0, 60.0), seconds: 1800.0, ..steady(35.0, false) },
        ),
        (
            "governor-ambient",
            "Orin NX (simulated) with a fan: from 10 to 50 C and back",
            Scenario { ambient: Ambient::Ramp(10.0, 50.0, 3600.0), seconds: 7200.0, ..steady(0.0, true) },
        ),
        (
            "governor-modes",
            "Orin NX (simulated) without a fan, 30 C: more power after 20 minutes, less after 40",
            Scenario { switches: vec![1200.0, 2400.0], ..steady(30.0, false) },
        ),
        (
            "governor-blind",
            "Orin NX (simulated) with a fan, 45 C: tj cannot be read for 10 minutes",
            Scenario { lost: Some((1200.0, 1800.0)), ..steady(45.0, true) },
        ),
    ];
    for (name, caption, scenario) in scenarios {
        let lines = [
            ("no governor", OTHER, run(&scenario, &mut { NONE })),
            ("on/off", THIRD, run(&scenario, &mut OnOff(true))),
            ("temperd", OURS, run(&scenario, &mut Ours::new())),
        ];
        // On and off hides the rest in the picture of the README.
        let lines = if name == "keeps-its-temper" { [&lines[0..1], &lines[2..]].concat() } else { lines.to_vec() };
        draw(&folder.join(format!("{name}.svg")), caption, scenario.seconds / 60.0, &lines)?;
    }
    Ok(())
}

/// A line's name, colour and course.
type Line = (&'static str, RGBColor, Outcome);

/// Temperature above, pace below.
fn draw(path: &Path, caption: &str, minutes: f64, lines: &[Line]) -> Result<()> {
    let area = SVGBackend::new(path, (800, 480)).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{}: {error}", path.display());
    area.fill(&WHITE).map_err(failed)?;
    let (above, below) = area.split_vertically(320);
    let coolest = lines.iter().flat_map(|line| &line.2.trace).map(|point| point[1]).fold(SET_POINT, f64::min);
    let degrees = ((coolest - 5.0) / 10.0).floor() * 10.0..TRIP + 4.0;
    let temperature = |point: &[f64; 5]| point[1];
    let limits = [("set-point", SET_POINT), ("the kernel throttles", TRIP)];
    panel(&above, caption, "°C", (minutes, degrees), lines, temperature, &limits).map_err(failed)?;
    panel(&below, "", "pace", (minutes, 0.0..1.05), lines, |point| point[3], &[]).map_err(failed)?;
    area.present().map_err(failed)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failed = DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>;

fn panel(
    area: &Area<'_>,
    caption: &str,
    label: &str,
    (minutes, range): (f64, std::ops::Range<f64>),
    lines: &[Line],
    value: fn(&[f64; 5]) -> f64,
    limits: &[(&str, f64)],
) -> Result<(), Failed> {
    let lowest = limits.is_empty();
    let mut builder = ChartBuilder::on(area);
    builder.margin(8).margin_right(16).x_label_area_size(if lowest { 40 } else { 24 }).y_label_area_size(52);
    if !caption.is_empty() {
        builder.caption(caption, ("sans-serif", 17));
    }
    let mut chart = builder.build_cartesian_2d(0.0..minutes, range)?;
    let mut mesh = chart.configure_mesh();
    if lowest {
        mesh.x_desc("minutes");
    }
    mesh.y_desc(label).y_labels(6).light_line_style(WHITE).draw()?;
    for (name, at) in limits {
        let line = chart.draw_series(LineSeries::new([(0.0, *at), (minutes, *at)], BLACK.mix(0.6)))?;
        if *at == TRIP {
            line.label(format!("{name} at {at:.0} C, set-point {SET_POINT:.0} C"))
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.mix(0.6)));
        }
    }
    for (name, colour, outcome) in lines {
        let points = outcome.trace.iter().map(|point| (point[0] / 60.0, value(point)));
        let drawn = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        let colour = *colour;
        drawn.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    if !lowest {
        let place = SeriesLabelPosition::LowerRight;
        chart.configure_series_labels().position(place).background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    }
    Ok(())
}
