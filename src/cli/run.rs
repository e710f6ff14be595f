//! `dormouse run`: the edge itself, in the foreground.

use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure, Outcome};
use crate::{app, config::Config};

/// Runs the edge, in the foreground, until SIGTERM or Ctrl-C.
///
/// Signals: SIGHUP reads the route files again; SIGTERM and Ctrl-C let open requests end for
/// [shutdown] drain; SIGQUIT hands the listening sockets to a process started with --upgrade.
/// Instances stay up across a restart, and the next edge adopts them.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse run
  dormouse run --config /etc/dormouse/dormouse.toml

A new version without a refused connection:
  dormouse run --upgrade &       waits for the sockets
  kill -QUIT PID-OF-THE-OLD      hands them over, and ends when its requests have")]
pub(super) struct Run {
    /// The settings [default: ./dormouse.toml, or the defaults where there is no such file].
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Take the listening sockets over from the edge that runs, when it gets SIGQUIT.
    #[arg(long)]
    upgrade: bool,
}

impl Run {
    pub(super) fn run(self) -> Outcome {
        let config = Config::load(self.config.as_deref());
        let config = config.map_err(|errors| Failure::of_files(&errors))?;
        let ended = app::run(config, self.upgrade);
        ended.map_err(|error| Failure::new(Exit::Failed, format!("{error:#}")))
    }
}
