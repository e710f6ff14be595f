//! Who answered. Each instance says which session and which life of it it is, in JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Fault;

/// Where an instance says who it is.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct IdentityArgs {
    /// The answer's JSON key with the session's host.
    #[arg(long, default_value = "session", value_name = "KEY")]
    pub session_key: String,
    /// The answer's JSON key with the life's number, which only grows.
    #[arg(long, default_value = "generation", value_name = "KEY")]
    pub life_key: String,
}

impl IdentityArgs {
    /// The life that answered, if it is one of `host`.
    pub fn life(&self, body: &[u8], host: &str) -> Result<u64, Fault> {
        let said: Value = serde_json::from_slice(body).map_err(|_| Fault::NoIdentity)?;
        let session = said[&self.session_key].as_str().ok_or(Fault::NoIdentity)?;
        let life = said[&self.life_key].as_u64().ok_or(Fault::NoIdentity)?;
        if session == host { Ok(life) } else { Err(Fault::WrongSession) }
    }
}
