//! The command line: arguments → command → exit code.
//!
//! Commands that ask a running edge speak to its admin API like anybody else; none of them knows
//! the fleet. Data goes to stdout, everything else to stderr.

mod cert;
mod check;
mod client;
mod exit;
mod explain;
mod link;
mod reload;
mod run;
mod sessions;

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tokio::runtime;

use crate::{demo, schema::SchemaFile};
use exit::{Exit, Failure, Outcome, print};

/// An edge reverse proxy that wakes a session's machine on the first request, and puts it to sleep
/// when nobody is there.
///
/// Every session (a desktop, an IDE, a sandbox, a preview) has its own host and its own machine.
/// dormouse.toml says where the edge listens and what can run machines; each file in routes/ says
/// which hosts there are, what runs for them and when it sleeps.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, after_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Examples:
  dormouse run                                     serve
  dormouse check                                   are my files right?
  dormouse explain http://alice.localhost:8080/    what would this URL get?
  dormouse sessions                                what is awake, and until when?
  dormouse wake alice.localhost                    warm one up
  dormouse cert dev                                HTTPS on this machine

Exit codes:
  0  done
  1  failed: the engine, the network or the edge could not do it
  2  wrong usage, or an error in a file that you wrote
  3  the edge cannot be reached
  4  no such session, or no such route
  5  refused for now: in use, cooling down, full";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Explain(explain::Explain),
    Sessions(sessions::Sessions),
    Wake(sessions::Wake),
    Sleep(sessions::Sleep),
    Link(link::Link),
    Reload(reload::Reload),
    Cert(cert::Cert),
    Schema(PrintSchema),
    Completions(Completions),
    DemoSession(demo::DemoSession),
}

/// Prints the JSON Schema of a kind of file, for editors.
#[derive(Debug, Args)]
#[command(after_help = "\
Put `#:schema PATH` into the first line of a file, and editors that know it (Taplo, Even Better
TOML) complete and check as you type.

Examples:
  dormouse schema route > route.schema.json")]
struct PrintSchema {
    /// dormouse: dormouse.toml. route: the files in routes/.
    kind: SchemaKind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemaKind {
    Dormouse,
    Route,
}

/// Prints shell completions.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse completions bash > /etc/bash_completion.d/dormouse
  dormouse completions zsh > ~/.zfunc/_dormouse
  dormouse completions fish > ~/.config/fish/completions/dormouse.fish")]
struct Completions {
    /// Which shell.
    shell: Shell,
}

/// Does what the command line says. Wrong usage and `--help` end the process by themselves.
pub fn main() -> ExitCode {
    let exit = match run(Cli::parse().command) {
        Ok(()) => Exit::Done,
        Err(failure) => failure.tell(),
    };
    exit.into()
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
        Command::Explain(explain) => ask(explain.run()),
        Command::Sessions(sessions) => ask(sessions.run()),
        Command::Wake(wake) => ask(wake.run()),
        Command::Sleep(sleep) => ask(sleep.run()),
        Command::Link(link) => ask(link.run()),
        Command::Reload(reload) => ask(reload.run()),
        Command::Cert(cert) => cert.run(),
        Command::Schema(PrintSchema { kind: SchemaKind::Dormouse }) => {
            print(&SchemaFile::Dormouse.text())
        }
        Command::Schema(PrintSchema { kind: SchemaKind::Route }) => {
            print(&SchemaFile::Route.text())
        }
        Command::Completions(Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dormouse", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::DemoSession(demo) => serve_demo(demo),
    }
}

/// For one question at a time, one thread is enough.
fn ask(question: impl Future<Output = Outcome>) -> Outcome {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, error))?.block_on(question)
}

fn serve_demo(demo: demo::DemoSession) -> Outcome {
    let runtime = runtime::Runtime::new().map_err(|error| Failure::new(Exit::Failed, error))?;
    let served = runtime.block_on(demo::serve(demo));
    served.map_err(|error| Failure::new(Exit::Failed, format!("{error:#}")))
}
