//! `dormouse reload`: puts the route files in force now, and says what has changed.

use clap::Args;
use serde::Deserialize;

use super::{
    check::counted,
    client::Target,
    exit::{Outcome, print, print_json},
    sessions::read,
};

/// Has a running edge read its route files again.
///
/// It does so by itself when a file changes; this waits for the result. Where one file has an
/// error, nothing changes at all, the errors are printed and the exit code is 2.
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
}

impl Reload {
    pub(super) async fn run(self) -> Outcome {
        let answer = self.target.client()?.post(&["v1", "reload"], &[]).await?;
        if self.target.json {
            return print_json(&answer.body);
        }
        let Report { routes, added, changed, removed } = read(answer.body)?;
        let changes = [("added", added), ("changed", changed), ("removed", removed)];
        let mut text = counted(routes, "route");
        if changes.iter().all(|(_, names)| names.is_empty()) {
            text += ", nothing has changed";
        }
        for (word, names) in changes.iter().filter(|(_, names)| !names.is_empty()) {
            text += &format!("\n{word}: {}", names.join(", "));
        }
        print(&text)
    }
}
