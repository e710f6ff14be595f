//! `[engines.NAME.command]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    route::{file::DepthWord, text::DurationText},
    session::Depth,
};

/// `[engines.NAME.command]`, for `kind = "command"`: `docs/engines/command.md` says what the
/// program is told and what it answers.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandTable {
    /// Program and arguments; `start`, `sleep` or `list` comes behind them. No shell is involved. A
    /// relative path with a `/` begins in the folder of `dormouse.toml`, where the program runs.
    pub(crate) run: Vec<String>,
    /// The depths that it can put an instance to; `"stopped"` must be among them. Default:
    /// `["stopped"]`.
    pub(crate) depths: Option<Vec<DepthWord>>,
    /// Names of environment variables of the edge that the program gets, besides `PATH`, `HOME`,
    /// `LANG`, `TZ` and `USER`. Default: none.
    pub(crate) environment: Option<Vec<String>>,
    /// The most calls at once. Default: 8.
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) at_once: Option<u16>,
    /// How often `list` is asked, to notice what died or was started by others; `"1s"` to `"1h"`.
    /// Default: `"10s"`.
    pub(crate) poll: Option<DurationText>,
}

/// `[engines.NAME]` with `kind = "command"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandConfig {
    /// Program and arguments.
    pub run: Vec<String>,
    /// The depths that it knows, lightest first.
    pub depths: &'static [Depth],
    /// Names of environment variables that it gets besides.
    pub environment: Vec<String>,
    /// The most time for one call.
    pub call_timeout: Duration,
    /// The most calls at once.
    pub at_once: usize,
    /// How often `list` is asked.
    pub poll: Duration,
    /// Whose the instances are.
    pub owner: String,
}
