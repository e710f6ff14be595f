//! From a spec to a running leader: placeholders, environment, working directory, output.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use process_wrap::std::{CommandWrap, ProcessSession};

use super::family::{ADDRESS, GENERATION, OWNER, ProcessId, SESSION};
use crate::{
    engine::{Error, port::Port},
    session::{Generation, SessionId, Spec},
};

/// What an instance inherits from the edge. All else stays here: it may be a secret.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "USER"];

/// Where the instance is told to listen.
#[derive(Debug)]
pub(super) enum Bind {
    Tcp(Port),
    Unix(PathBuf),
}

impl Bind {
    /// What `{address}` is.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(port) => format!("127.0.0.1:{}", port.number()),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    pub(super) fn into_port(self) -> Option<Port> {
        match self {
            Self::Tcp(port) => Some(port),
            Self::Unix(_) => None,
        }
    }

    fn fill_in(&self, text: &str) -> Result<String, Error> {
        let filled = text.replace("{address}", &self.address());
        match self {
            Self::Tcp(port) => Ok(filled
                .replace("{host}", "127.0.0.1")
                .replace("{port}", &port.number().to_string())),
            Self::Unix(_) if filled.contains("{host}") || filled.contains("{port}") => {
                Err(Error::Invalid(format!(
                    "`{text}`: a unix socket has no {{host}} and no {{port}}: use {{address}}, or \
                     listen = \"tcp\""
                )))
            }
            Self::Unix(_) => Ok(filled),
        }
    }
}

/// Everything that one spawn needs besides the spec.
#[derive(Debug)]
pub(super) struct Spawn<'a> {
    pub(super) session: &'a SessionId,
    pub(super) spec: &'a Spec,
    pub(super) generation: Generation,
    pub(super) owner: &'a str,
    /// Where relative paths begin.
    pub(super) base: &'a Path,
    /// What takes what it prints.
    pub(super) output: &'a File,
    pub(super) bind: &'a Bind,
}

impl Spawn<'_> {
    /// Blocks for as long as the kernel needs to make a process.
    pub(super) fn run(&self) -> Result<ProcessId, Error> {
        let Some((program, arguments)) = self.spec.command.split_first() else {
            return Err(Error::Invalid("the route has no [instance] command".into()));
        };
        let directory = self.directory()?;
        let program = resolve(&self.bind.fill_in(program)?, &directory);
        let arguments: Result<Vec<_>, _> =
            arguments.iter().map(|argument| self.bind.fill_in(argument)).collect();
        if let Bind::Unix(path) = self.bind {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(path, &e)),
                _ => {}
            }
        }
        let output = || {
            let output = self.output.try_clone();
            output.map_err(|e| Error::Failed(format!("no descriptor is left: {e}")))
        };

        let mut command = Command::new(&program);
        command
            .args(arguments?)
            .current_dir(&directory)
            .env_clear()
            .envs(self.environment()?)
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?);
        // A kernel session of its own, not only a group: a group that lies stopped when the edge
        // ends is hung up by the kernel, and a paused instance would be lost with the edge.
        // Test: a_paused_instance_outlives_the_edge.
        let mut command = CommandWrap::from(command);
        command.wrap(ProcessSession);
        let mut child = command.spawn().map_err(|e| explain(&program, &directory, &e))?;
        // It is not reaped yet, so it is there, be it as a zombie.
        if let Some(leader) = i32::try_from(child.id()).ok().and_then(ProcessId::of) {
            return Ok(leader);
        }
        let ended = child.start_kill().and_then(|()| child.wait());
        let left = ended.map_or_else(
            |e| format!(", and process {} is left: {e}", child.id()),
            |_| String::new(),
        );
        Err(Error::Failed(format!("cannot read /proc{left}")))
    }

    fn directory(&self) -> Result<PathBuf, Error> {
        let given = self.spec.process.directory.as_deref().unwrap_or_default();
        let directory = join(self.base, &self.bind.fill_in(given)?);
        if directory.is_dir() {
            return Ok(directory);
        }
        Err(Error::Missing(format!(
            "the working directory {} does not exist: make it, or change [instance.process] \
             directory",
            directory.display()
        )))
    }

    fn environment(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut all = BTreeMap::new();
        for name in INHERITED {
            all.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
        }
        if let Bind::Tcp(port) = self.bind {
            all.insert("PORT".into(), port.number().to_string());
        }
        for (name, value) in &self.spec.env {
            all.insert(name.clone(), self.bind.fill_in(value)?);
        }
        let marks = [
            (OWNER, self.owner.to_owned()),
            (SESSION, self.session.host().to_owned()),
            (GENERATION, self.generation.to_string()),
            (ADDRESS, self.bind.address()),
        ];
        all.extend(marks.map(|(name, value)| (name.to_owned(), value)));
        Ok(all)
    }
}

/// A bare name is looked up in PATH, a path begins in the working directory.
fn resolve(program: &str, directory: &Path) -> PathBuf {
    if program.contains('/') { join(directory, program) } else { PathBuf::from(program) }
}

/// Without the `./` that would make an error message harder to read.
fn join(base: &Path, relative: &str) -> PathBuf {
    base.join(relative).components().collect()
}

fn explain(program: &Path, directory: &Path, error: &io::Error) -> Error {
    let shown = program.display();
    match error.kind() {
        io::ErrorKind::NotFound if program.is_file() => Error::Missing(format!(
            "cannot run {shown}: its interpreter (the first line after #!) or loader is missing"
        )),
        io::ErrorKind::NotFound if program.is_absolute() => Error::Missing(format!(
            "the program {shown} does not exist: correct [instance] command; relative paths begin \
             in {}",
            directory.display()
        )),
        io::ErrorKind::NotFound => Error::Missing(format!(
            "the program {shown} is not in the edge's PATH: install it, or write its path in \
             [instance] command"
        )),
        io::ErrorKind::PermissionDenied => Error::Invalid(format!(
            "{shown} may not be executed by the edge's user: chmod +x, and every folder above it \
             must be open to that user"
        )),
        io::ErrorKind::InvalidInput => Error::Invalid(format!(
            "cannot run {shown}: a zero byte in [instance] command or env: {error}"
        )),
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Error::Conflict(format!(
            "the machine has no room for another process ({shown}): {error}"
        )),
        _ => Error::Failed(format!("cannot run {shown}: {error}")),
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::Failed(format!("{}: {error}", path.display()))
}
