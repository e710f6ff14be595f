//! The command line: which work, and what becomes of its report.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    churn::{self, Churn},
    cold::{self, Cold},
    conditions::Conditions,
    found::Found,
    herd::{self, Herd},
    metrics,
    report::{Outcome, Report, html, plot, table},
    run::Run,
    scenario,
    sockets::{self, Sockets},
    text::Span,
    threshold::Threshold,
    warm::{self, Warm},
};

/// Measures servers whose sessions sleep: cold starts, herds, warm requests, sockets, churn.
///
/// Exit codes: 0 all is well; 1 a --fail-if came true; 2 the command, a scenario or a target is
/// refused; 3 more errors than --allow-errors; 4 nothing could be measured, or not what a --fail-if
/// asks for; 130 interrupted, or --max-time was over.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
pub struct Cli {
    #[command(subcommand)]
    what: What,
    #[command(flatten, next_help_heading = "Report and bounds")]
    output: Output,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum What {
    #[command(flatten)]
    Work(Work),
    /// Runs a scenario file: the work, what must not be, and the servers for it if it says so.
    Run {
        /// The file, see loadtest/scenarios/.
        file: PathBuf,
        /// Start what the scenario needs from these programs instead of those beside this one.
        #[arg(long, value_name = "FOLDER")]
        bin: Option<PathBuf>,
    },
    /// Prints every metric that --fail-if knows.
    Metrics,
}

/// One kind of work with all its options.
#[derive(Clone, Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the options' own documentation is the help text")]
pub enum Work {
    Cold(Cold),
    Herd(Herd),
    Warm(Warm),
    Sockets(Sockets),
    Churn(Churn),
}

/// What becomes of the report.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Fail (exit code 1) if this comes true, such as 'p99>50ms'. Several allowed; see `metrics`.
    #[arg(long, value_name = "CONDITION", global = true)]
    pub fail_if: Vec<Threshold>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE", global = true)]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML file.
    #[arg(long, value_name = "FILE", global = true)]
    pub html: Option<PathBuf>,
    /// Write the plots as SVG into this folder.
    #[arg(long, value_name = "FOLDER", global = true)]
    pub svg: Option<PathBuf>,
    /// So many errors are no failure (a scenario's own number is replaced).
    #[arg(long, value_name = "COUNT", global = true)]
    pub allow_errors: Option<u64>,
    /// The longest that the whole run may take (10m, or what a scenario says).
    #[arg(long, value_name = "DURATION", global = true)]
    pub max_time: Option<Span>,
    /// Threads of the client. One sends some ten thousand requests a second.
    #[arg(long, default_value_t = 1, value_name = "COUNT", global = true)]
    pub threads: usize,
    /// Of everything random: the same seed makes the same arrivals.
    #[arg(long, default_value_t = 1, value_name = "NUMBER", global = true)]
    pub seed: u64,
    /// No progress bar and no table.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// When nobody says how long a run may take.
const TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// An option table as it is when nothing is written in it; a URL is then empty.
pub fn defaults<T: Args>() -> T {
    let command = T::augment_args(clap::Command::new("defaults"));
    let url = command.get_positionals().map(|_| "");
    let words: Vec<_> = std::iter::once("defaults").chain(url).collect();
    let matches = command.get_matches_from(words);
    T::from_arg_matches(&matches).expect("its own defaults")
}

macro_rules! defaults {
    ($($table:ty),*) => {$(
        impl Default for $table {
            fn default() -> Self {
                defaults()
            }
        }
    )*};
}
defaults!(Cold, Herd, Warm, Sockets, Churn, crate::reset::ResetArgs, crate::identity::IdentityArgs);

impl Work {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cold(_) => "cold",
            Self::Herd(_) => "herd",
            Self::Warm(_) => "warm",
            Self::Sockets(_) => "sockets",
            Self::Churn(_) => "churn",
        }
    }

    /// Does it.
    pub async fn run(&self, run: &Run) -> anyhow::Result<Found> {
        match self {
            Self::Cold(args) => cold::run(args, run).await,
            Self::Herd(args) => herd::run(args, run).await,
            Self::Warm(args) => warm::run(args, run).await,
            Self::Sockets(args) => sockets::run(args, run).await,
            Self::Churn(args) => churn::run(args, run).await,
        }
    }

    /// Whom it measures besides.
    pub fn peers(&self) -> &crate::run::Peers {
        match self {
            Self::Cold(args) => &args.peers,
            Self::Herd(args) => &args.peers,
            Self::Warm(args) => &args.peers,
            Self::Sockets(args) => &args.peers,
            Self::Churn(args) => &args.peers,
        }
    }

    /// The same, to be changed.
    pub fn peers_mut(&mut self) -> &mut crate::run::Peers {
        match self {
            Self::Cold(args) => &mut args.peers,
            Self::Herd(args) => &mut args.peers,
            Self::Warm(args) => &mut args.peers,
            Self::Sockets(args) => &mut args.peers,
            Self::Churn(args) => &mut args.peers,
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let Cli { what, output } = Cli::parse();
    more_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(output.threads.max(1))
        .enable_all()
        .build();
    let runtime = runtime.expect("threads can be started");
    let measured = runtime.block_on(async {
        match what {
            What::Work(work) => measure(&work, &output).await,
            What::Run { file, bin } => scenario::run(&file, bin.as_deref(), &output).await,
            What::Metrics => {
                print!("{}", metrics::table());
                Ok(ExitCode::SUCCESS)
            }
        }
    });
    // Nothing that is still under way is worth waiting for.
    runtime.shutdown_background();
    measured.unwrap_or_else(|error| {
        eprintln!("loadtest: {error:#}");
        let unmeasured = error.chain().any(|cause| cause.is::<Unmeasured>());
        ExitCode::from(if unmeasured { 4 } else { 2 })
    })
}

/// Nothing could be measured, though all that was asked for is in order.
#[derive(Debug)]
pub struct Unmeasured(pub String);

impl std::fmt::Display for Unmeasured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unmeasured {}

/// A socket is a descriptor, and the usual limit is 1024.
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// A run that Ctrl-C and the clock can stop.
pub fn begin(output: &Output, time_max: Option<Duration>) -> (Run, tokio::task::JoinSet<()>) {
    let run = Run::new(output.seed, output.quiet);
    let time_max = output.max_time.map(|span| span.0).or(time_max).unwrap_or(TIME_MAX);
    let stop = run.stop.clone();
    let mut guards = tokio::task::JoinSet::new();
    guards.spawn(async move {
        tokio::select! {
            () = signalled() => eprintln!("stopping: once more ends it at once"),
            () = tokio::time::sleep(time_max) => eprintln!("stopping: --max-time is over"),
        }
        stop.cancel();
        signalled().await;
        std::process::exit(130);
    });
    (run, guards)
}

/// Ctrl-C or SIGTERM.
async fn signalled() {
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
}

async fn measure(work: &Work, output: &Output) -> anyhow::Result<ExitCode> {
    let (run, _guards) = begin(output, None);
    let report = carry_out(work, work.name(), &run).await?;
    finish(report, output, &output.fail_if, output.allow_errors.unwrap_or_default())
}

/// Does the work and sums it up.
pub async fn carry_out(work: &Work, name: &str, run: &Run) -> anyhow::Result<Report> {
    let mut conditions = Conditions::now();
    for (name, pids) in work.peers().pids()? {
        conditions.server(&name, &pids);
    }
    let began = Instant::now();
    let found = work.run(run).await?;
    run.bar.finish_and_clear();
    let settings = serde_json::to_value(work).context("settings")?;
    let mut report = Report::new(name, work.name(), found, settings, conditions, began.elapsed());
    report.interrupted = !run.goes_on();
    Ok(report)
}

/// Prints and writes the report; what it comes to.
pub fn finish(
    mut report: Report,
    output: &Output,
    fail_if: &[Threshold],
    allow_errors: u64,
) -> anyhow::Result<ExitCode> {
    report.check(fail_if);
    if !output.quiet {
        print!("{}", table::text(&report));
    }
    if let Some(file) = &output.json {
        write(file, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if let Some(file) = &output.html {
        let page = html::page(&report).map_err(|error| anyhow::anyhow!("{error}"))?;
        write(file, &page)?;
    }
    if let Some(folder) = &output.svg {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let pictures =
            [("latency", plot::latency(&report)), ("waterfall", plot::waterfall(&report))];
        for (name, picture) in pictures {
            let picture = picture.map_err(|error| anyhow::anyhow!("{error}"))?;
            if let Some(svg) = picture {
                write(&folder.join(format!("{name}.svg")), &svg)?;
            }
        }
    }
    Ok(ExitCode::from(code(&report, allow_errors)))
}

/// The exit code of a report.
pub fn code(report: &Report, allow_errors: u64) -> u8 {
    let any = |outcome| report.checks.iter().any(|check| check.outcome == outcome);
    let answers: u64 = report.servers.iter().map(|server| server.answers).sum();
    match () {
        () if report.interrupted => 130,
        () if any(Outcome::Failed) => 1,
        () if allow_errors < report.errors() => 3,
        () if answers == 0 || any(Outcome::NotMeasured) => 4,
        () => 0,
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
