//! TXT records for dns-01: by the operator's command, or by a signed DNS update.

mod hook;
mod update;

use std::time::Duration;

use crate::config;
use update::Updates;

/// Sets and clears TXT records.
#[derive(Debug)]
pub(super) struct Dns {
    by: By,
    timeout: Duration,
    wait: Duration,
}

#[derive(Debug)]
enum By {
    Hook(Vec<String>),
    Update(Updates),
}

/// What is to be done with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Set,
    Clear,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Clear => "clear",
        }
    }
}

/// Why a record was not set or cleared.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The command could not be run.
    #[error("dns_hook cannot be run: {0}")]
    NoHook(std::io::Error),
    /// The command says that it failed.
    #[error("dns_hook has failed: {0}")]
    HookFailed(std::process::ExitStatus),
    /// It took longer than `acme.dns_timeout`.
    #[error("not done within acme.dns_timeout")]
    TimedOut,
    /// The name is not in the zone.
    #[error("{0} is not in the zone of acme.dns_update")]
    OtherZone(String),
    /// The DNS server was not reached, or broke off.
    #[error("the DNS server: {0}")]
    Wire(#[from] std::io::Error),
    /// What came back is no DNS, or not signed by the key.
    #[error("the DNS server's answer: {0}")]
    Answer(hickory_proto::ProtoError),
    /// The server said no.
    #[error("the DNS server refuses the update: {0}")]
    Refused(hickory_proto::op::ResponseCode),
}

/// Why there is nobody to set records.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file is not there.
    #[error("acme.dns_update.key_file cannot be read: {0}")]
    NoKey(std::io::Error),
    /// It holds something else.
    #[error("acme.dns_update.key_file is not a secret in base64")]
    BadKey,
    /// A name that DNS does not know as one.
    #[error("acme.dns_update: {0}")]
    BadName(hickory_proto::ProtoError),
}

/// A record that was set.
#[derive(Debug)]
pub(super) struct Record {
    name: String,
    value: String,
}

impl Dns {
    pub(super) fn new(config: &config::Dns) -> Result<Self, Unusable> {
        let by = match &config.by {
            config::DnsBy::Hook(command) => By::Hook(command.clone()),
            config::DnsBy::Update(update) => By::Update(Updates::new(update)?),
        };
        Ok(Self { by, timeout: config.timeout, wait: config.wait })
    }

    /// Sets the record for `host` (without `*.`), and waits until it is seen.
    pub(super) async fn set(&self, host: &str, value: String) -> Result<Record, Error> {
        let record = Record { name: format!("_acme-challenge.{host}"), value };
        self.change(Action::Set, &record).await?;
        tokio::time::sleep(self.wait).await;
        Ok(record)
    }

    /// A record that stays does no harm: it is said and no more.
    pub(super) async fn clear(&self, record: Record) {
        if let Err(error) = self.change(Action::Clear, &record).await {
            tracing::warn!(record = record.name, %error, "a TXT record stays behind");
        }
    }

    async fn change(&self, action: Action, record: &Record) -> Result<(), Error> {
        let change = async {
            match &self.by {
                By::Hook(command) => hook::run(command, action, record).await,
                By::Update(updates) => updates.send(action, record).await,
            }
        };
        tokio::time::timeout(self.timeout, change).await.unwrap_or(Err(Error::TimedOut))
    }
}
