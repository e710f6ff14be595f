//! Under which conditions figures were got: without them they mean little.

use std::{fs, path::Path, process::Command, time::SystemTime};

use serde::Serialize;

/// What a reader needs to compare, or to do it again.
#[derive(Clone, Debug, Serialize)]
pub struct Conditions {
    /// When the run began, UTC.
    pub date: String,
    /// The processor.
    pub cpu: String,
    /// Its cores.
    pub cores: usize,
    /// The machine's memory.
    pub memory_bytes: u64,
    /// The operating system's kernel.
    pub kernel: String,
    /// The load average when the run began: what else was going on.
    pub load_average: f64,
    /// This program's version.
    pub loadtest: String,
    /// The whole command.
    pub command: String,
    /// What the servers' processes are.
    pub servers: Vec<String>,
}

impl Conditions {
    /// Of this machine, now.
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        let load = read("/proc/loadavg");
        Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.unwrap_or_default() * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default(),
            loadtest: env!("CARGO_PKG_VERSION").into(),
            command: command(),
            servers: Vec::new(),
        }
    }

    /// Adds what the processes of a server are.
    pub fn server(&mut self, name: &str, pids: &[i32]) {
        for pid in pids {
            if let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) {
                let line = format!("{name}: {} {}", exe.display(), version(&exe));
                if !self.servers.contains(&line) {
                    self.servers.push(line);
                }
            }
        }
    }
}

fn command() -> String {
    let words: Vec<_> = std::env::args().collect();
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// Only of programs that are known to do nothing else when asked.
fn version(exe: &Path) -> String {
    let flag = match exe.file_name().and_then(|name| name.to_str()) {
        Some("dormouse") => "--version",
        Some("nginx" | "haproxy") => "-v",
        _ => return String::new(),
    };
    let Ok(said) = Command::new(exe).arg(flag).output() else { return String::new() };
    let text = if said.stdout.is_empty() { said.stderr } else { said.stdout };
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
