//! The JSON that goes in and comes out. Knows no process.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    engine::{Error, Health, Instance, InstanceState, Life, Started},
    session::{Address, Depth, Generation, SessionId, Spec},
};

/// What the program is asked to do: its last argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verb {
    Start,
    Sleep,
    List,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Sleep => "sleep",
            Self::List => "list",
        }
    }
}

/// What stands on the program's standard input.
#[derive(Debug, Serialize)]
pub(super) struct Call<'a> {
    pub(super) verb: Verb,
    owner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    life: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<Template<'a>>,
}

/// `[instance]` of the route, filled in.
#[derive(Debug, Serialize)]
struct Template<'a> {
    parameters: &'a BTreeMap<String, String>,
    image: Option<&'a str>,
    command: &'a [String],
    env: &'a BTreeMap<String, String>,
    port: Option<u16>,
    memory: Option<u64>,
    nano_cpus: Option<u64>,
    pids: Option<u32>,
    volumes: &'a [String],
}

impl<'a> Call<'a> {
    pub(super) fn new(verb: Verb, owner: &'a str) -> Self {
        let (session, generation, life, to) = (None, None, None, None);
        Self { verb, owner, session, generation, life, to, instance: None }
    }

    pub(super) fn about(self, session: &'a SessionId, spec: &'a Spec) -> Self {
        let instance = Template {
            parameters: &spec.parameters,
            image: spec.image.as_deref(),
            command: &spec.command,
            env: &spec.env,
            port: spec.port,
            memory: spec.memory,
            nano_cpus: spec.nano_cpus,
            pids: spec.pids,
            volumes: &spec.volumes,
        };
        Self { session: Some(session.host()), instance: Some(instance), ..self }
    }

    pub(super) fn with_generation(self, generation: Generation) -> Self {
        Self { generation: Some(generation.0), ..self }
    }

    pub(super) fn with_life(self, life: Option<&'a Life>, to: Depth) -> Self {
        let life = life.map(Life::as_str).filter(|life| *life != UNMARKED);
        Self { life, to: Some(to.as_str()), ..self }
    }

    /// What may be a secret among what the program was given: it may print it again. Parameters
    /// are none: an error that hides the name of what is missing helps nobody.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.instance.as_ref().map(|instance| instance.env.values()).into_iter().flatten()
    }
}

/// The life of an instance whose program knows no mark: one life is like another then.
const UNMARKED: &str = "unmarked";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartAnswer {
    address: String,
    life: Option<String>,
}

/// The answer to `start`.
pub(super) async fn started(printed: &[u8]) -> Result<Started, Error> {
    let StartAnswer { address, life } = read(Verb::Start, printed)?;
    let address = resolve(&address).await?;
    let life = Life::new(life.unwrap_or_else(|| UNMARKED.to_owned()));
    Ok(Started { address, life, ran_already: false })
}

async fn resolve(text: &str) -> Result<Address, Error> {
    let wrong = |why: &str| {
        let text: String = text.chars().take(TEXT_MAX).collect();
        Error::Failed(format!("start answered the address `{text}`: {why}"))
    };
    if let Some(path) = text.strip_prefix("unix:") {
        let is_path = path.starts_with('/') && !path.contains('\0');
        return is_path
            .then(|| Address::Unix(path.into()))
            .ok_or_else(|| wrong("no absolute path"));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Address::Tcp(address));
    }
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !has_port {
        return Err(wrong("expected HOST:PORT or unix:/path"));
    }
    let found = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host(text)).await;
    let mut found = match found {
        Ok(found) => found.map_err(|e| wrong(&format!("cannot look the name up: {e}")))?,
        Err(_) => return Err(wrong("the name's look-up did not end in time")),
    };
    found.next().map(Address::Tcp).ok_or_else(|| wrong("the name has no address"))
}

/// The most time for looking up the name that `start` answered.
const RESOLVE_MAX: std::time::Duration = std::time::Duration::from_secs(5);
/// The most of an answer that an error repeats, in characters.
const TEXT_MAX: usize = 200;

/// The answer to `list`.
#[derive(Debug)]
pub(super) struct Listed(pub(super) Vec<Instance>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListAnswer {
    session: String,
    state: StateWord,
    life: Option<String>,
    #[serde(default)]
    generation: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StateWord {
    Starting,
    Running,
    Healthy,
    Unhealthy,
    Paused,
    Suspended,
    Stopped,
}

impl From<StateWord> for InstanceState {
    fn from(word: StateWord) -> Self {
        match word {
            StateWord::Starting => Self::Running(Health::Starting),
            StateWord::Running => Self::Running(Health::Unchecked),
            StateWord::Healthy => Self::Running(Health::Healthy),
            StateWord::Unhealthy => Self::Running(Health::Unhealthy),
            StateWord::Paused => Self::Asleep(Depth::Paused),
            StateWord::Suspended => Self::Asleep(Depth::Suspended),
            StateWord::Stopped => Self::Asleep(Depth::Stopped),
        }
    }
}

/// Reads it whole or not at all: half a list would be half of the instances.
pub(super) fn listed(printed: &[u8]) -> Result<Listed, Error> {
    let answers: Vec<ListAnswer> = read(Verb::List, printed)?;
    let mut seen = std::collections::BTreeSet::new();
    for answer in &answers {
        let host = &answer.session;
        let is_host =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(is_host) {
            return Err(Error::Failed("list answered a `session` that is no host name".into()));
        }
        if !seen.insert(host) {
            return Err(Error::Failed(format!(
                "list answered `{host}` twice: one session is one instance"
            )));
        }
    }
    Ok(Listed(answers.into_iter().map(instance).collect()))
}

fn instance(answer: ListAnswer) -> Instance {
    let state = InstanceState::from(answer.state);
    // What runs has a life, be it one that looks like all others.
    let unmarked = || matches!(state, InstanceState::Running(_)).then(|| UNMARKED.to_owned());
    Instance {
        session: SessionId::new(answer.session),
        generation: Generation(answer.generation),
        life: answer.life.or_else(unmarked).map(Life::new),
        state,
    }
}

fn read<T: DeserializeOwned>(verb: Verb, printed: &[u8]) -> Result<T, Error> {
    let verb = verb.as_str();
    if printed.trim_ascii().is_empty() {
        return Err(Error::Failed(format!("{verb} ended with 0 and printed no answer")));
    }
    serde_json::from_slice(printed).map_err(|error| {
        let what = if error.is_eof() { "half an answer" } else { "no answer that can be read" };
        Error::Failed(format!("{verb} printed {what}: {error}"))
    })
}
