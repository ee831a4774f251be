//! Ratios of a scenario's targets with their intervals, around 1.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::failed;
use crate::report::Outcome;
use crate::report::findings::{Paired, is_ratio, words};
use crate::sample::float;
use crate::statistics::Ratio;

const WIDTH: u32 = 1100;
const LINE_HEIGHT: u32 = 26;
/// Ratios are drawn from a tenth to ten times.
const LIMITS: (f64, f64) = (0.08, 12.0);

pub(super) fn plot(path: &Path, outcome: &Outcome) -> Result<()> {
    let rows: Vec<(String, Ratio, Option<f64>)> = outcome
        .scenario
        .target
        .iter()
        .filter(|target| is_ratio(target))
        .filter_map(|target| {
            let ratio = Ratio::of(Paired::of(outcome, target).judged())?;
            Some((words(target), ratio, target.at_most.or(target.at_least)))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let count = rows.len() as u64;
    let height = LINE_HEIGHT * u32::try_from(count)? + 90;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let (labels, drawing) = root.split_horizontally(520);
    let mut chart = ChartBuilder::on(&drawing)
        .caption("ratio, 95 % interval; bar: the aim", ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(30)
        .build_cartesian_2d((LIMITS.0..LIMITS.1).log_scale(), 0.0..float(count))
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .draw()
        .map_err(failed)?;
    let one = PathElement::new([(1.0, 0.0), (1.0, float(count))], BLACK.stroke_width(1));
    chart.draw_series([one]).map_err(failed)?;
    for (place, (name, ratio, aim)) in rows.iter().enumerate() {
        let y = float(count) - float(place as u64) - 0.5;
        let at = |value: f64| (value.clamp(LIMITS.0, LIMITS.1), y);
        let ends = [at(ratio.interval.0), at(ratio.interval.1)];
        let interval = PathElement::new(ends, BLUE.stroke_width(2));
        chart.draw_series([interval]).map_err(failed)?;
        let middle = Circle::new(at(ratio.median), 4, BLUE.filled());
        chart.draw_series([middle]).map_err(failed)?;
        if let Some(aim) = aim {
            let (x, _) = at(*aim);
            let bar = PathElement::new([(x, y - 0.35), (x, y + 0.35)], RED.stroke_width(2));
            chart.draw_series([bar]).map_err(failed)?;
        }
        let (_, pixel) = chart.backend_coord(&at(1.0));
        let text = Text::new(name.clone(), (10, pixel - 6), ("sans-serif", 13));
        labels.draw(&text).map_err(failed)?;
    }
    root.present().map_err(failed)
}
