//! `dormouse sessions`, `wake` and `sleep`: the admin API's sessions for people and for scripts.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use comfy_table::{Table, presets};
use humantime_serde::re::humantime::format_duration;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    client::Target,
    exit::{Exit, Failure, Outcome, plain, print, print_json, remark},
};
use crate::{admin::STATES, route::canonical_host, session::Depth};

/// More of an engine's complaint does not fit into a line; `--json` has it whole.
const ERROR_SHOWN: usize = 60;

/// More routes do not fit into a line; `--json` has them all.
const ROUTES_SHOWN: usize = 10;

/// Lists the sessions that a running edge knows, and how many of them run.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
SINCE is the time since the session last woke or went to sleep, SLEEPS when and how deep it will
go next if nobody comes.

Examples:
  dormouse sessions
  dormouse sessions --state awake
  dormouse sessions --json | jq -r '.sessions[] | select(.last_error) | .host'")]
pub(super) struct Sessions {
    /// Only those in this state.
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    state: Option<String>,
    /// At most so many (10000 at once).
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
    #[command(flatten)]
    target: Target,
}

/// Wakes a session and waits until it is ready.
///
/// Nobody needs to wake a session before using it: a request does that. This is for warming one
/// up, and for trying again at once after a failed wake, whose cooldown it ignores.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse wake alice.localhost
  dormouse wake alice.localhost --no-wait
  dormouse wake alice.localhost --json | jq .took")]
pub(super) struct Wake {
    /// The session's host.
    #[arg(value_parser = host)]
    host: String,
    /// Only begin; do not wait for the end.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

/// Puts a session to sleep now, unless somebody uses it.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A session with open requests, streams or sockets is left alone, and the exit code is 5.

Examples:
  dormouse sleep alice.localhost
  dormouse sleep alice.localhost --to removed     what was in it and not in a volume is lost")]
pub(super) struct Sleep {
    /// The session's host.
    #[arg(value_parser = host)]
    host: String,
    /// How deep; without it, the first step of its route. Not every engine has every depth.
    #[arg(long, value_name = "DEPTH", value_parser = Depth::ALL.map(Depth::as_str))]
    to: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// What we show of a session.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Session {
    pub(super) host: String,
    pub(super) route: String,
    engine: String,
    pub(super) state: String,
    pub(super) depth: Option<String>,
    phase: Option<String>,
    generation: u64,
    pub(super) leases: u32,
    pub(super) address: Option<String>,
    sleeps_in_ms: Option<u64>,
    sleeps_to: Option<String>,
    pub(super) cooldown_ms: Option<u64>,
    pub(super) last_error: Option<String>,
    #[serde(default)]
    pub(super) retired: bool,
    #[serde(default)]
    history: Vec<Moment>,
}

#[derive(Clone, Debug, Deserialize)]
struct Moment {
    /// Milliseconds since 1970.
    at: u64,
}

#[derive(Deserialize)]
struct List {
    sessions: Vec<Session>,
    total: usize,
    #[serde(default)]
    running: Running,
}

/// How many instances are awake, waking or stopping.
#[derive(Default, Deserialize)]
struct Running {
    engines: BTreeMap<String, RunningOf>,
    routes: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct RunningOf {
    running: usize,
    limit: Option<usize>,
    trouble: Option<String>,
    deaf: Option<String>,
}

impl Running {
    /// A line for each engine that does not answer, and each that tells nothing.
    fn troubles(&self) -> impl Iterator<Item = String> {
        self.engines.iter().flat_map(|(name, of)| {
            let silent = of.trouble.iter();
            let silent = silent.map(move |why| format!("engine {name} is not called: {why}"));
            let deaf = of.deaf.iter();
            silent.chain(deaf.map(move |why| format!("engine {name} refuses its events: {why}")))
        })
    }

    /// By engine, then by route.
    fn in_words(&self) -> Option<String> {
        let engines = self.engines.iter().map(|(name, of)| match of.limit {
            Some(limit) => format!("{} of at most {limit} on {name}", of.running),
            None => format!("{} on {name}", of.running),
        });
        let engines: Vec<_> = engines.collect();
        let routes = self.routes.iter().map(|(name, running)| format!("{running} of {name}"));
        let shown: Vec<_> = routes.take(ROUTES_SHOWN).collect();
        let more = self.routes.len().saturating_sub(ROUTES_SHOWN);
        let more = if 0 < more { format!(" and of {more} more routes") } else { String::new() };
        let routes =
            if shown.is_empty() { String::new() } else { format!("; {}{more}", shown.join(", ")) };
        (!engines.is_empty()).then(|| format!("running: {}{routes}", engines.join(", ")))
    }
}

#[derive(Deserialize)]
struct Woken {
    session: Session,
    took: Option<Took>,
}

#[derive(Deserialize)]
struct Took {
    hold_ms: f64,
    queued_ms: f64,
    engine_ms: f64,
    ready_ms: f64,
}

impl Sessions {
    pub(super) async fn run(self) -> Outcome {
        let limit = self.limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(self.state.as_deref().map(|state| ("state", state)));
        let answer = self.target.client()?.get(&["v1", "sessions"], &query).await?;
        if self.target.json {
            return print_json(&answer.body);
        }
        let List { sessions, total, running } = read(answer.body)?;
        for trouble in running.troubles() {
            remark(&trouble);
        }
        if sessions.is_empty() {
            remark("no sessions");
            return Ok(());
        }
        print(&table(&sessions))?;
        if let Some(running) = running.in_words() {
            remark(&running);
        }
        let left_out = total.saturating_sub(sessions.len());
        if 0 < left_out {
            remark(&format!("and {left_out} more: see --limit and --state"));
        }
        Ok(())
    }
}

impl Wake {
    pub(super) async fn run(self) -> Outcome {
        let client = self.target.client()?;
        let path = ["v1", "sessions", self.host.as_str(), "wake"];
        let answer = if self.no_wait {
            client.post(&path, &[("wait", "false")]).await?
        } else {
            // The edge ends the wait: it knows the route's wake.timeout.
            client.ask(Method::POST, &path, &[], None).await?
        };
        if self.target.json {
            return print_json(&answer.body);
        }
        let is_waking = answer.status == StatusCode::ACCEPTED;
        let Woken { session, took } = read(answer.body)?;
        let Session { host, generation, .. } = &session;
        print(&match took {
            Some(Took { hold_ms, queued_ms, engine_ms, ready_ms }) => format!(
                "{host} is awake (generation {generation}) after {hold_ms} ms: \
                 queued {queued_ms}, engine {engine_ms}, ready {ready_ms}"
            ),
            None if is_waking => format!("{host} is on its way: {}", session.in_words()),
            None => format!("{host} is awake already (generation {generation})"),
        })
    }
}

impl Sleep {
    pub(super) async fn run(self) -> Outcome {
        let path = ["v1", "sessions", self.host.as_str(), "sleep"];
        let query: Vec<_> = self.to.as_deref().map(|to| ("to", to)).into_iter().collect();
        let answer = self.target.client()?.post(&path, &query).await?;
        if self.target.json {
            return print_json(&answer.body);
        }
        let session: Session = read(answer.body)?;
        print(&format!("{} is {}", session.host, session.in_words()))
    }
}

impl Session {
    /// The state, with what is behind it.
    pub(super) fn in_words(&self) -> String {
        let more = self.depth.as_deref().or(self.phase.as_deref());
        more.map_or_else(|| self.state.clone(), |more| format!("{} ({more})", self.state))
    }

    fn since(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Duration::from_millis(self.history.last()?.at);
        Some(brief(now.saturating_sub(at)))
    }

    pub(super) fn sleeps(&self) -> Option<String> {
        let (after, to) = (self.sleeps_in_ms?, self.sleeps_to.as_deref()?);
        Some(format!("in {} ({to})", brief(Duration::from_millis(after))))
    }
}

fn table(sessions: &[Session]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "HOST",
        "STATE",
        "SINCE",
        "SLEEPS",
        "LEASES",
        "GENERATION",
        "ROUTE",
        "ENGINE",
        "LAST ERROR",
    ]);
    let none = || "-".to_owned();
    for session in sessions {
        let error = session.last_error.as_deref().map(shortened);
        table.add_row([
            plain(&session.host),
            session.in_words(),
            session.since().unwrap_or_else(none),
            session.sleeps().unwrap_or_else(none),
            session.leases.to_string(),
            session.generation.to_string(),
            session.route.clone(),
            session.engine.clone(),
            error.unwrap_or_else(none),
        ]);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.trim_fmt()
}

fn shortened(text: &str) -> String {
    let text = plain(text);
    match text.char_indices().nth(ERROR_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// To the second, where there are seconds.
pub(super) fn brief(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    let time =
        if whole.is_zero() { Duration::from_millis(time.subsec_millis().into()) } else { whole };
    format_duration(time).to_string()
}

/// The one spelling of a session's host.
fn host(text: &str) -> Result<String, String> {
    let host = canonical_host(text).map(|host| host.into_owned());
    host.ok_or_else(|| "no host, such as alice.localhost".to_owned())
}

/// What the API answered, as this command understands it.
pub(super) fn read<T: DeserializeOwned>(body: Value) -> Result<T, Failure> {
    serde_json::from_value(body).map_err(|error| {
        let text = format!("the edge speaks another version of the admin API: {error}");
        Failure::new(Exit::Failed, text)
    })
}
