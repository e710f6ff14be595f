//! The two pictures of a report, as SVG: the latency curve, and the waterfall of a wake.

use plotters::prelude::*;

use super::{Report, Server};

const SIZE: (u32, u32) = (900, 420);
const COLOURS: [RGBColor; 7] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
];

/// A picture that could not be drawn.
pub type Failed = Box<dyn std::error::Error>;

/// Latency by percentile, all servers, the axis stretched towards the tail: 50 %, 90 %, 99 % … are
/// equally far apart.
pub fn latency(report: &Report) -> Result<Option<String>, Failed> {
    let curves: Vec<_> = report
        .servers
        .iter()
        .filter_map(|server| Some((server.name.as_str(), server.series.get(&report.main)?)))
        .collect();
    let Some(most) = curves.iter().map(|(_, s)| s.max).reduce(f64::max) else { return Ok(None) };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("{} by percentile", report.main), ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..4.0, 0.0..most.max(1e-6) * 1.05)?;
        let unit = curves.first().map_or("", |(_, summary)| summary.unit);
        chart
            .configure_mesh()
            .x_labels(5)
            .x_label_formatter(&|nines| percent(*nines))
            .y_desc(unit)
            .draw()?;
        for (n, (name, summary)) in curves.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            // As far as there are values to tell: of a hundred none is at 99.9 %.
            let end = (summary.count as f64).log10().clamp(1.0, 4.0);
            let points = summary.curve.iter().map(|[q, value]| (nines(*q), *value));
            let points: Vec<_> = points.filter(|(at, _)| *at <= end).collect();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
    }
    Ok(Some(svg))
}

/// 0.9 is 1, 0.99 is 2 …
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-4).log10()
}

fn percent(nines: f64) -> String {
    let percent = 100.0 * (1.0 - 10f64.powf(-nines));
    format!("{}%", (percent * 1e4).round() / 1e4)
}

/// The medians of the parts of a wake, stacked, one bar for each server that tells them.
pub fn waterfall(report: &Report) -> Result<Option<String>, Failed> {
    let bars: Vec<_> = report
        .servers
        .iter()
        .map(|server| (server.name.as_str(), parts(server)))
        .filter(|(_, parts)| !parts.is_empty())
        .collect();
    let total = |parts: &[(String, f64)]| parts.iter().map(|(_, millis)| millis).sum::<f64>();
    let most = bars.iter().map(|(_, parts)| total(parts)).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(None);
    }
    let mut svg = String::new();
    {
        let size = (SIZE.0, 110 + 60 * bars.len() as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("where the median wake goes", ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(30)
            .build_cartesian_2d(0.0..most * 1.02, 0.0..bars.len() as f64)?;
        chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc("ms").draw()?;
        for (n, (name, parts)) in bars.iter().enumerate() {
            let (mut from, low) = (0.0, (bars.len() - 1 - n) as f64);
            for (k, (part, millis)) in parts.iter().enumerate() {
                let (to, colour) = (from + millis, COLOURS[k % COLOURS.len()].mix(0.75).filled());
                let corners = [(from, low + 0.15), (to, low + 0.55)];
                chart.draw_series([Rectangle::new(corners, colour)])?;
                if most * 0.06 < *millis {
                    let label = format!("{part} {millis:.1}");
                    let at = (from + most * 0.004, low + 0.42);
                    chart.draw_series([Text::new(label, at, ("sans-serif", 13))])?;
                }
                from = to;
            }
            chart.draw_series([Text::new(
                name.to_string(),
                (0.0, low + 0.8),
                ("sans-serif", 14),
            )])?;
        }
        area.present()?;
    }
    Ok(Some(svg))
}

/// The client's phases, then the server's, then what nobody claims.
fn parts(server: &Server) -> Vec<(String, f64)> {
    let median = |name: &str| server.series.get(name).map(|summary| summary.p50);
    let Some(whole) = median("ttfb") else { return Vec::new() };
    let names = ["dns", "connect", "tls", "server.engine", "server.ready", "server.connect"];
    let mut parts: Vec<_> = names
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), median(name)?)))
        .filter(|(_, millis)| 0.0 < *millis)
        .collect();
    if parts.is_empty() {
        return vec![("start".to_owned(), whole)];
    }
    let rest = whole - parts.iter().map(|(_, millis)| millis).sum::<f64>();
    parts.push(("rest".to_owned(), rest.max(0.0)));
    parts
}
