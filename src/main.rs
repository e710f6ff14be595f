//! The `dormouse` command.

use clap::Parser;

/// An edge reverse proxy that wakes a session's machine on the first request.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    DemoSession(dormouse::demo::DemoSession),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::DemoSession(demo) => dormouse::demo::serve(demo).await,
    }
}
