//! The servers of a scenario: started in a folder of their own, on free ports of 127.0.0.1, and
//! ended with everything that they started.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use procfs::process::{Process, all_processes};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    floor::{free_port, free_port_at},
    reset::words,
};

/// A server that is not up after this long never will be.
const START_MAX: Duration = Duration::from_secs(120);
/// Between two looks at a server that starts.
const LOOK: Duration = Duration::from_millis(10);
/// What Dormouse logs: what a person must know, without Pingora's remarks on clients that leave.
const LOG: &str = "warn,pingora_proxy=off,pingora_core=error,pingora_core::apps=off";

/// `[bed]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BedTable {
    /// Files to hold a shared lock on from before the first command to after the last: who waits
    /// for that sees the end of this program even where it is killed.
    pub locks: Vec<String>,
    /// Where edges listen with TLS: an address of this machine. Default: 127.0.0.1.
    pub address: Option<IpAddr>,
    /// Commands to run first, one after the other.
    pub setup: Vec<String>,
    /// Edges by name: `${NAME}` is where one listens, `${NAME.admin}` its admin API,
    /// `${NAME.pid}` its process.
    pub edges: BTreeMap<String, EdgeTable>,
    /// Other servers by name, started in the order of their names before the edges: `${NAME}` is
    /// where one listens, `${NAME.pid}` its processes.
    pub parts: BTreeMap<String, PartTable>,
    /// Commands to run last.
    pub teardown: Vec<String>,
}

/// What an edge is limited to when it says nothing: the whole load comes from one address.
const LIMITS: &str =
    "[limits]\nwakes_per_client = \"unlimited\"\nconnections_per_client = 1000000\n";

/// `[bed.edges.NAME]`: a Dormouse.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EdgeTable {
    /// More of `dormouse.toml`; `[listen]` and, if it has none, `[engines]` and `[limits]` are the
    /// bed's: no limit by client, as all clients are one.
    pub config: String,
    /// `routes/NAME.toml`.
    pub routes: BTreeMap<String, String>,
    /// Whether it listens with TLS, too, at `${NAME.https}`, the port alone is
    /// `${NAME.https.port}`: certificates by `dormouse cert dev`.
    pub https: bool,
    /// The same route again and again.
    pub many: Option<Many>,
    /// Its log's filter.
    pub log: Option<String>,
}

/// `[bed.edges.NAME.many]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Many {
    /// How many.
    pub count: usize,
    /// Each one's text; `{n}` is its number.
    pub route: String,
}

/// `[bed.parts.NAME]`: any server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartTable {
    /// Runs it in the foreground; `${config}` is its file.
    pub command: String,
    /// What its file says.
    #[serde(default)]
    pub config: String,
    /// Without it the scenario is still worth something.
    #[serde(default)]
    pub optional: bool,
}

/// What `${…}` stands for.
#[derive(Clone, Debug, Default)]
pub struct Words(BTreeMap<String, String>);

impl Words {
    /// `text` with every `${word}` filled in; an unknown one is refused.
    pub fn fill_in(&self, text: &str) -> anyhow::Result<String> {
        let (mut filled, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (word, after) =
                after.split_once('}').with_context(|| format!("`{text}`: no }} after ${{"))?;
            let value = self.0.get(word).with_context(|| {
                let known: Vec<_> = self.0.keys().map(String::as_str).collect();
                format!("`${{{word}}}` is none of {}", known.join(", "))
            })?;
            filled.push_str(before);
            filled.push_str(value);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn set(&mut self, word: impl Into<String>, value: impl ToString) {
        self.0.insert(word.into(), value.to_string());
    }
}

/// Servers that run.
#[derive(Debug)]
pub struct Bed {
    dir: TempDir,
    words: Words,
    children: Vec<(String, Child, bool)>,
    missing: Vec<(String, String)>,
    teardown: Vec<String>,
    locks: Vec<File>,
}

impl Bed {
    /// Starts everything and waits until it serves. `bin` is where our own programs are.
    pub fn start(table: &BedTable, bin: Option<&Path>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("loadtest-").tempdir().context("a folder")?;
        let teardown = table.teardown.clone();
        let words = Words::default();
        let (children, missing, locks) = (Vec::new(), Vec::new(), Vec::new());
        let mut bed = Self { dir, words, children, missing, teardown, locks };
        bed.name_all(table, bin)?;
        for file in &table.locks {
            let file = File::create(bed.words.fill_in(file)?)?;
            file.lock_shared()?;
            bed.locks.push(file);
        }
        for command in &table.setup {
            bed.once(command)?;
        }
        for (name, part) in &table.parts {
            match bed.part(name, part) {
                Err(error) if part.optional => {
                    bed.missing.push((name.clone(), format!("{error:#}")))
                }
                started => started.with_context(|| name.clone())?,
            }
        }
        for (name, edge) in &table.edges {
            bed.edge(name, edge).with_context(|| name.clone())?;
        }
        Ok(bed)
    }

    /// What `${…}` stands for now: the processes of a server may have changed.
    pub fn words(&self) -> Words {
        let mut words = self.words.clone();
        for (name, child, alone) in &self.children {
            let leader = child.id().cast_signed();
            let all = if *alone { BTreeSet::from([leader]) } else { family(leader) };
            let all: Vec<_> = all.iter().map(ToString::to_string).collect();
            words.set(format!("{name}.pid"), all.join(","));
        }
        words
    }

    /// The optional servers that did not start, and why.
    pub fn missing(&self) -> &[(String, String)] {
        &self.missing
    }

    /// Addresses for all, before any of them starts: they name each other.
    fn name_all(&mut self, table: &BedTable, bin: Option<&Path>) -> anyhow::Result<()> {
        self.words.set("dir", self.dir.path().display());
        for (word, program) in [("dormouse", "dormouse"), ("peer", "loadtest-peer")] {
            let path = match bin {
                Some(folder) => folder.join(program),
                None => std::env::current_exe()
                    .context("where is this program?")?
                    .with_file_name(program),
            };
            let path = fs::canonicalize(&path).unwrap_or(path);
            let needed = word == "peer" || !table.edges.is_empty();
            ensure!(
                !needed || path.is_file(),
                "{} is not there: cargo build --release --workspace",
                path.display()
            );
            self.words.set(word, path.display());
        }
        for name in table.parts.keys().chain(table.edges.keys()) {
            let fresh = !self.words.0.contains_key(name);
            ensure!(fresh, "`{name}` names two things");
            self.words.set(name, free_port()?);
        }
        for (name, edge) in &table.edges {
            self.words.set(format!("{name}.admin"), format!("http://{}", free_port()?));
            if edge.https {
                let https = free_port_at(table.address.unwrap_or(Ipv4Addr::LOCALHOST.into()))?;
                self.words.set(format!("{name}.https"), https);
                self.words.set(format!("{name}.https.port"), https.port());
            }
        }
        Ok(())
    }

    fn once(&self, command: &str) -> anyhow::Result<()> {
        let words = words(&self.words.fill_in(command)?)?;
        let ran = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        let ran = ran.with_context(|| format!("cannot run {}", words[0]))?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{command}: {}: {said}", ran.status);
        Ok(())
    }

    fn part(&mut self, name: &str, part: &PartTable) -> anyhow::Result<()> {
        let folder = self.dir.path().join(name);
        fs::create_dir_all(&folder)?;
        let config = folder.join("config");
        let mut own = self.words.clone();
        let listen = own.0[name].clone();
        own.set("listen.port", listen.rsplit(':').next().unwrap_or_default());
        own.set("listen", listen);
        own.set("config", config.display());
        own.set("folder", folder.display());
        fs::write(&config, own.fill_in(&part.config)?)?;
        let words = words(&own.fill_in(&part.command)?)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let address = own.0["listen"].parse()?;
        self.spawn(name, command, &folder, false)?;
        self.wait(name, || TcpStream::connect::<SocketAddr>(address).is_ok())
    }

    fn edge(&mut self, name: &str, edge: &EdgeTable) -> anyhow::Result<()> {
        let folder = self.dir.path().join(name);
        let routes = folder.join("routes");
        fs::create_dir_all(&routes)?;
        let http = self.words.0[name].clone();
        let admin = self.words.0[&format!("{name}.admin")].trim_start_matches("http://").to_owned();
        let mut toml = format!("[listen]\nhttp = [\"{http}\"]\nadmin = \"{admin}\"\n");
        if let Some(https) = self.words.0.get(&format!("{name}.https")) {
            writeln!(toml, "https = [\"{https}\"]")?;
        }
        let config = self.words.fill_in(&edge.config)?;
        if !config.contains("[engines") {
            toml.push_str("[engines.local]\nkind = \"process\"\n");
        }
        if !config.contains("[limits") {
            toml.push_str(LIMITS);
        }
        fs::write(folder.join("dormouse.toml"), toml + &config)?;
        for (route, text) in &edge.routes {
            fs::write(routes.join(format!("{route}.toml")), self.words.fill_in(text)?)?;
        }
        if let Some(Many { count, route }) = &edge.many {
            let text = self.words.fill_in(route)?;
            for n in 0..*count {
                let text = text.replace("{n}", &n.to_string());
                fs::write(routes.join(format!("many-{n}.toml")), text)?;
            }
        }
        if edge.https {
            let config = folder.join("dormouse.toml");
            self.once(&format!("${{dormouse}} cert dev --config {}", config.display()))?;
        }
        let mut command = Command::new(&self.words.0["dormouse"]);
        command.arg("run").arg("--config").arg(folder.join("dormouse.toml"));
        command.env("RUST_LOG", edge.log.as_deref().unwrap_or(LOG));
        self.spawn(name, command, &folder, true)?;
        let address = admin.parse::<SocketAddr>()?;
        self.wait(name, || ready(address))
    }

    fn spawn(
        &mut self,
        name: &str,
        mut command: Command,
        folder: &Path,
        alone: bool,
    ) -> anyhow::Result<()> {
        let log = File::create(folder.join("log"))?;
        command.current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for this program; it ends the others itself.
        command.process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        self.children.push((name.to_owned(), child, alone));
        Ok(())
    }

    /// Waits until the server that was started last is `up`.
    fn wait(&mut self, name: &str, up: impl Fn() -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + START_MAX;
        let log = self.dir.path().join(name).join("log");
        let (_, child, _) = self.children.last_mut().context("nothing was started")?;
        while !up() {
            let ended = child.try_wait()?;
            if ended.is_some() || end < Instant::now() {
                let said = fs::read_to_string(log).unwrap_or_default();
                let last: Vec<_> = said.lines().rev().take(10).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                bail!("does not serve ({ended:?}): {}", last.join("\n"));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends the servers, then whatever they left in the bed's folder.
    pub fn end(&mut self) {
        for (_, child, _) in self.children.drain(..) {
            end(child);
        }
        // Instances outlive their edge on purpose; their working directory is in the bed.
        for pid in living_in(self.dir.path()) {
            kill(pid);
        }
        for command in std::mem::take(&mut self.teardown) {
            if let Err(error) = self.once(&command) {
                eprintln!("loadtest: {error:#}");
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends a process with its family.
fn end(mut child: Child) {
    for pid in family(child.id().cast_signed()) {
        kill(pid);
    }
    let _ = child.wait();
}

/// One GET of `/readyz`.
fn ready(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let ask = || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    ask() == Some(true)
}

/// A process and all that descend from it in its process group.
fn family(leader: i32) -> BTreeSet<i32> {
    let members = all_processes().into_iter().flatten().flatten();
    let of_group = |process: Process| process.stat().ok().filter(|stat| stat.pgrp == leader);
    let mut family: BTreeSet<i32> = members.filter_map(of_group).map(|stat| stat.pid).collect();
    family.insert(leader);
    family
}

fn living_in(folder: &Path) -> Vec<i32> {
    let folder: PathBuf = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let here = |process: &Process| process.cwd().is_ok_and(|cwd| cwd.starts_with(&folder));
    let all = all_processes().into_iter().flatten().flatten();
    all.filter(here).map(|process| process.pid).collect()
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
