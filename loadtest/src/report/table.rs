//! The report for the person at the terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{Outcome, Report, Server};
use crate::stats::Interval;

/// Said in one line, without a table.
const COUNTED: [&str; 3] = ["answers", "errors", "error-rate"];

/// Everything, as text.
pub fn text(report: &Report) -> String {
    let mut text = format!("{}: {}\n", report.name, report.command);
    if let Some(promise) = &report.promise {
        text.push_str(promise);
        text.push('\n');
    }
    for server in &report.servers {
        let (bad, good) = (server.errors.values().sum::<u64>(), server.answers);
        push(&mut text, &format!("\n{} {}: {good} answers, {bad} errors", server.name, server.url));
        push(&mut text, &series(server));
        push(&mut text, &values(server));
        for (kind, count) in &server.errors {
            push(&mut text, &format!("  ERRORS {count} × {kind}"));
        }
    }
    if !report.comparisons.is_empty() {
        push(&mut text, &comparisons(report));
    }
    for note in &report.notes {
        push(&mut text, &format!("note: {note}"));
    }
    for check in &report.checks {
        let (expression, value) = (&check.expression, check.value.map(number));
        let verdict = match check.outcome {
            Outcome::Ok => "ok     ",
            Outcome::Failed => "FAILED ",
            Outcome::NotMeasured => "NOT MEASURED",
        };
        let value = value.unwrap_or_else(|| "nothing".into());
        push(&mut text, &format!("{verdict} fail if {expression}: it is {value}"));
    }
    if report.interrupted {
        push(&mut text, "INTERRUPTED: what was measured until then");
    }
    text
}

fn push(text: &mut String, line: &str) {
    if !line.is_empty() {
        writeln!(text, "{line}").expect("a String takes all");
    }
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn series(server: &Server) -> String {
    let row = |(name, s): (&String, &crate::stats::Summary)| {
        let mut row = vec![name.clone(), s.unit.to_owned(), s.count.to_string()];
        row.extend([s.min, s.p50, s.p90, s.p95, s.p99, s.p999, s.max].map(number));
        row
    };
    let header = ["", "unit", "count", "min", "p50", "p90", "p95", "p99", "p99.9", "max"];
    table(&header, server.series.iter().map(row).collect())
}

fn values(server: &Server) -> String {
    let row = |(name, figures): (&String, &super::Figures)| {
        let least = figures.rounds.iter().copied().reduce(f64::min).unwrap_or(figures.median);
        let most = figures.rounds.iter().copied().reduce(f64::max).unwrap_or(figures.median);
        vec![
            name.clone(),
            figures.unit.to_owned(),
            number(figures.median),
            number(least),
            number(most),
            figures.rounds.len().to_string(),
        ]
    };
    let header = ["", "unit", "median", "min", "max", "rounds"];
    let rows = server.values.iter().filter(|(name, _)| !COUNTED.contains(&name.as_str()));
    table(&header, rows.map(row).collect())
}

fn comparisons(report: &Report) -> String {
    let interval = |interval: Option<Interval>| {
        interval.map_or(String::new(), |i| {
            let percent = 100.0 * i.confidence;
            format!("{} [{} {}] {percent:.0} %", number(i.value), number(i.low), number(i.high))
        })
    };
    let row = |c: &super::Comparison| {
        let peer = c.peer.clone();
        let unit = c.unit.to_owned();
        vec![c.metric.clone(), peer, interval(c.ratio), interval(c.difference), unit]
    };
    let header = ["target against", "peer", "ratio", "difference", "unit"];
    table(&header, report.comparisons.iter().map(row).collect())
}

/// Three digits that count, and no exponent.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let places = match size {
        _ if size == 0.0 || 100.0 <= size => 0,
        _ if 10.0 <= size => 1,
        _ if 1.0 <= size => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}
