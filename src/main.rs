//! The `dormouse` command.

use std::path::PathBuf;

use clap::Parser;

/// An edge reverse proxy that wakes a session's machine on the first request.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    DemoSession(dormouse::demo::DemoSession),
    Run {
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long)]
        upgrade: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::DemoSession(demo) => {
            tokio::runtime::Runtime::new()?.block_on(dormouse::demo::serve(demo))
        }
        Command::Run { config, upgrade } => {
            tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::new(std::env::var("RUST_LOG").unwrap_or("info,pingora_proxy=off,pingora_core=warn".into()))).init();
            let config = dormouse::config::Config::load(config.as_deref()).map_err(|e| anyhow::anyhow!("{e:?}"))?;
            dormouse::app::run(config, upgrade)
        }
    }
}
