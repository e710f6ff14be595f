//! The Machines API as its documentation tells it, with state: leases, limits, 408s, and faults
//! that a test asks for. It shares no code with the engine.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::task::TaskTracker;

pub(crate) const TOKEN: &str = "fly-secret-of-the-test";

/// What a request gets instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    Status(u16, &'static str),
    Text(&'static str),
    /// It is done, and only the answer is this.
    Behind(&'static str),
    /// It says what it was given: this, its body, and then `behind`.
    Echo {
        status: u16,
        behind: &'static str,
    },
    Hang,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) machines: BTreeMap<String, Machine>,
    pub(crate) volumes: BTreeMap<String, Value>,
    /// What is listed beside the machines.
    pub(crate) strange: Vec<Value>,
    /// By method and action (`POST start`), used up in their order.
    pub(crate) faults: HashMap<&'static str, VecDeque<Fault>>,
    /// Requests as `METHOD action`.
    pub(crate) asked: Vec<String>,
    /// Lists of all machines.
    pub(crate) lists: usize,
    /// Requests over the limit.
    pub(crate) limited: usize,
    buckets: HashMap<String, (f64, Instant)>,
    created: u32,
    events: u64,
}

pub(crate) struct Machine {
    pub(crate) state: String,
    name: String,
    pub(crate) config: Value,
    pub(crate) ip: Ipv4Addr,
    events: Vec<Value>,
    pub(crate) lease: Option<String>,
    listens: Option<JoinHandle<()>>,
    /// Of a machine whose command is a program of this machine.
    process: Option<Child>,
}

pub(crate) struct Fake {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) address: SocketAddr,
    pub(crate) port: u16,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    world: Arc<Mutex<World>>,
    interval: Duration,
    port: u16,
    tasks: TaskTracker,
}

impl Fake {
    /// Three requests at once, then one in `interval`, for a machine and action.
    pub(crate) async fn start(interval: Duration) -> Self {
        let world: Arc<Mutex<World>> = Arc::default();
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = TaskTracker::new();
        let shared = Shared { world: world.clone(), interval, port, tasks: tasks.clone() };
        let app = Router::new().fallback(answer).with_state(shared);
        let server = tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { world, address, port, server }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn fault(&self, on: &'static str, fault: Fault) {
        self.lock().faults.entry(on).or_default().push_back(fault);
    }

    /// Behind everybody's back.
    pub(crate) fn dies(&self, id: &str) {
        let mut world = self.lock();
        let machine = world.machines.get_mut(id).unwrap();
        machine.state = "stopped".into();
        machine.hang_up();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Machine {
    fn hang_up(&mut self) {
        if let Some(listens) = self.listens.take() {
            listens.abort();
        }
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Its command, where that is busybox or a program's path, on the address that it has.
    fn program(&self) -> Option<Command> {
        let words: Vec<_> =
            self.config["init"]["cmd"].as_array()?.iter().filter_map(Value::as_str).collect();
        if !words.first()?.starts_with(['/', 'b']) {
            return None;
        }
        let env = self.config["env"].as_object()?.iter();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).envs(env.map(|(k, v)| (k, v.as_str().unwrap())));
        command.args(words.iter().map(|word| word.replace("[::]", &self.ip.to_string())));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Some(command)
    }

    pub(crate) fn json(&self, id: &str) -> Value {
        json!({
            "id": id, "name": self.name, "state": self.state, "instance_id": format!("i{id}"),
            "private_ip": self.ip.to_string(), "config": self.config, "events": self.events,
        })
    }
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let (id, action) = match path[..] {
        ["v1", "apps", "desks", "machines"] => ("", ""),
        ["v1", "apps", "desks", "volumes"] => ("", "volumes"),
        ["v1", "apps", "desks", "machines", id] => (id, ""),
        ["v1", "apps", "desks", "machines", id, action] => (id, action),
        _ => return fail(404, "no such path"),
    };
    if headers.get("authorization").is_none_or(|token| token != &format!("Bearer {TOKEN}")) {
        return fail(401, "unauthorized");
    }
    let key = format!("{method} {action}").trim_end().to_owned();
    let fault = {
        let mut world = shared.world.lock().unwrap();
        world.asked.push(key.clone());
        if !world.may(format!("{method} {id} {action}"), shared.interval) {
            world.limited += 1;
            return fail(429, "rate limit exceeded");
        }
        world.faults.get_mut(key.as_str()).and_then(VecDeque::pop_front)
    };
    match fault {
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Status(status, text)) => return fail(status, text),
        Some(Fault::Text(text)) => return text.into_response(),
        Some(Fault::Echo { status, behind }) => {
            return fail(status, &format!("{}{behind}", told(&body)));
        }
        Some(Fault::Behind(_)) | None => {}
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let nonce = headers.get("fly-machine-lease-nonce").and_then(|nonce| nonce.to_str().ok());
    let answer = match (method.as_str(), action) {
        ("GET", "wait") => wait(&shared, id, uri.query().unwrap_or_default()).await,
        (method, _) => shared.act(method, id, action, &body, nonce),
    };
    match fault {
        Some(Fault::Behind(text)) => text.into_response(),
        _ => answer,
    }
}

/// The variable `S` of a body, where an error is cut.
fn told(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let secret = body["config"]["env"]["S"].as_str().unwrap_or_default();
    format!("{}{secret}", "x".repeat(290))
}

async fn wait(shared: &Shared, id: &str, query: &str) -> Response {
    let of = |key: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next().unwrap_or_default()
    };
    let seconds: u64 = of("timeout").parse().unwrap_or(60);
    if !(1..=60).contains(&seconds) {
        return fail(400, "invalid_argument: timeout");
    }
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(seconds) {
        {
            let world = shared.world.lock().unwrap();
            let Some(machine) = world.machines.get(id) else { return fail(404, "not found") };
            if machine.state == of("state") {
                return ok(&json!({ "ok": true, "state": machine.state }));
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fail(408, "deadline exceeded")
}

impl World {
    /// As if nobody had asked for anything for a while.
    pub(crate) fn forgive(&mut self) {
        self.buckets.clear();
    }

    fn may(&mut self, of: String, interval: Duration) -> bool {
        let (tokens, last) = self.buckets.entry(of).or_insert((3.0, Instant::now()));
        *tokens = (*tokens + last.elapsed().as_secs_f64() / interval.as_secs_f64()).min(3.0);
        *last = Instant::now();
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        may
    }
}

impl World {
    fn volumes(&mut self, method: &str, body: &Value) -> Response {
        if method == "GET" {
            return ok(&Value::Array(self.volumes.values().cloned().collect()));
        }
        let id = format!("vol_{}", self.volumes.len());
        let mut volume = json!({ "id": id, "state": "created" });
        for key in ["name", "region", "size_gb"] {
            volume[key] = body[key].clone();
        }
        self.volumes.insert(id, volume.clone());
        ok(&volume)
    }

    /// A volume is one machine's, and where it is the machine must be.
    fn attach(&mut self, machine: &str, body: &Value) -> Result<(), (u16, &'static str)> {
        let Some(mount) = body["config"]["mounts"].get(0) else { return Ok(()) };
        let volume = mount["volume"].as_str().and_then(|id| self.volumes.get_mut(id));
        let Some(volume) = volume else { return Err((400, "no such volume")) };
        if volume["region"] != body["region"] {
            return Err((400, "the volume is in another region"));
        }
        if volume["attached_machine_id"].as_str().is_some_and(|id| self.machines.contains_key(id)) {
            return Err((409, "the volume is attached to another machine"));
        }
        volume["attached_machine_id"] = json!(machine);
        Ok(())
    }
}

impl Shared {
    fn act(
        &self,
        method: &str,
        id: &str,
        action: &str,
        body: &Value,
        nonce: Option<&str>,
    ) -> Response {
        let mut world = self.world.lock().unwrap();
        if action == "volumes" {
            return world.volumes(method, body);
        }
        if id.is_empty() {
            return if method == "POST" { self.create(&mut world, body) } else { list(&mut world) };
        }
        let Some(machine) = world.machines.get_mut(id) else {
            return fail(404, "machine not found");
        };
        let leased = machine.lease.is_some() && machine.lease.as_deref() != nonce;
        match (method, action) {
            ("GET", "") => ok(&machine.json(id)),
            _ if leased => fail(409, "machine lease currently held by another"),
            ("POST", "lease") => {
                let nonce = format!("nonce-{id}");
                machine.lease = Some(nonce.clone());
                let lease = json!({ "status": "success", "data": { "nonce": nonce } });
                (StatusCode::CREATED, [JSON], lease.to_string()).into_response()
            }
            ("DELETE", "lease") => {
                machine.lease = None;
                ok(&json!({}))
            }
            ("DELETE", "") => {
                machine.hang_up();
                world.machines.remove(id);
                ok(&json!({ "ok": true }))
            }
            ("POST", "start") => match machine.state.as_str() {
                "stopped" | "suspended" | "created" => {
                    let boots = machine.state != "suspended";
                    machine.state = "starting".into();
                    self.boot(&mut world, id, boots);
                    ok(&json!({}))
                }
                "started" | "starting" => ok(&json!({})),
                state => fail(412, &format!("unable to start machine from `{state}`")),
            },
            ("POST", "stop") => {
                machine.hang_up();
                machine.state = "stopping".into();
                self.becomes(id, "stopping", "stopped");
                ok(&json!({}))
            }
            ("POST", "suspend") if machine.state == "started" => {
                machine.state = "suspending".into();
                self.becomes(id, "suspending", "suspended");
                ok(&json!({}))
            }
            _ => fail(400, "invalid machine state"),
        }
    }

    fn create(&self, world: &mut World, body: &Value) -> Response {
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        if world.machines.values().any(|machine| machine.name == name) {
            return fail(422, "machine name already in use");
        }
        world.created += 1;
        let id = format!("m{:06x}", world.created);
        if let Err((status, text)) = world.attach(&id, body) {
            return fail(status, text);
        }
        let machine = Machine {
            state: "starting".into(),
            name,
            config: body["config"].clone(),
            ip: Ipv4Addr::LOCALHOST,
            events: Vec::new(),
            lease: None,
            listens: None,
            process: None,
        };
        world.machines.insert(id.clone(), machine);
        self.boot(world, &id, true);
        ok(&world.machines[&id].json(&id))
    }

    /// A boot has another address, a resume the one that it had.
    fn boot(&self, world: &mut World, id: &str, boots: bool) {
        world.events += 1;
        let event = world.events;
        let machine = world.machines.get_mut(id).unwrap();
        machine.events.push(
            json!({ "id": format!("e{event}"), "type": "start", "status": "started", "timestamp": event }),
        );
        if boots {
            let [_, _, high, low] = u32::try_from(event).unwrap().to_be_bytes();
            machine.ip = Ipv4Addr::new(127, 77, high, low);
            let at = SocketAddr::from((machine.ip, self.port));
            machine.hang_up();
            if let Some(mut program) = machine.program() {
                machine.process = Some(program.spawn().unwrap());
                return self.becomes(id, "starting", "started");
            }
            machine.listens = Some(self.tasks.spawn(async move {
                let listener = TcpListener::bind(at).await.unwrap();
                loop {
                    drop(listener.accept().await);
                }
            }));
        }
        self.becomes(id, "starting", "started");
    }

    fn becomes(&self, id: &str, from: &'static str, to: &'static str) {
        let (world, id) = (self.world.clone(), id.to_owned());
        self.tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Some(machine) = world.lock().unwrap().machines.get_mut(&id)
                && machine.state == from
            {
                machine.state = to.into();
            }
        });
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

fn ok(value: &Value) -> Response {
    ([JSON], value.to_string()).into_response()
}

fn list(world: &mut World) -> Response {
    world.lists += 1;
    let machines = world.machines.iter().map(|(id, machine)| machine.json(id));
    ok(&Value::Array(machines.chain(world.strange.iter().cloned()).collect()))
}

fn fail(status: u16, text: &str) -> Response {
    (StatusCode::from_u16(status).unwrap(), [JSON], json!({ "error": text }).to_string())
        .into_response()
}
