//! How a session is brought back to sleep between two samples. Never part of what is measured.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::{process::Command, time::timeout};

use crate::{admin::Admin, client::Fault, target::Place, text::Span};

/// The ways back; at most one of them for each server.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResetArgs {
    /// Dormouse's admin API: http://ADDRESS:PORT or unix:/PATH.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// The file with the admin API's token.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// How deep it sleeps, where the admin API puts it to sleep: paused, stopped, removed …
    #[arg(long, default_value = "stopped", value_name = "DEPTH")]
    pub depth: String,
    /// A command that puts a session to sleep and returns when it is, such as
    /// `docker stop {host}`; an n in braces is its number, and no shell is involved.
    #[arg(long, value_name = "COMMAND")]
    pub reset_command: Option<String>,
    /// Just wait this long: it sleeps by itself.
    #[arg(long, value_name = "DURATION")]
    pub reset_wait: Option<Span>,
    /// How long the way back may take.
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    pub reset_timeout: Span,
    /// The same for a server of --compare: `NAME=admin:URL`, `NAME=wait:DURATION` or
    /// `NAME=command:COMMAND`.
    #[arg(long, value_name = "NAME=HOW")]
    pub compare_reset: Vec<String>,
}

/// One server's way back.
#[derive(Clone, Debug)]
pub struct Reset {
    how: How,
    limit: Duration,
}

#[derive(Clone, Debug)]
enum How {
    Nothing,
    Admin(Admin, String),
    Command(Vec<String>),
    Wait(Duration),
}

impl ResetArgs {
    /// The target's own way.
    pub fn own(&self, owned: bool) -> anyhow::Result<Reset> {
        let ways = [self.admin.is_some(), self.reset_command.is_some(), self.reset_wait.is_some()];
        ensure!(
            ways.iter().filter(|way| **way).count() <= 1,
            "one of --admin, --reset-command and --reset-wait, not several"
        );
        let how = if let Some(url) = &self.admin {
            let admin = Admin::new(url, self.admin_token_file.as_deref(), owned)?;
            How::Admin(admin, self.depth.clone())
        } else if let Some(command) = &self.reset_command {
            How::Command(words(command)?)
        } else {
            self.reset_wait.map_or(How::Nothing, |span| How::Wait(span.0))
        };
        Ok(Reset { how, limit: self.reset_timeout.0 })
    }

    /// The way of the server that is called `name`.
    pub fn of(&self, name: &str, owned: bool) -> anyhow::Result<Reset> {
        let mut how = How::Nothing;
        for text in &self.compare_reset {
            let (of, way) = text.split_once('=').context("--compare-reset is NAME=HOW")?;
            if of != name {
                continue;
            }
            how = match way.split_once(':') {
                Some(("admin", url)) => {
                    let admin = Admin::new(url, self.admin_token_file.as_deref(), owned)?;
                    How::Admin(admin, self.depth.clone())
                }
                Some(("wait", span)) => {
                    How::Wait(span.parse::<Span>().map_err(anyhow::Error::msg)?.0)
                }
                Some(("command", command)) => How::Command(words(command)?),
                _ => bail!("`{way}` is none of admin:URL, wait:DURATION, command:COMMAND"),
            };
        }
        Ok(Reset { how, limit: self.reset_timeout.0 })
    }
}

impl Reset {
    /// The admin API, where that is the way.
    pub fn admin(&self) -> Option<(&Admin, &str)> {
        if let How::Admin(admin, depth) = &self.how { Some((admin, depth)) } else { None }
    }

    /// Whether there is a way at all.
    pub fn is_none(&self) -> bool {
        matches!(self.how, How::Nothing)
    }

    /// Whether the admin API, where that is the way, answers.
    pub async fn check(&self) -> anyhow::Result<()> {
        match self.admin() {
            Some((admin, _)) => admin.check().await,
            None => Ok(()),
        }
    }

    /// Brings session `n` back to sleep.
    pub async fn reset(&self, place: &Place, n: usize) -> Result<(), Fault> {
        match &self.how {
            How::Nothing => Ok(()),
            How::Admin(admin, depth) => admin.sleep(&place.host, depth, self.limit).await,
            How::Wait(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
            How::Command(command) => {
                let fill_in = |word: &String| {
                    word.replace("{host}", &place.host).replace("{n}", &n.to_string())
                };
                let words: Vec<_> = command.iter().map(fill_in).collect();
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).kill_on_drop(true).stdin(std::process::Stdio::null());
                let failed = |why: String| Fault::NotReset(format!("{}: {why}", words[0]));
                match timeout(self.limit, command.output()).await {
                    Err(_) => Err(failed(format!("not in {:?}", self.limit))),
                    Ok(Err(error)) => Err(failed(error.to_string())),
                    Ok(Ok(ran)) if !ran.status.success() => Err(failed(ran.status.to_string())),
                    Ok(Ok(_)) => Ok(()),
                }
            }
        }
    }
}

/// A command line as words, by a shell's rules of quoting.
pub fn words(command: &str) -> anyhow::Result<Vec<String>> {
    let words = shlex::split(command).with_context(|| format!("`{command}`: a quote is open"))?;
    ensure!(!words.is_empty(), "a command is empty");
    Ok(words)
}
