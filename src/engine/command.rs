//! The command engine: instances are started, listed and put to sleep by the operator's own
//! program, JSON in and JSON out. `docs/engines/command.md` is its protocol.
//!
//! The program is the truth, asked anew every time: memory holds only what was last listed, to
//! notice what changed. Verbs of one session never overlap, and none is cut short but by the limit.

mod protocol;
mod run;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    protocol::{Call, Listed, Verb},
    run::Program,
};
use super::{
    Engine, EngineEvent, Error, Instance, Life, Started,
    alone::Alone,
    poll::{self, Outside},
};
use crate::session::{Depth, Generation, SessionId, Spec};

/// The operator's program and its bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Program and arguments; the verb comes behind them. A path with `/` begins in `directory`.
    pub run: Vec<String>,
    /// Where it runs, and where a relative path begins.
    pub directory: PathBuf,
    /// The depths that it can put an instance to, lightest first; [`Depth::Stopped`] among them.
    pub depths: &'static [Depth],
    /// Names of the edge's environment variables that it gets, besides the few that all get.
    pub environment: Vec<String>,
    /// The most time for one call; then its process group is killed.
    pub call_timeout: Duration,
    /// The most calls at once.
    pub at_once: usize,
    /// How often it is asked what exists.
    pub poll: Duration,
    /// Whose the instances are: told to the program, for where several edges share a backend.
    pub owner: String,
}

/// Instances by the operator's own program.
pub struct Command {
    shared: Arc<Shared>,
    alone: Alone,
    _poll_ends_with_us: DropGuard,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("run", &self.shared.config.run.first()).finish()
    }
}

/// What calls and the poll share.
struct Shared {
    config: Config,
    program: Program,
    permits: Semaphore,
    outside: Arc<Outside>,
    closing: CancellationToken,
}

impl Command {
    /// Checks nothing but that there is a program to run: it is looked for when it is first needed.
    pub fn new(config: Config) -> Result<Self, Error> {
        let program = Program::new(&config)?;
        let closing = CancellationToken::new();
        let shared = Shared {
            program,
            permits: Semaphore::new(config.at_once),
            outside: Arc::default(),
            closing: closing.clone(),
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
            alone: Alone::default(),
            _poll_ends_with_us: closing.drop_guard(),
        })
    }
}

impl Shared {
    /// What the program printed.
    async fn call(&self, call: &Call<'_>) -> Result<Vec<u8>, Error> {
        let limit = self.config.call_timeout;
        let permit = tokio::time::timeout(limit, self.permits.acquire()).await;
        let _permit = permit.map_err(|_| Error::Timeout { call: "a free place", after: limit })?;
        self.program.run(call, limit).await
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let call = Call::new(Verb::Start, &self.config.owner).about(session, spec);
        let printed = self.call(&call.with_generation(generation)).await?;
        let started = protocol::started(&printed).await?;
        self.outside.started(session, &started.life);
        Ok(started)
    }

    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        if !self.config.depths.contains(&to) {
            return Err(Error::Invalid(format!("this engine has no depth `{to}`")));
        }
        // The fence, so that no program needs one of its own.
        if let Some(life) = life {
            let now = self.inspect(session, spec).await?;
            if now.is_none_or(|now| now.life.is_some_and(|now| now != *life)) {
                return Ok(());
            }
        }
        let call = Call::new(Verb::Sleep, &self.config.owner).about(session, spec);
        self.call(&call.with_life(life, to)).await.map(drop)
    }

    async fn inspect(&self, session: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error> {
        let call = Call::new(Verb::List, &self.config.owner).about(session, spec);
        let Listed(all) = protocol::listed(&self.call(&call).await?)?;
        Ok(all.into_iter().find(|instance| instance.session == *session))
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        let printed = self.call(&Call::new(Verb::List, &self.config.owner)).await?;
        Ok(protocol::listed(&printed)?.0)
    }
}

#[async_trait]
impl Engine for Command {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn depths(&self) -> &'static [Depth] {
        self.shared.config.depths
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let (shared, spec, host) = (self.shared.clone(), spec.clone(), session.clone());
        self.alone.run(session, async move { shared.start(&host, &spec, generation).await }).await
    }

    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let (shared, spec, host) = (self.shared.clone(), spec.clone(), session.clone());
        let life = life.cloned();
        self.alone
            .run(session, async move { shared.sleep(&host, &spec, life.as_ref(), to).await })
            .await
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.shared.list().await
    }

    async fn inspect(&self, session: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error> {
        self.shared.inspect(session, spec).await
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        let Shared { outside, closing, config, .. } = &*self.shared;
        let shared = self.shared.clone();
        poll::stream(outside, closing, config.poll, move || {
            let shared = shared.clone();
            Box::pin(async move { shared.list().await })
        })
    }
}
