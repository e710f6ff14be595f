//! One call: a process group with JSON on its standard input, read until it ends, killed when it
//! takes too long or prints too much.

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{Config, protocol::Call};
use crate::engine::{Error, without};

/// What every program gets of the edge's environment. All else stays here: it may be a secret.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "USER"];
/// The most that a program may print: a list of some ten thousand instances.
const OUTPUT_MAX: usize = 1024 * 1024;
/// The most of its standard error that is kept, from the end.
const ERRORS_MAX: usize = 4096;
/// The most lines of it that an error repeats.
const ERROR_LINES: usize = 5;

// From sysexits.h, so that a shell script needs no table of ours.
const EX_USAGE: i32 = 64;
const EX_NOINPUT: i32 = 66;
const EX_UNAVAILABLE: i32 = 69;
const EX_TEMPFAIL: i32 = 75;
const EX_CONFIG: i32 = 78;

/// What is run for every verb.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
    environment: Vec<String>,
}

impl Program {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let Some((program, arguments)) = config.run.split_first() else {
            return Err(Error::Invalid("there is no program to run".into()));
        };
        let directory = config.directory.clone();
        let path = if program.contains('/') { directory.join(program) } else { program.into() };
        let environment = config.environment.clone();
        Ok(Self { path, arguments: arguments.to_vec(), directory, environment })
    }

    /// What it printed, once it has ended with 0.
    pub(super) async fn run(&self, call: &Call<'_>, limit: Duration) -> Result<Vec<u8>, Error> {
        let input = serde_json::to_vec(call)
            .map_err(|e| Error::Invalid(format!("the route cannot be written as JSON: {e}")))?;
        let verb = call.verb.as_str();
        let mut running = Running::new(self.spawn(verb)?);
        let ended = tokio::time::timeout(limit, running.until_ended(&input)).await;
        let inherited: Vec<_> =
            self.environment.iter().filter_map(|name| std::env::var(name).ok()).collect();
        let clean = |text: String| without(without(text, call.secrets()), inherited.iter());
        match ended {
            Ok(Ok(status)) if status.success() => Ok(running.output),
            Ok(Ok(status)) => Err(refused(verb, status, &clean(running.last_lines()))),
            Ok(Err(wrong)) => {
                running.kill().await;
                Err(Error::Failed(format!("{verb} {wrong}")))
            }
            Err(_) => {
                running.kill().await;
                tracing::warn!(
                    program = %self.path.display(), verb, last_lines = clean(running.last_lines()),
                    "killed: it did not end in time"
                );
                Err(Error::Timeout { call: verb, after: limit })
            }
        }
    }

    fn spawn(&self, verb: &str) -> Result<Child, Error> {
        let names = INHERITED.iter().copied().chain(self.environment.iter().map(String::as_str));
        let environment = names.filter_map(|name| Some((name, std::env::var_os(name)?)));
        Command::new(&self.path)
            .args(&self.arguments)
            .arg(verb)
            .current_dir(&self.directory)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group, so that the limit ends what it started too.
            .process_group(0)
            .spawn()
            .map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &io::Error) -> Error {
        let shown = self.path.display();
        match error.kind() {
            io::ErrorKind::NotFound if !self.directory.is_dir() => {
                Error::Missing(format!("the folder {} does not exist", self.directory.display()))
            }
            io::ErrorKind::NotFound if self.path.is_file() => Error::Missing(format!(
                "cannot run {shown}: its interpreter (the first line after #!) is missing"
            )),
            io::ErrorKind::NotFound => Error::Missing(format!(
                "the program {shown} does not exist: correct `run` of the engine in dormouse.toml"
            )),
            io::ErrorKind::PermissionDenied => Error::Invalid(format!(
                "{shown} may not be executed by the edge's user: chmod +x, and every folder above \
                 it must be open to that user"
            )),
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => {
                Error::Conflict(format!("the machine has no room for a process ({shown}): {error}"))
            }
            _ => Error::Failed(format!("cannot run {shown}: {error}")),
        }
    }
}

fn refused(verb: &str, status: ExitStatus, last_lines: &str) -> Error {
    let said = if last_lines.is_empty() { "it said nothing on stderr" } else { last_lines };
    let text = format!("{verb} failed ({status}): {said}");
    match status.code() {
        Some(EX_UNAVAILABLE) => Error::Unreachable(text),
        Some(EX_TEMPFAIL) => Error::Conflict(text),
        Some(EX_NOINPUT) => Error::Missing(text),
        Some(EX_USAGE | EX_CONFIG) => Error::Invalid(text),
        _ => Error::Failed(text),
    }
}

struct Running {
    child: Child,
    output: Vec<u8>,
    errors: VecDeque<u8>,
}

impl Running {
    fn new(child: Child) -> Self {
        Self { child, output: Vec::new(), errors: VecDeque::new() }
    }

    /// Its end is that of its first process: what it leaves running in the background may hold its
    /// output open for ever. What the first process wrote is in the pipes by then.
    async fn until_ended(&mut self, input: &[u8]) -> Result<ExitStatus, String> {
        let taken = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = taken else {
            return Err("has no pipes".to_owned());
        };
        let write = async {
            // A program that does not care for its input may close it.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            std::future::pending::<()>().await;
        };
        let status = {
            let (output, errors) = (&mut self.output, &mut self.errors);
            tokio::select! {
                biased;
                wrong = read_all(&mut stdout, |bytes| keep(output, bytes)) => return Err(wrong),
                wrong = read_all(&mut stderr, |bytes| keep_last(errors, bytes)) => return Err(wrong),
                status = self.child.wait() => status.map_err(|e| format!("cannot be waited for: {e}"))?,
                () = write => return Err("has no end".to_owned()),
            }
        };
        rest(&stdout, |bytes| keep(&mut self.output, bytes))?;
        rest(&stderr, |bytes| keep_last(&mut self.errors, bytes))?;
        Ok(status)
    }

    /// Not yet waited for, so the number still is that of its group.
    async fn kill(&mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL); // gone is as good
        }
        let _ = self.child.wait().await;
    }

    fn last_lines(&self) -> String {
        let bytes: Vec<u8> = self.errors.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(ERROR_LINES)..].join(" | ");
        last.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
    }
}

/// Ends only when something is wrong; at the end of the file it waits for the process.
async fn read_all(
    from: &mut (impl AsyncRead + Unpin),
    mut keep: impl FnMut(&[u8]) -> Result<(), String>,
) -> String {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return std::future::pending().await,
            Ok(length) => {
                if let Err(wrong) = keep(&buffer[..length]) {
                    return wrong;
                }
            }
            Err(error) => return format!("cannot be read: {error}"),
        }
    }
}

/// What is in a pipe now; its descriptor does not block.
fn rest(from: &impl AsFd, mut keep: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Ok(length) => keep(&buffer[..length])?,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("cannot be read: {error}")),
        }
    }
}

fn keep(output: &mut Vec<u8>, bytes: &[u8]) -> Result<(), String> {
    if OUTPUT_MAX < output.len() + bytes.len() {
        return Err(format!("printed more than {OUTPUT_MAX} bytes and was killed"));
    }
    output.extend_from_slice(bytes);
    Ok(())
}

fn keep_last(errors: &mut VecDeque<u8>, bytes: &[u8]) -> Result<(), String> {
    errors.extend(bytes);
    errors.drain(..errors.len().saturating_sub(ERRORS_MAX));
    Ok(())
}
