//! SVG plots: CPU per GiB and per request, latency by percentile, memory, ratios with intervals.

mod ratio;

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Outcome, good, groups};
use crate::sample::{Sample, float};
use crate::scenario::{Kind, Load, Stage};
use crate::statistics::median;

const SIZE: (u32, u32) = (900, 480);
/// Nines of the percentile axis: 99.99 %.
const NINES_MAX: f64 = 4.0;

pub(super) fn all(directory: &Path, outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        let file = |what: &str| directory.join(format!("{}-{what}.svg", outcome.name));
        match &outcome.scenario.kind {
            Kind::IdleAgents { .. } => agents(&file("memory"), outcome)?,
            Kind::Tcp(tcp) => {
                for stage in &tcp.stage {
                    stage_plot(&file(&stage.name.replace(' ', "-")), outcome, stage)?;
                }
                ratio::plot(&file("ratios"), outcome)?;
            }
            Kind::Bulk { .. } => {
                let cost = |sample: &Sample| 1.0 / sample.gib_per_cpu_second();
                bars(
                    &file("cpu"),
                    outcome,
                    "bulk",
                    "relay CPU-seconds per GiB",
                    cost,
                )?;
            }
            Kind::Requests { .. } => {
                let cost = |sample: &Sample| 1e6 / sample.answers_per_cpu_second();
                bars(
                    &file("cpu"),
                    outcome,
                    "capacity",
                    "relay CPU microseconds per request",
                    cost,
                )?;
                for (stage, _) in groups(&outcome.samples) {
                    if stage.starts_with("rate") {
                        let name = format!("latency-{}", stage.replace(' ', "-"));
                        latency(&file(&name), outcome, &stage)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// What a stage of a TCP scenario is about.
fn stage_plot(path: &Path, outcome: &Outcome, stage: &Stage) -> Result<()> {
    let name = &stage.name;
    match stage.load {
        Load::Bulk(_) => bars(path, outcome, name, "relay CPU-seconds per GiB", |sample| {
            1.0 / sample.gib_per_cpu_second()
        }),
        Load::Echo(_) | Load::Short(_) => bars(
            path,
            outcome,
            name,
            "relay CPU microseconds for each",
            |sample| 1e6 / sample.answers_per_cpu_second(),
        ),
        Load::Requests { .. } | Load::Burst(_) => latency(path, outcome, name),
        Load::Idle => memory(path, outcome, name),
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("plotting: {error}")
}

fn variants(outcome: &Outcome, stage: &str) -> Vec<String> {
    groups(&outcome.samples)
        .into_iter()
        .filter(|(other, _)| other == stage)
        .map(|(_, variant)| variant)
        .collect()
}

/// Of the rounds that count; of all where none does.
fn costs(outcome: &Outcome, stage: &str, variant: &str, cost: fn(&Sample) -> f64) -> Vec<f64> {
    let mut rounds = good(&outcome.samples, stage, variant);
    if rounds.is_empty() {
        let same = |sample: &&Sample| sample.stage == stage && sample.variant == variant;
        rounds = outcome.samples.iter().filter(same).collect();
    }
    rounds.into_iter().map(cost).collect()
}

/// One bar for each variant that has a relay: the median of its rounds.
fn bars(
    path: &Path,
    outcome: &Outcome,
    stage: &str,
    title: &str,
    cost: fn(&Sample) -> f64,
) -> Result<()> {
    let costs: Vec<(String, f64)> = variants(outcome, stage)
        .into_iter()
        .map(|variant| {
            let costs = costs(outcome, stage, &variant, cost);
            (variant, median(&costs))
        })
        .filter(|(_, cost)| cost.is_finite() && *cost > 0.0)
        .collect();
    let top = costs
        .iter()
        .map(|(_, cost)| *cost)
        .fold(0.0, f64::max)
        .max(1e-9)
        * 1.15;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..float(costs.len() as u64).max(1.0), 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .draw()
        .map_err(failed)?;
    for (place, (variant, cost)) in costs.iter().enumerate() {
        let left = float(place as u64);
        let color = Palette99::pick(place);
        let bar = Rectangle::new([(left + 0.2, 0.0), (left + 0.8, *cost)], color.filled());
        chart.draw_series([bar]).map_err(failed)?;
        let label = format!("{variant}: {cost:.2}");
        let text = Text::new(label, (left + 0.1, cost + top * 0.04), ("sans-serif", 14));
        chart.draw_series([text]).map_err(failed)?;
    }
    root.present().map_err(failed)
}

/// Latency by percentile, both axes logarithmic.
fn latency(path: &Path, outcome: &Outcome, stage: &str) -> Result<()> {
    let lines: Vec<(String, Vec<(f64, f64)>)> = variants(outcome, stage)
        .into_iter()
        .filter_map(|variant| {
            let all = outcome
                .histograms
                .get(&(stage.to_owned(), variant.clone()))?;
            let points = (0..=80)
                .map(|step| NINES_MAX * f64::from(step) / 80.0)
                .map(|nines| {
                    let quantile = 1.0 - 10f64.powf(-nines);
                    (nines, float(all.value_at_quantile(quantile)).max(1.0))
                })
                .collect();
            Some((variant, points))
        })
        .collect();
    let top = lines
        .iter()
        .flat_map(|(_, points)| points)
        .map(|(_, us)| *us)
        .fold(10.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            format!("latency from intended time, {stage}"),
            ("sans-serif", 20),
        )
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..NINES_MAX, (1.0..top * 1.2).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("microseconds")
        .x_labels(5)
        .x_label_formatter(&|nines| format!("{:.4}", 100.0 * (1.0 - 10f64.powf(-nines))))
        .draw()
        .map_err(failed)?;
    for (place, (variant, points)) in lines.into_iter().enumerate() {
        let color = Palette99::pick(place).to_rgba();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(failed)?
            .label(variant)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

/// Proportional memory of the hub by agents.
fn agents(path: &Path, outcome: &Outcome) -> Result<()> {
    let points = outcome.samples.iter().map(|sample| {
        let agents = float(sample.connections as u64);
        (agents, float(sample.hub_pss_kib) / 1024.0)
    });
    let lines = vec![("culvert".to_owned(), points.collect())];
    lines_by(path, "hub memory (PSS, MiB) by idle TLS agents", lines)
}

/// Proportional memory of all hops by idle pairs.
fn memory(path: &Path, outcome: &Outcome, stage: &str) -> Result<()> {
    let half = format!("{stage} half");
    let lines = variants(outcome, stage).into_iter().map(|variant| {
        let point = |name: &str| {
            let mib = costs(outcome, name, &variant, |sample| {
                float(sample.user_kib()) / 1024.0
            });
            let pairs = costs(outcome, name, &variant, |sample| {
                float(sample.connections as u64)
            });
            (median(&pairs), median(&mib))
        };
        let points = vec![point(&half), point(stage)];
        (variant, points)
    });
    lines_by(
        path,
        "user memory (PSS, MiB) by idle connections",
        lines.collect(),
    )
}

fn lines_by(path: &Path, title: &str, lines: Vec<(String, Vec<(f64, f64)>)>) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let top = points().map(|(_, mib)| *mib).fold(1.0, f64::max) * 1.1;
    let right = points().map(|(count, _)| *count).fold(1.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)
        .map_err(failed)?;
    chart.configure_mesh().draw().map_err(failed)?;
    for (place, (name, points)) in lines.into_iter().enumerate() {
        let color = Palette99::pick(place).to_rgba();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}
