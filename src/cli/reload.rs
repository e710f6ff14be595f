//! `dormouse reload`: puts the route files and the certificates in force now, and says what has
//! changed.

use clap::Args;
use serde::Deserialize;

use super::{
    check::counted,
    client::{FileError, Target},
    exit::{Failure, Outcome, print, print_json},
    sessions::read,
};
use crate::route::RouteError;

/// Has a running edge read its route files and its certificates again.
///
/// Says which keys of dormouse.toml were edited and wait for a restart.
///
/// It does so by itself when a file changes; this waits for the result. Where one route file has an
/// error, no route changes at all; where a certificate is wrong, the one before stays. The errors
/// are printed and the exit code is 2.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse reload
  dormouse reload --json | jq .added")]
pub(super) struct Reload {
    #[command(flatten)]
    target: Target,
}

#[derive(Deserialize)]
struct Report {
    routes: usize,
    added: Vec<String>,
    changed: Vec<String>,
    removed: Vec<String>,
    certificates: usize,
    certificate_errors: Vec<FileError>,
    waiting: Vec<String>,
}

impl Reload {
    pub(super) async fn run(self) -> Outcome {
        let answer = self.target.client()?.post(&["v1", "reload"], &[]).await?;
        if self.target.json {
            return print_json(&answer.body);
        }
        let report: Report = read(answer.body)?;
        let Report { routes, added, changed, removed, certificates, certificate_errors, waiting } =
            report;
        let changes = [("added", added), ("changed", changed), ("removed", removed)];
        let mut text = counted(routes, "route");
        if waiting.is_empty() && changes.iter().all(|(_, names)| names.is_empty()) {
            text += ", nothing has changed";
        }
        for (word, names) in changes.iter().filter(|(_, names)| !names.is_empty()) {
            text += &format!("\n{word}: {}", names.join(", "));
        }
        if !waiting.is_empty() {
            text += &format!("\nwaits for a restart: {}", waiting.join(", "));
        }
        if 0 < certificates {
            text += &format!("\n{}", counted(certificates, "certificate"));
        }
        print(&text)?;
        if certificate_errors.is_empty() {
            return Ok(());
        }
        let errors: Vec<_> = certificate_errors.into_iter().map(RouteError::from).collect();
        Err(Failure::of_files(&errors))
    }
}
