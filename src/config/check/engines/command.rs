//! `[engines.NAME.command]` becomes a [`CommandConfig`].

use std::time::Duration;

use super::{Check, EngineTable};
use crate::{
    config::{CommandConfig, engines::CommandTable},
    session::Depth::{self, Paused, Removed, Stopped, Suspended},
};

const POLL: Duration = Duration::from_secs(10);
const POLL_MIN: Duration = Duration::from_secs(1);
const POLL_MAX: Duration = Duration::from_secs(3600);
const AT_ONCE: u16 = 8;
const AT_ONCE_MAX: u16 = 1024;

impl Check<'_> {
    pub(super) fn command(&mut self, name: &str, mut table: EngineTable) -> CommandConfig {
        let owner = self.owner(name, &table);
        let call_timeout = self.call_timeout(name, &table);
        let is_given = table.command.is_some();
        let table = table.command.take().unwrap_or(CommandTable {
            run: Vec::new(),
            depths: None,
            environment: None,
            at_once: None,
            poll: None,
        });
        let path = |key| ["engines", name, "command", key];
        if table.run.first().is_none_or(String::is_empty) {
            let at = if is_given { &path("run")[..] } else { &["engines", name] };
            self.found.value(at, "nothing says which program to run").hint = Some(format!(
                "for example, under [engines.{name}.command]: run = [\"./engines/wake-on-lan.sh\"]"
            ));
        }
        let depths: Vec<Depth> = table
            .depths
            .map_or(vec![Stopped], |words| words.into_iter().map(Depth::from).collect());
        if !depths.contains(&Stopped) {
            self.found.value(&path("depths"), "`depths` needs \"stopped\"");
        }
        let at_once = table.at_once.unwrap_or(AT_ONCE);
        if !(1..=AT_ONCE_MAX).contains(&at_once) {
            let wrong = format!("`at_once` goes from 1 to {AT_ONCE_MAX}");
            self.found.value(&path("at_once"), wrong);
        }
        let poll = table.poll.map_or(POLL, |poll| poll.0);
        if !(POLL_MIN..=POLL_MAX).contains(&poll) {
            self.found.value(&path("poll"), "`poll` goes from \"1s\" to \"1h\"");
        }
        let environment = table.environment.unwrap_or_default();
        for (index, _) in environment
            .iter()
            .enumerate()
            .filter(|(_, name)| name.is_empty() || name.contains(['=', '\0']))
        {
            let path = ["engines", name, "command", "environment", &index.to_string()];
            self.found.value(&path, "no name of an environment variable");
        }
        let depths = in_order(&depths);
        let at_once = usize::from(at_once);
        CommandConfig { run: table.run, depths, environment, call_timeout, at_once, poll, owner }
    }
}

/// Lightest first, with `stopped`.
fn in_order(depths: &[Depth]) -> &'static [Depth] {
    let has = |depth| depths.contains(&depth);
    match (has(Paused), has(Suspended), has(Removed)) {
        (false, false, false) => &[Stopped],
        (false, false, true) => &[Stopped, Removed],
        (false, true, false) => &[Suspended, Stopped],
        (false, true, true) => &[Suspended, Stopped, Removed],
        (true, false, false) => &[Paused, Stopped],
        (true, false, true) => &[Paused, Stopped, Removed],
        (true, true, false) => &[Paused, Suspended, Stopped],
        (true, true, true) => &[Paused, Suspended, Stopped, Removed],
    }
}
