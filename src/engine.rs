//! What can start, list and put to sleep instances: one trait, one error, one table of backends.
//!
//! An engine knows sessions by their identity and their [`Spec`]; it knows nothing of routes,
//! requests or leases. The engine is the truth: what it lists is what exists.

mod alone;
pub mod command;
mod deaths;
pub mod docker;
pub mod firecracker;
pub mod fly;
mod kept;
pub mod kubernetes;
mod listeners;
mod poll;
mod port;
pub mod process;
pub mod qemu;
mod vm;

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::session::{Address, Depth, Generation, SessionId, Spec};

/// A backend. Calls for one session never overlap; calls for different sessions do.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// The kind, as `[engines.NAME] kind` says it.
    fn kind(&self) -> &'static str;

    /// The depths it can put an instance to, lightest first.
    fn depths(&self) -> &'static [Depth];

    /// Makes an instance of `session` run and returns where it listens; not whether it answers.
    ///
    /// Idempotent: an instance that runs already, whoever started it, is returned as it is. From a
    /// lighter sleep it resumes, from a deeper one it boots or is created.
    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error>;

    /// Puts the instance to sleep; ends a hang by force. Nothing there is success.
    ///
    /// After `Ok`, no instance of this session with this `life`, or an older one, runs or will
    /// ever run. A newer life than `life` is left alone. Without a `life` (a start that never
    /// returned one), whatever half-started is put to sleep.
    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error>;

    /// Every instance that is ours, in whatever state.
    async fn list(&self) -> Result<Vec<Instance>, Error>;

    /// The state of one session's instance; `None` when there is none.
    async fn inspect(&self, session: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error>;

    /// What an operator should know of an instance whose wake has failed: that it listens elsewhere
    /// than at `address`, or why it ended. Asked once a failed wake, before the instance is put to
    /// sleep; `None` where the engine sees nothing.
    async fn hint(&self, session: &SessionId, spec: &Spec, address: &Address) -> Option<String> {
        let _ = (session, spec, address);
        None
    }

    /// What happened outside, without end: deaths, and what others start and stop.
    fn events(&self) -> BoxStream<'static, EngineEvent>;
}

/// The engine's own mark of one life of an instance (process: pid and start time; Docker:
/// container id and `StartedAt`). Equal marks are the same life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Life(Arc<str>);

impl Life {
    /// A mark that only the engine that made it can read.
    pub fn new(mark: impl Into<Arc<str>>) -> Self {
        Self(mark.into())
    }

    /// The mark.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A started instance. Equal are the same life at the same place, whether it ran already or not.
#[derive(Clone, Debug)]
pub struct Started {
    /// Where it listens, or will.
    pub address: Address,
    /// Which life it is.
    pub life: Life,
    /// Whether it ran before the call, so far as the engine can tell.
    pub ran_already: bool,
}

impl PartialEq for Started {
    fn eq(&self, other: &Self) -> bool {
        (&self.address, &self.life) == (&other.address, &other.life)
    }
}

impl Eq for Started {}

/// An instance as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Whose it is.
    pub session: SessionId,
    /// The highest generation that its marks name; 0 when none does.
    pub generation: Generation,
    /// Which life; an instance that sleeps below `Paused` may have none.
    pub life: Option<Life>,
    /// What it does.
    pub state: InstanceState,
}

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It runs.
    Running(Health),
    /// It sleeps, by our doing or another's.
    Asleep(Depth),
}

/// What the engine says of a running instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The engine does not check it: running is all that it knows.
    Unchecked,
    /// Not healthy yet.
    Starting,
    /// Healthy.
    Healthy,
    /// Not healthy.
    Unhealthy,
}

impl Health {
    /// In an operator's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "it runs",
            Self::Starting => "its health check has not passed yet",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What happened outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// This session's instance started, stopped, paused, died or became healthy: inspect it.
    Changed(SessionId),
    /// Events may have been missed (the connection to the engine was lost): list everything.
    Resync,
    /// The engine refuses to tell what happens, and why: list everything, and again with the next of
    /// these. Events come again after a `Resync`.
    Deaf(String),
}

/// Why an engine did not do it. The text is the operator's; no client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The engine itself cannot be reached.
    #[error("cannot reach the engine: {0}")]
    Unreachable(String),
    /// Something that the route names does not exist: an image, a container, a program.
    #[error("{0}")]
    Missing(String),
    /// Something else is in the way: a name in use, a removal under way.
    #[error("{0}")]
    Conflict(String),
    /// The engine refuses what the route asks for.
    #[error("{0}")]
    Invalid(String),
    /// The engine did not answer in time.
    #[error("{call} did not end within {after:?}")]
    Timeout {
        /// The call.
        call: &'static str,
        /// The limit.
        after: Duration,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Whether the same call may succeed later without anybody mending anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Conflict(_) | Self::Timeout { .. } => true,
            Self::Missing(_) | Self::Invalid(_) | Self::Failed(_) => false,
        }
    }
}

/// `text` with where an instance is to listen filled in.
fn filled(text: &str, host: IpAddr, port: u16) -> String {
    text.replace("{address}", &SocketAddr::new(host, port).to_string())
        .replace("{host}", &host.to_string())
        .replace("{port}", &port.to_string())
}

/// `text` with every value longer than a flag blotted out: a backend may repeat what it was given,
/// as it is, as JSON writes it, or as Go's JSON does.
fn without(text: String, secrets: impl IntoIterator<Item: AsRef<str>>) -> String {
    let mut forms = BTreeSet::new();
    for secret in secrets {
        let secret = secret.as_ref();
        if secret.len() > 3 {
            let quoted = serde_json::Value::from(secret).to_string();
            let quoted = quoted[1..quoted.len() - 1].to_owned();
            let of_go = [("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")]
                .iter()
                .fold(quoted.clone(), |text, (plain, escaped)| text.replace(plain, escaped));
            forms.extend([secret.to_owned(), quoted, of_go]);
        }
    }
    let mut forms: Vec<_> = forms.into_iter().collect();
    // One may be the beginning of another.
    forms.sort_by_key(|form| Reverse(form.len()));
    forms.iter().fold(text, |text, form| text.replace(form, "***"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_blotted_out_however_a_backend_writes_it() {
        let secret = "a<b>&\n\"c\"";
        for written in [secret, r#"a<b>&\n\"c\""#, r#"a\u003cb\u003e\u0026\n\"c\""#] {
            assert_eq!(without(format!("x{written}y"), [secret]), "x***y");
        }
        assert_eq!(without("abcd-abcdef".to_owned(), ["abcd", "abcdef"]), "***-***");
        assert_eq!(without("yes".to_owned(), ["yes"]), "yes");
    }
}
