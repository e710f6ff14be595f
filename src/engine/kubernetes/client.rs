//! The calls to one Kubernetes API server: where it is, how long it may take, and what its
//! refusals mean.

mod apps;

use std::{
    sync::{Mutex as Lock, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Error as ApiError, Resource,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
    runtime::watcher,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Mutex, time::Instant};

use super::{Config, SETTLE, workload::Kind};
use crate::engine::Error;

/// A watch on which nothing comes for so long is opened anew: a server sends bookmarks about once a
/// minute, and a connection may be dead without having ended.
const SILENCE: Duration = Duration::from_secs(150);
/// How many Pods one page of a list has.
const PAGE: u32 = 500;
/// For how long after an outage a server may refuse everybody: it has not read its Roles.
const AFTER_OUTAGE: Duration = Duration::from_secs(10);
const GRANT: &str = "deploy/kubernetes has the Role that an edge needs";

/// An API server, connected to when it is first asked.
#[derive(Debug)]
pub(super) struct Client {
    kubeconfig: Option<std::path::PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
    call_timeout: Duration,
    connected: Mutex<Option<Connected>>,
    past: Lock<Past>,
}

/// What the server did, by which a refusal is understood.
#[derive(Debug, Default)]
struct Past {
    /// When it was last out of reach.
    away: Option<Instant>,
    /// Of what it has given a list.
    listed: Vec<Kind>,
}

/// A client and the namespace that everything is in.
#[derive(Clone)]
struct Connected {
    client: kube::Client,
    namespace: String,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            kubeconfig: config.kubeconfig.clone(),
            context: config.context.clone(),
            namespace: config.namespace.clone(),
            call_timeout: config.call_timeout,
            connected: Mutex::default(),
            past: Lock::default(),
        }
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    async fn connected(&self) -> Result<Connected, Error> {
        let mut connected = self.connected.lock().await;
        if let Some(connected) = &*connected {
            return Ok(connected.clone());
        }
        let connecting = tokio::time::timeout(self.call_timeout, self.connect()).await;
        let fresh = connecting
            .unwrap_or(Err(Error::Timeout { call: "connect", after: self.call_timeout }))?;
        Ok(connected.insert(fresh).clone())
    }

    async fn connect(&self) -> Result<Connected, Error> {
        // With several providers compiled in, rustls wants one named; the first stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = self.credentials().await?;
        config.read_timeout = Some(SILENCE);
        config.connect_timeout = Some(self.call_timeout);
        // Its own retries double their pause up to a quarter of an hour, and hide what was answered:
        // who calls tries again sooner, and says why.
        config.default_retry = false;
        let namespace = self.namespace.clone().unwrap_or(config.default_namespace.clone());
        let client = kube::Client::try_from(config).map_err(|error| failed(error, "connect"))?;
        Ok(Connected { client, namespace })
    }

    async fn credentials(&self) -> Result<kube::Config, Error> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let invalid = |error: &dyn std::error::Error| Error::Invalid(with_causes(error));
        if let Some(path) = &self.kubeconfig {
            let wrong = |error: &dyn std::error::Error| {
                Error::Invalid(format!("kubeconfig {}: {}", path.display(), with_causes(error)))
            };
            let file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
            let config = kube::Config::from_custom_kubeconfig(file, &options).await;
            return config.map_err(|error| wrong(&error));
        }
        if self.context.is_some() {
            let config = kube::Config::from_kubeconfig(&options).await;
            return config.map_err(|error| invalid(&error));
        }
        kube::Config::infer().await.map_err(|error| invalid(&error))
    }

    async fn api<K>(&self) -> Result<Api<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        let Connected { client, namespace } = self.connected().await?;
        Ok(Api::namespaced(client, &namespace))
    }

    /// One call within the limit, connecting included.
    async fn call<K, T, F>(
        &self,
        call: &'static str,
        ask: impl FnOnce(Api<K>) -> F,
    ) -> Result<T, Refused>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        F: Future<Output = Result<T, ApiError>>,
    {
        let api = self.api().await.map_err(Refused::Engine)?;
        self.within(call, ask(api)).await
    }

    /// One answer within the limit.
    async fn within<T>(
        &self,
        call: &'static str,
        asked: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, Refused> {
        match tokio::time::timeout(self.call_timeout, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refused(error, call).await),
            Err(_) => {
                self.past().away = Some(Instant::now());
                Err(Refused::Engine(Error::Timeout { call, after: self.call_timeout }))
            }
        }
    }

    /// What this error means, as things are; the next call is told of it.
    async fn refused(&self, error: ApiError, call: &'static str) -> Refused {
        let refused = match error {
            ApiError::Api(status) if is_of_roles(&status) && self.was_away() => {
                Refused::ForNow(status)
            }
            ApiError::Api(status) => Refused::Answer(status),
            error => Refused::Engine(failed(error, call)),
        };
        if refused.code() == Some(401) {
            self.forget().await;
        }
        if refused.is_outage() {
            self.past().away = Some(Instant::now());
        }
        refused
    }

    fn was_away(&self) -> bool {
        self.past().away.is_some_and(|away| away.elapsed() < AFTER_OUTAGE)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The credentials may be others by now: they are read anew for the next call.
    pub(super) async fn forget(&self) {
        *self.connected.lock().await = None;
    }

    /// `None` when there is none.
    pub(super) async fn pod(&self, name: &str) -> Result<Option<Pod>, Error> {
        let ask = |pods: Api<Pod>| async move { pods.get_opt(name).await };
        Ok(self.call("get a pod", ask).await?)
    }

    /// All Pods that a label selector such as `KEY=VALUE` selects.
    pub(super) async fn pods(&self, selector: &str) -> Result<Vec<Pod>, Error> {
        let pods = self.all::<Pod>().await?;
        Ok(self.pages("list pods", &pods, ListParams::default().labels(selector)).await?)
    }

    async fn pages<K>(
        &self,
        call: &'static str,
        api: &Api<K>,
        params: ListParams,
    ) -> Result<Vec<K>, Refused>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let (mut all, mut page) = (Vec::new(), params.limit(PAGE));
        loop {
            match self.within(call, api.list(&page)).await {
                Ok(mut list) => {
                    all.append(&mut list.items);
                    match list.metadata.continue_.filter(|next| !next.is_empty()) {
                        Some(next) => page.continue_token = Some(next),
                        None => return Ok(all),
                    }
                }
                // The list's place in history is gone: once more, from its beginning.
                Err(refused) if refused.code() == Some(410) && page.continue_token.is_some() => {
                    all.clear();
                    page.continue_token = None;
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    /// Makes it, or finds that there is one of this name.
    pub(super) async fn create<K>(&self, call: &'static str, body: K) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let ask =
            |api: Api<K>| async move { api.create(&PostParams::default(), &body).await.map(drop) };
        match self.call(call, ask).await {
            Err(refused) if refused.code() == Some(409) => Ok(()),
            answer => Ok(answer?),
        }
    }

    pub(super) async fn has_claim(&self, name: &str) -> Result<bool, Error> {
        let ask = |claims: Api<PersistentVolumeClaim>| async move { claims.get_opt(name).await };
        Ok(self.call("get a claim", ask).await?.is_some())
    }

    /// Asks for the end of this one life; one that is over, or going, is no error.
    pub(super) async fn delete(&self, name: &str, uid: &str, grace: Duration) -> Result<(), Error> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let params = DeleteParams {
            grace_period_seconds: Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let ask = |pods: Api<Pod>| async move { pods.delete(name, &params).await.map(drop) };
        match self.call("delete a pod", ask).await {
            Err(refused) if matches!(refused.code(), Some(404 | 409)) => Ok(()),
            answer => Ok(answer?),
        }
    }

    /// What a watch tells next. One that failed goes on by itself, unless nothing will mend it;
    /// what it is in trouble with meanwhile is in `trouble`. What it has `looked` at once it may
    /// look at again.
    pub(super) async fn next<T>(
        &self,
        mut watch: impl Stream<Item = watcher::Result<T>> + Unpin,
        looked: bool,
        trouble: &mut Option<Error>,
    ) -> Result<T, Error> {
        loop {
            match watch.next().await {
                Some(Ok(told)) => {
                    *trouble = None;
                    return Ok(told);
                }
                Some(Err(error)) => {
                    let refused = self.unwatched(error).await;
                    let is_unknown = refused.code() == Some(401);
                    let error = Error::from(refused);
                    if is_unknown && looked {
                        // It keeps the credentials that it began with; the next call has others.
                        return Err(Error::Unreachable(error.to_string()));
                    }
                    if !error.is_retryable() && !looked {
                        return Err(error);
                    }
                    *trouble = Some(error);
                    tokio::time::sleep(SETTLE).await;
                }
                None => return Err(Error::Failed("a watch has ended".to_owned())),
            }
        }
    }

    /// What the end of a watch means.
    pub(super) async fn unwatched(&self, error: watcher::Error) -> Refused {
        use watcher::Error::{
            InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
        };
        let error = match error {
            InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => error,
            WatchError(status) => ApiError::Api(status),
            NoResourceVersion => {
                return Refused::Engine(Error::Failed("a list has no version".to_owned()));
            }
        };
        self.refused(error, "watch").await
    }

    pub(super) async fn all<K>(&self) -> Result<Api<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        self.api().await
    }
}

/// Why the API server did not do it.
#[derive(Debug)]
pub(super) enum Refused {
    /// It answered so.
    Answer(Box<Status>),
    /// It answered so, and may answer otherwise when it has read its Roles.
    ForNow(Box<Status>),
    /// It did not answer.
    Engine(Error),
}

impl Refused {
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Answer(status) | Self::ForNow(status) => Some(status.code),
            Self::Engine(_) => None,
        }
    }

    fn is_outage(&self) -> bool {
        match self {
            Self::Answer(status) => matches!(status.code, 502..=504),
            Self::ForNow(_) => false,
            Self::Engine(error) => matches!(error, Error::Unreachable(_)),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Answer(status) => answered(&status),
            Refused::ForNow(status) => Error::Unreachable(format!(
                "the API server has come back a moment ago and refuses: {}",
                said(&status)
            )),
            Refused::Engine(error) => error,
        }
    }
}

/// What an answer of the API server means.
fn answered(status: &Status) -> Error {
    let text = said(status);
    match status.code {
        401 => Error::Invalid(format!(
            "the API server does not know us: {text}; look at the kubeconfig's user or the \
             service account"
        )),
        // A quota can have room again.
        403 if text.contains("exceeded quota") => Error::Conflict(text),
        403 if is_of_roles(status) => Error::Invalid(format!("{text}; {GRANT}")),
        404 => Error::Missing(text),
        409 => Error::Conflict(text),
        // An admission's 403 is about what was asked for.
        400 | 403 | 422 => Error::Invalid(text),
        code @ (408 | 429 | 500..) => {
            Error::Unreachable(format!("the API server answered {code}: {text}"))
        }
        code => Error::Failed(format!("the API server answered {code}: {text}")),
    }
}

fn said(status: &Status) -> String {
    status.message.trim().to_owned()
}

/// Whether it is a refusal for want of a right, in the words of the server's authorizer
/// (`responsewriters/errors.go`): `… is forbidden: User "edge" cannot list resource "pods" …`.
fn is_of_roles(status: &Status) -> bool {
    let is_so = |said: &str| said.contains(": User \"") && said.contains(" cannot ");
    status.code == 403 && is_so(&status.message)
}

/// What a call that was not answered means.
fn failed(error: ApiError, call: &'static str) -> Error {
    match error {
        ApiError::InferConfig(_) | ApiError::Auth(_) | ApiError::RustlsTls(_) => {
            Error::Invalid(with_causes(&error))
        }
        ApiError::HyperError(_) | ApiError::Service(_) | ApiError::ReadEvents(_) => {
            Error::Unreachable(with_causes(&error))
        }
        error => Error::Failed(format!("{call}: {}", with_causes(&error))),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
