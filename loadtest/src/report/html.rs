//! The report as one HTML file that needs nothing else: pictures inside, no script, no network.

use std::fmt::Write as _;

use super::{Report, plot, table};

/// The whole page.
pub fn page(report: &Report) -> Result<String, plot::Failed> {
    let mut page = String::from(HEAD);
    write!(page, "<title>{0}</title><h1>{0}</h1>", escape(&report.name))?;
    if let Some(promise) = &report.promise {
        write!(page, "<p>{}</p>", escape(promise))?;
    }
    let failed = report.checks.iter().filter(|check| check.outcome != super::Outcome::Ok).count();
    let verdict = match (report.interrupted, failed, report.errors()) {
        (true, _, _) => "interrupted: what was measured until then".to_owned(),
        (_, 0, 0) => format!("{} checks held, no errors", report.checks.len()),
        (_, failed, errors) => format!("{failed} checks did not hold, {errors} errors"),
    };
    write!(page, "<p><b>{verdict}</b></p>")?;
    for picture in [plot::latency(report)?, plot::waterfall(report)?].into_iter().flatten() {
        write!(page, "<figure>{picture}</figure>")?;
    }
    write!(page, "<h2>Figures</h2><pre>{}</pre>", escape(&table::text(report)))?;
    page.push_str("<h2>Conditions</h2><table>");
    let c = &report.conditions;
    let gib = c.memory_bytes as f64 / f64::from(1 << 30);
    let rows = [
        ("date", c.date.clone()),
        ("machine", format!("{}, {} cores, {gib:.1} GiB", c.cpu, c.cores)),
        ("kernel", format!("Linux {}", c.kernel)),
        ("load average at the start", format!("{:.2}", c.load_average)),
        ("loadtest", c.loadtest.clone()),
        ("servers", c.servers.join("\n")),
        ("command", c.command.clone()),
        ("took", format!("{:.0} s", report.seconds)),
        ("settings", serde_json::to_string_pretty(&report.settings)?),
    ];
    for (name, value) in rows {
        write!(page, "<tr><th>{name}<td><pre>{}</pre>", escape(&value))?;
    }
    page.push_str("</table></html>\n");
    Ok(page)
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8>\
<meta name=viewport content=\"width=device-width\">\
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}\
pre{overflow-x:auto;margin:0}figure{margin:1rem 0;overflow-x:auto}\
th{text-align:left;vertical-align:top;padding-right:1rem}h2{margin-top:2rem}</style>";

/// What came from a server or a file is text, never markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
