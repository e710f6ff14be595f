//! `dormouse explain URL`: which route, session, engine and policy a URL gets, and what would
//! happen to a request now. Reads the files itself; asks the running edge only for what lives.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use http::Uri;
use humantime_serde::re::humantime::format_duration;
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;

use super::{
    check,
    client::Target,
    exit::{Exit, Failure, Outcome, plain, print, print_json, short},
    sessions::{Session, brief, read},
};
use crate::{
    config::Config,
    route::{
        ClientTls, Protocol, RateText, Route, RouteTable, WakeOn,
        access::{Access, Origin},
        canonical_host,
    },
    session::{Plan, Probe, RouteLimits},
};

/// An edge that runs answers within this; one that does not is not waited for.
const LIVE_MAX: Duration = Duration::from_secs(2);

/// Says what a URL gets: route, session, engine, policy, and what would happen to a request now.
///
/// The files are read as they are on disk. The session's state is asked of the running edge; where
/// that cannot be reached, the rest is told all the same. Nothing is woken.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse explain http://alice.localhost:8080/
  dormouse explain alice.localhost
  dormouse explain alice.localhost --json | jq -r .route.name

No route has the host: exit code 4.")]
pub(super) struct Explain {
    /// A URL, or a host alone.
    #[arg(value_name = "URL", value_parser = url_host)]
    host: String,
    #[command(flatten)]
    target: Target,
}

/// `explain --json`. What may hold secrets (commands, environments, headers) stays out.
#[derive(Serialize)]
struct Explanation {
    host: String,
    route: RoutePart,
    captures: BTreeMap<String, String>,
    engine: EnginePart,
    image: Option<String>,
    ready: String,
    wake: WakePart,
    limits: LimitsPart,
    idle: IdlePart,
    https: String,
    upstream: String,
    access: AccessPart,
    /// The session as the running edge has it; `null` when it has none, or cannot be reached.
    live: Value,
    /// Why nothing is known of the running edge.
    live_error: Option<String>,
    /// What the running edge orders of an ACME server for it; `null` when nothing.
    acme: Value,
    /// What would happen to a request now.
    now: String,
}

#[derive(Serialize)]
struct RoutePart {
    name: String,
    file: String,
    host: String,
}

#[derive(Serialize)]
struct EnginePart {
    name: String,
    kind: String,
}

#[derive(Serialize)]
struct WakePart {
    timeout: String,
    boot_max: String,
    held_max: u32,
}

/// What is in the session's way before it may wake.
#[derive(Serialize)]
struct LimitsPart {
    /// `unlimited`, or a rate.
    wakes_per_client: String,
    /// Of the whole route: `unlimited`, or a rate.
    wakes: String,
    /// Of the whole route; `null` for as many as the edge holds.
    held: Option<u32>,
    /// Of the whole route.
    running: Option<u32>,
    /// Of the whole route, asleep ones included.
    instances: Option<u32>,
    /// Of the engine.
    engine_running: Option<u32>,
    when_full: &'static str,
    /// Instances of the route that are awake, waking or stopping; `null` where no edge says so.
    running_now: Option<u64>,
}

impl LimitsPart {
    fn of(route: &Route, config: &Config, running_now: Option<u64>) -> Self {
        let recipe = &route.recipe;
        let RouteLimits { held, running, instances, when_full } = recipe.limits;
        Self {
            wakes_per_client: config.limits.wakes_per_client.to_string(),
            wakes: RateText(recipe.wakes).to_string(),
            held,
            running,
            instances,
            engine_running: config.running.get(&*recipe.engine).copied(),
            when_full: when_full.as_str(),
            running_now,
        }
    }

    fn in_words(&self, engine: &str) -> String {
        let mut parts =
            vec![format!("wakes {} a client, {} the route", self.wakes_per_client, self.wakes)];
        parts.extend(self.held.map(|held| format!("{held} held of the route")));
        parts.extend(self.running.map(|most| format!("{most} running of the route")));
        parts.extend(self.instances.map(|most| format!("{most} existing of the route")));
        parts.extend(self.engine_running.map(|most| format!("{most} running on {engine}")));
        if self.running.or(self.engine_running).is_some() {
            parts.push(format!("when full: {}", self.when_full));
        }
        parts.extend(self.running_now.map(|now| format!("{now} of the route run now")));
        parts.join("; ")
    }
}

#[derive(Serialize)]
struct IdlePart {
    sleep: Vec<RungPart>,
    min_awake: String,
}

/// Who may enter, before anything wakes.
#[derive(Serialize)]
struct AccessPart {
    require: String,
    origin: String,
    end_open: bool,
}

#[derive(Serialize)]
struct RungPart {
    after: String,
    to: &'static str,
}

/// What the running edge knows.
enum Live {
    /// The session, and all of it as data.
    Known(Box<Session>, Value),
    /// It runs, and this session was never asked for.
    NotYet,
    /// It runs with other routes.
    NoRoute,
    /// It does not answer.
    Unreachable(String),
}

impl Explain {
    pub(super) async fn run(self) -> Outcome {
        let loaded = check::load(self.target.config.as_deref(), &[]);
        let (config, table) = loaded.map_err(|errors| Failure::of_files(&errors))?;
        let Some(route) = table.lookup(&self.host) else {
            return Err(no_route(&self.host, &config, &table));
        };
        let (live, acme) = tokio::join!(self.live(), self.acme());
        let running = self.running(&route.name).await;
        let limits = LimitsPart::of(route, &config, running);
        let explanation = Explanation::of(&self.host, route, &config, limits, live, acme);
        if self.target.json { print_json(&explanation) } else { print(&explanation.in_words()) }
    }

    /// How many instances of the route run, where an edge says so.
    async fn running(&self, route: &str) -> Option<u64> {
        let client = Target { json: false, ..self.target.clone() }.client().ok()?;
        let answer =
            client.ask(Method::GET, &["v1", "sessions"], &[("limit", "0")], Some(LIVE_MAX));
        let routes = answer.await.ok()?.body.get("running")?.get("routes")?.clone();
        Some(routes.get(route).and_then(Value::as_u64).unwrap_or(0))
    }

    /// The host's own name among those that are ordered, or else its wildcard.
    async fn acme(&self) -> Value {
        let target = Target { json: false, ..self.target.clone() };
        let Ok(client) = target.client() else { return Value::Null };
        let asked = client.ask(Method::GET, &["v1", "acme"], &[], Some(LIVE_MAX)).await;
        let Ok(answer) = asked else { return Value::Null };
        let wildcard = self.host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let names = answer.body["names"].as_array().into_iter().flatten();
        let of = |wanted: &str| names.clone().find(|is| is["name"] == *wanted).cloned();
        let found = of(&self.host).or_else(|| of(wildcard.as_deref()?));
        found.unwrap_or_default()
    }

    async fn live(&self) -> Live {
        // A problem of the API is part of the explanation, not the answer of this command.
        let target = Target { json: false, ..self.target.clone() };
        let client = match target.client() {
            Ok(client) => client,
            Err(failure) => return Live::Unreachable(failure.text),
        };
        let path = ["v1", "sessions", self.host.as_str()];
        match client.ask(Method::GET, &path, &[], Some(LIVE_MAX)).await {
            Ok(answer) => match read(answer.body.clone()) {
                Ok(session) => Live::Known(Box::new(session), answer.body),
                Err(failure) => Live::Unreachable(failure.text),
            },
            Err(failure) if failure.reason.as_deref() == Some("no_such_session") => Live::NotYet,
            Err(failure) if failure.exit == Exit::Unknown => Live::NoRoute,
            Err(failure) => Live::Unreachable(failure.text),
        }
    }
}

impl Explanation {
    fn of(
        host: &str,
        route: &Route,
        config: &Config,
        limits: LimitsPart,
        live: Live,
        acme: Value,
    ) -> Self {
        let plan = route.plan(host);
        let names = route.host.captures().iter().cloned();
        let values = route.host.values(host).unwrap_or_default();
        let captures = names.zip(values.into_iter().map(str::to_owned)).collect();
        let kind =
            config.engines.get(&*route.recipe.engine).map(|engine| engine.kind().to_string());
        let policy = &plan.policy;
        let sleep = policy.ladder.iter().map(|rung| RungPart {
            after: format_duration(rung.after).to_string(),
            to: rung.to.as_str(),
        });
        let now = now(&live, &plan);
        let (live, live_error) = match live {
            Live::Known(_, data) => (data, None),
            Live::NotYet | Live::NoRoute => (Value::Null, None),
            Live::Unreachable(why) => (Value::Null, Some(why)),
        };
        Self {
            host: host.to_owned(),
            route: RoutePart {
                name: route.name.to_string(),
                file: short(&route.file),
                host: route.host.as_str().to_owned(),
            },
            captures,
            engine: EnginePart {
                name: route.recipe.engine.to_string(),
                kind: kind.unwrap_or_default(),
            },
            ready: ready(&plan.probe),
            wake: WakePart {
                timeout: format_duration(policy.wake_timeout).to_string(),
                boot_max: format_duration(policy.boot_max).to_string(),
                held_max: policy.held_max,
            },
            limits,
            idle: IdlePart {
                sleep: sleep.collect(),
                min_awake: format_duration(policy.min_awake).to_string(),
            },
            https: https(route),
            upstream: upstream(route, &plan),
            access: AccessPart::of(&route.recipe.access),
            image: plan.spec.image,
            live,
            live_error,
            acme,
            now,
        }
    }

    fn in_words(&self) -> String {
        let captures: Vec<_> =
            self.captures.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let captures = if captures.is_empty() { "none".to_owned() } else { captures.join(", ") };
        let rungs: Vec<_> = self
            .idle
            .sleep
            .iter()
            .map(|rung| format!("{} after {} without use", rung.to, rung.after))
            .collect();
        let mut lines = vec![
            ("session", self.host.clone()),
            ("route", format!("{} ({})", self.route.name, self.route.file)),
            ("pattern", self.route.host.clone()),
            ("captures", captures),
            ("engine", format!("{} (kind {})", self.engine.name, self.engine.kind)),
        ];
        lines.extend(self.image.clone().map(|image| ("image", image)));
        lines.extend([
            ("ready", format!("{}, within {}", self.ready, self.wake.timeout)),
            ("held", format!("at most {} requests while it wakes", self.wake.held_max)),
            ("limits", self.limits.in_words(&self.engine.name)),
            ("sleeps", rungs.join(", then ")),
            ("awake", format!("at least {} after a wake", self.idle.min_awake)),
            ("https", self.https.clone()),
            ("upstream", self.upstream.clone()),
            ("access", self.access.in_words()),
        ]);
        lines.extend(acme_in_words(&self.acme).map(|text| ("acme", text)));
        lines.extend([("now", self.now.clone())]);
        let lines: Vec<_> =
            lines.iter().map(|(word, text)| format!("{word:<9} {}", plain(text))).collect();
        lines.join("\n")
    }
}

/// `a.test, valid until 2027-01-01T00:00:00Z; …`.
fn acme_in_words(acme: &Value) -> Option<String> {
    let text = |key: &str| acme[key].as_str().unwrap_or_default();
    acme.as_object()?;
    let certificate = match text("certificate") {
        "missing" => "no certificate yet".to_owned(),
        state => format!("{state} until {}", text("not_after")),
    };
    let next = match text("phase") {
        "ordered" => "its order is under way".to_owned(),
        "failed" => format!("may be asked for again at {}", text("next_order")),
        _ => format!("ordered again at {}", text("next_order")),
    };
    let error = acme["error"].as_str().map(|error| format!("; failed: {error}"));
    Some(format!("{}, {certificate}; {next}{}", text("name"), error.unwrap_or_default()))
}

impl AccessPart {
    fn of(access: &Access) -> Self {
        let origin = match &access.origin {
            Origin::Same => "same".to_owned(),
            Origin::Any => "any".to_owned(),
            Origin::Listed(origins) => origins.join(", "),
        };
        Self { require: access.in_words(), origin, end_open: access.end_open }
    }

    fn in_words(&self) -> String {
        let who = match self.require.as_str() {
            "open" => "open: everybody may enter".to_owned(),
            policies => format!("{policies}; refused otherwise, and nothing wakes"),
        };
        let pages = match self.origin.as_str() {
            "same" => "the session's own pages",
            "any" => "any page",
            listed => &format!("the session's own pages and {listed}"),
        };
        let ends = if self.end_open { "; what is open ends with it" } else { "" };
        format!("{who}{ends}; WebSockets from {pages}")
    }
}

fn ready(probe: &Probe) -> String {
    match probe {
        Probe::Tcp => "when it accepts a connection".to_owned(),
        Probe::Http { path, status: Some(status), .. } => {
            format!("when GET {path} answers {status}")
        }
        Probe::Http { path, status: None, .. } => format!("when GET {path} answers below 500"),
        Probe::Engine => "when its engine says that it is healthy".to_owned(),
    }
}

/// What a client is told about HTTPS, and what it may wake by it.
fn https(route: &Route) -> String {
    let ClientTls { redirect, hsts } = &route.recipe.client_tls;
    let plain = if *redirect { "plain HTTP is redirected" } else { "plain HTTP is served, too" };
    let hsts = hsts.as_ref().and_then(|hsts| hsts.to_str().ok());
    let mut text = plain.to_owned();
    if let Some(hsts) = hsts {
        text += &format!("; Strict-Transport-Security: {hsts}");
    }
    if route.recipe.wake_on == WakeOn::Sni {
        text += "; wakes at the TLS handshake";
    }
    text
}

fn upstream(route: &Route, plan: &Plan) -> String {
    let protocol = match route.recipe.protocol {
        Protocol::Auto => "HTTP/1.1, and HTTP/2 for gRPC",
        Protocol::Http1 => "HTTP/1.1",
        Protocol::Http2 => "HTTP/2",
    };
    match &plan.tls {
        None => protocol.to_owned(),
        Some(tls) if tls.verify => format!("{protocol} over TLS, as {}", tls.sni),
        Some(tls) => format!("{protocol} over TLS, as {}, certificate not checked", tls.sni),
    }
}

/// What would happen to a request.
fn now(live: &Live, plan: &Plan) -> String {
    let timeout = format_duration(plan.policy.wake_timeout);
    let wake = |how: &str| {
        format!("{how}: a request is held until it is ready, or gets 504 after {timeout}")
    };
    let session = match live {
        Live::Known(session, _) => session,
        Live::NotYet => return wake("nobody has asked for it yet"),
        Live::NoRoute => {
            return "the running edge has other routes, and answers 404: `dormouse reload` says \
                    why"
            .to_owned();
        }
        Live::Unreachable(_) => {
            return format!(
                "unknown: no edge answers. {}",
                wake("Where one runs and the session sleeps")
            );
        }
    };
    let state = session.in_words();
    if session.retired {
        return format!("{state}: the running edge has no route for it, and answers 404");
    }
    let mut text = match (session.state.as_str(), session.cooldown_ms) {
        ("asleep", Some(cooldown)) => {
            let cooldown = brief(Duration::from_millis(cooldown));
            let error = session.last_error.as_deref().unwrap_or("the edge's log says why");
            format!("{state}: its last wake failed ({error}): a request gets 503 for {cooldown}")
        }
        ("asleep", None) => wake(&format!("{state}, and would wake")),
        ("waking", _) => wake(&format!("{state}, {} leases wait", session.leases)),
        ("stopping", _) => {
            format!("{state}: a request is held, and wakes it again when it has stopped")
        }
        _ => {
            let address = session.address.as_deref().unwrap_or("its instance");
            let sleeps = session.sleeps().map(|when| format!("; sleeps {when}"));
            let sleeps = sleeps.unwrap_or_default();
            format!("{state}: a request goes to {address} at once{sleeps}")
        }
    };
    if session.route != *plan.route {
        text += &format!("; the running edge still serves it by route `{}`", session.route);
    }
    text
}

fn no_route(host: &str, config: &Config, table: &RouteTable) -> Failure {
    let patterns: Vec<_> = table.iter().map(|route| route.host.as_str()).take(10).collect();
    let known = match (patterns.join(", "), table.len()) {
        (_, 0) => "there are no routes".to_owned(),
        (patterns, count) if count <= 10 => format!("the routes have {patterns}"),
        (patterns, count) => format!("the routes have {patterns} and {} more", count - 10),
    };
    let folder = short(&config.paths.routes);
    let text = format!(
        "no route of {folder} has the host {host}: a request gets 404 at once, and no engine is \
         asked\n    hint: {known}"
    );
    Failure::new(Exit::Unknown, text)
}

/// The canonical host of a URL, or of a host alone.
fn url_host(text: &str) -> Result<String, String> {
    let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    let authority =
        uri.authority().ok_or("not a URL with a host, such as http://alice.localhost/")?;
    let host = canonical_host(authority.host()).map(|host| host.into_owned());
    host.ok_or_else(|| format!("`{}` cannot be a host", authority.host()))
}
