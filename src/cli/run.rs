//! `dormouse run`: the edge itself, in the foreground.

use std::{io, path::PathBuf};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure, Outcome};
use crate::{
    app,
    config::{Config, Swap},
};

/// Pingora reports every client that breaks off as an error, every kept connection that was closed
/// when it was wanted; what became of a request is logged by our own edge.
const LOG: &str = "info,pingora_proxy=off,pingora_core=error,pingora_core::apps=off,\
                   pingora_core::connectors=off,pingora_pool=error,qapi=error";

/// Runs the edge, in the foreground, until SIGTERM or Ctrl-C.
///
/// Signals: SIGHUP reads the route files again; SIGTERM and Ctrl-C let open requests end for
/// [shutdown] drain; SIGQUIT hands the listening sockets to a process started with --upgrade, and so
/// do SIGTERM and Ctrl-C where one waits.
/// Instances stay up across a restart, and the next edge adopts them.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse run
  dormouse run --config /etc/dormouse/dormouse.toml
  dormouse run --engine prod=docker       the routes of production, on a laptop

A new version without a refused connection:
  dormouse run --upgrade &       says that it waits for SIGQUIT
  kill -QUIT PID-OF-THE-OLD      ends when the new one serves and its own requests have ended

RUST_LOG says how much is logged, for example RUST_LOG=dormouse=debug.")]
pub(super) struct Run {
    /// The settings [default: ./dormouse.toml, or the defaults where there is no such file].
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Take the listening sockets over from the edge that runs, when it gets SIGQUIT or dies; begin
    /// at once where none runs.
    #[arg(long)]
    upgrade: bool,
    /// Do not start where a route file is wrong; without it, the good ones are served. --upgrade is strict.
    #[arg(long)]
    strict: bool,
    /// What the name of an engine means for this run: a kind, with its defaults. May be repeated.
    #[arg(long, value_name = "NAME=KIND")]
    engine: Vec<Swap>,
    /// How the log on stderr looks.
    #[arg(long, value_enum, default_value_t)]
    log: Log,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Log {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

impl Run {
    pub(super) fn run(self) -> Outcome {
        let config = Config::load_with(self.config.as_deref(), &self.engine);
        let config = config.map_err(|errors| Failure::of_files(&errors))?;
        self.log.begin();
        app::run(config, self.upgrade, self.strict).map_err(|error| match error {
            app::Error::Routes(errors) => Failure::of_files(&errors),
            app::Error::Other(error) => Failure::new(Exit::Failed, in_words(&error)),
        })
    }
}

/// The error with its causes, each once: many errors say their cause themselves.
fn in_words(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

impl Log {
    fn begin(self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
        // Below that, the Docker client prints containers' environments: there are secrets in them.
        let filter = filter.add_directive("bollard=info".parse().expect("a valid directive"));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        match self {
            Self::Text => log.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
            Self::Json => log.json().init(),
        }
    }
}
