//! The binary, and what is left when it has ended.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;
use tokio::process::Command;

use crate::admin_bed::DEADLINE;

pub(crate) const DONE: i32 = 0;
pub(crate) const FAILED: i32 = 1;
pub(crate) const USAGE: i32 = 2;
pub(crate) const UNREACHABLE: i32 = 3;
pub(crate) const UNKNOWN: i32 = 4;
pub(crate) const REFUSED: i32 = 5;

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ended = Self {
            code: output.status.code().expect("no signal ended it"),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        assert!(!ended.err.contains("panicked"), "{ended:?}");
        ended
    }

    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// What stdout has, which is JSON and nothing else.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert!(self.out.contains(text), "no `{text}` in {self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn complains(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "no `{text}` in {self:?}");
        self
    }
}

pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
    command.args(args).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["DORMOUSE_ADMIN", "DORMOUSE_ADMIN_TOKEN", "DOCKER_HOST"] {
        command.env_remove(name);
    }
    // A proxy of the environment must not come between us and the edge.
    command.env("http_proxy", "http://127.0.0.1:1").env("ALL_PROXY", "http://127.0.0.1:1");
    command
}

pub(crate) async fn end(mut command: Command) -> Ended {
    Ended::of(tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap())
}

/// Runs it in `folder`.
pub(crate) async fn dormouse(folder: &Path, args: &[&str]) -> Ended {
    end(command(folder, args)).await
}
