//! `[engines.NAME.fly]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::text::DurationText;

/// `[engines.NAME.fly]`, for `kind = "fly"`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlyTable {
    /// The app whose machines are the instances.
    pub(crate) app: String,
    /// A file that holds the API token. Default: the environment's `FLY_API_TOKEN`.
    pub(crate) token_file: Option<PathBuf>,
    /// Where the Machines API is. Default: `https://api.machines.dev/v1`; inside 6PN
    /// `http://_api.internal:4280/v1` is nearer.
    pub(crate) endpoint: Option<String>,
    /// Where machines are created. Default: where Fly puts them.
    pub(crate) region: Option<String>,
    /// The app's public name, for an edge that is not in its 6PN: `"https://APP.fly.dev"`. Machines
    /// then get a service, and **whoever knows the name reaches them past the edge**. Default: they
    /// are dialled by their 6PN address, and have no service.
    pub(crate) public: Option<String>,
    /// How often machines are listed, to notice what died or was started by others; `"1s"` to
    /// `"1h"`. Default: `"10s"`.
    pub(crate) poll: Option<DurationText>,
}

/// `fly.public`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlyPublic {
    /// Whether Fly's proxy speaks TLS there.
    pub tls: bool,
    /// The name.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// `[engines.NAME]` with `kind = "fly"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlyConfig {
    /// Where the API is.
    pub endpoint: String,
    /// The app whose machines are the instances.
    pub app: String,
    /// The token's file; the environment's when not given.
    pub token_file: Option<PathBuf>,
    /// Where machines are created.
    pub region: Option<String>,
    /// By which public name machines are reached; their 6PN address when not given.
    pub public: Option<FlyPublic>,
    /// Whose the machines are.
    pub owner: String,
    /// The most time for one call.
    pub call_timeout: Duration,
    /// How often machines are listed.
    pub poll: Duration,
}
