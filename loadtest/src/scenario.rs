//! A scenario file: the work, what must not be, what goes on meanwhile, and the bed that it needs.

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use futures::future::join_all;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    bed::{Bed, BedTable, Words},
    cli::{self, Output, Unmeasured, Work},
    reset::words,
    run::Run,
    text::Span,
    threshold::Threshold,
};

/// The shape of a scenario file. Every key that it does not know is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it is to show, for a person.
    pub promise: String,
    /// What must not be.
    #[serde(default)]
    pub fail_if: Vec<Threshold>,
    /// So many errors are no failure.
    #[serde(default)]
    pub allow_errors: u64,
    /// The longest that the whole run may take.
    pub max_time: Option<Span>,
    /// Threads that the client needs; only said, `--threads` sets them.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The work.
    pub measure: Work,
    /// What goes on meanwhile, by name; its figures are not reported, its errors are.
    #[serde(default)]
    pub meanwhile: BTreeMap<String, Beside>,
    /// The servers to start, and to end afterwards.
    #[serde(default)]
    pub bed: BedTable,
}

/// What goes on beside the work, again and again until that is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there are few")]
pub enum Beside {
    /// Other work.
    Work(Work),
    /// A command.
    Command(Every),
}

/// A command, every so often.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Every {
    command: String,
    every: Span,
}

/// Reads a scenario; an error says where in the file it is.
pub fn read(file: &Path) -> anyhow::Result<Scenario> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| name.to_string())?;
    toml::from_str(&text).map_err(|error| anyhow::anyhow!("{name}: {error}"))
}

/// Runs a scenario.
pub async fn run(file: &Path, bin: Option<&Path>, output: &Output) -> anyhow::Result<ExitCode> {
    let scenario = read(file)?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (run, _guards) = cli::begin(output, scenario.max_time.map(|span| span.0));
    run.bar.set_message("starting the servers");
    let mut bed = Bed::start(&scenario.bed, bin)
        .map_err(|error| Unmeasured(format!("the bed: {error:#}")))?;
    let outcome = measure(&scenario, &stem, &bed, &run).await;
    bed.end();
    let mut report = outcome?;
    report.promise = Some(scenario.promise.clone());
    report.notes.extend(scenario.notes.clone());
    let mut fail_if = scenario.fail_if.clone();
    fail_if.extend(output.fail_if.clone());
    let allow_errors = output.allow_errors.unwrap_or(scenario.allow_errors);
    cli::finish(report, output, &fail_if, allow_errors)
}

async fn measure(
    scenario: &Scenario,
    name: &str,
    bed: &Bed,
    run: &Run,
) -> anyhow::Result<crate::report::Report> {
    let words = bed.words();
    let mut work = scenario.measure.clone();
    let mut notes = leave_out(&mut work, bed);
    let work: Work = expand(&work, &words)?;
    let meanwhile = Run { stop: run.stop.child_token(), ..Run::new(run.seed, true) };
    let mut beside = Vec::new();
    for (name, what) in &scenario.meanwhile {
        beside.push((name, expand::<Beside>(what, &words)?));
    }
    let done = async {
        let report = cli::carry_out(&work, name, run).await;
        meanwhile.stop.cancel();
        report
    };
    let others = beside.iter().map(async |(name, what)| (name, again(what, &meanwhile).await));
    let (report, ended) = tokio::join!(done, join_all(others));
    let mut report = report?;
    for (name, ended) in ended {
        let (answers, errors) = ended.with_context(|| format!("meanwhile {name}"))?;
        notes.push(format!(
            "meanwhile {name}: {answers} good, {} errors",
            errors.values().sum::<u64>()
        ));
        for (kind, count) in errors {
            let all = report.servers[0].errors.entry(format!("meanwhile {name}: {kind}"));
            *all.or_default() += count;
        }
    }
    report.notes.extend(notes);
    Ok(report)
}

/// A peer whose program is not on this machine is left out, and that is said.
fn leave_out(work: &mut Work, bed: &Bed) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, why) in bed.missing() {
        notes.push(format!("without {name}: {why}"));
        let mark = format!("${{{name}");
        let peers = work.peers_mut();
        peers.compare.retain(|text| !text.contains(&mark));
        peers.compare_pid.retain(|text| !text.contains(&mark));
    }
    notes
}

type Besides = (u64, BTreeMap<String, u64>);

async fn again(what: &Beside, run: &Run) -> anyhow::Result<Besides> {
    let (mut answers, mut errors) = (0, BTreeMap::new());
    while run.goes_on() {
        match what {
            Beside::Work(work) => {
                let found = Box::pin(work.run(run)).await?;
                for tally in found.servers.into_iter().flat_map(|served| served.rounds) {
                    answers += tally.answers;
                    for (kind, count) in tally.faults {
                        *errors.entry(kind).or_default() += count;
                    }
                }
            }
            Beside::Command(Every { command, every }) => {
                let words = words(command)?;
                let mut command = tokio::process::Command::new(&words[0]);
                command.args(&words[1..]).kill_on_drop(true).stdin(std::process::Stdio::null());
                match run.unless_stopped(command.output()).await {
                    None => {}
                    Some(Ok(ran)) if ran.status.success() => answers += 1,
                    Some(_) => *errors.entry(format!("{} failed", words[0])).or_default() += 1,
                }
                run.nap(every.0.max(Duration::from_millis(1))).await;
            }
        }
    }
    Ok((answers, errors))
}

/// Fills the bed's words into every string of `value`.
fn expand<T: Serialize + DeserializeOwned>(value: &T, words: &Words) -> anyhow::Result<T> {
    fn walk(value: &mut Value, words: &Words) -> anyhow::Result<()> {
        match value {
            Value::String(text) => *text = words.fill_in(text)?,
            Value::Array(values) => values.iter_mut().try_for_each(|v| walk(v, words))?,
            Value::Object(values) => values.values_mut().try_for_each(|v| walk(v, words))?,
            _ => {}
        }
        Ok(())
    }
    let mut json = serde_json::to_value(value).context("a scenario's table")?;
    walk(&mut json, words)?;
    serde_json::from_value(json).context("a scenario's table")
}
