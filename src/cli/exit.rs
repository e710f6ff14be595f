//! How a command ends: a code for scripts, and a sentence for people. Knows no command.

use std::{
    env, fmt, fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use serde::Serialize;
use serde_json::Value;

use crate::route::{Position, RouteError};

/// The codes. `dormouse --help` says them in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Unknown = 4,
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// For stderr; may have several lines, or none where `data` says all.
    pub(super) text: String,
    /// For stdout, where JSON is wanted.
    pub(super) data: Option<Value>,
    /// The admin API's word for it, where it is a refusal of the API.
    pub(super) reason: Option<String>,
}

/// How a command ended.
pub(super) type Outcome = Result<(), Failure>;

impl Failure {
    pub(super) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self { exit, text: format!("error: {text}"), data: None, reason: None }
    }

    /// Errors in the operator's files, one after the other.
    pub(super) fn of_files(errors: &[RouteError]) -> Self {
        let errors: Vec<_> = errors.iter().map(error_line).collect();
        Self { exit: Exit::Usage, text: errors.join("\n"), data: None, reason: None }
    }

    /// Tells it: data to stdout, sentences to stderr.
    pub(super) fn tell(&self) -> Exit {
        if let Some(data) = &self.data
            && let Err(other) = print_json(data)
        {
            remark(&other.text);
        }
        remark(&self.text);
        self.exit
    }
}

/// `file:line:column: message`, as compilers write it and editors jump to it.
pub(super) fn error_line(error: &RouteError) -> String {
    let mut line = format!("{}:", short(&error.file));
    if let Some(Position { line: row, column }) = error.at {
        line += &format!("{row}:{column}:");
    }
    line += &format!(" {}", plain(&error.message));
    if let Some(hint) = &error.hint {
        line += &format!("\n    hint: {}", plain(hint));
    }
    line
}

/// The path as one would type it here.
pub(super) fn short(path: &Path) -> String {
    let here = env::current_dir().and_then(fs::canonicalize).unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// Without anything that a terminal would obey: the text may come from an engine.
pub(super) fn plain(text: &str) -> String {
    let visible = |char: char| if char.is_control() { ' ' } else { char };
    text.chars().map(visible).collect()
}

/// Data, on stdout. Whoever reads it may stop to read: that is no failure.
pub(super) fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    let text = text.strip_suffix('\n').unwrap_or(text);
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot write to stdout: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Data, as JSON.
pub(super) fn print_json(data: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(data);
    print(&text.map_err(|error| Failure::new(Exit::Failed, error))?)
}

/// A remark, on stderr. There is nobody to tell when stderr is closed.
pub(super) fn remark(text: &str) {
    if !text.is_empty() {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}
