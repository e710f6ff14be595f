//! The operator's command: no shell, a process group of its own, and an end that it cannot miss.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::{Action, Error, Record};

/// A running command. Dropped, with all that it started, it is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // `None` once it was waited for: then the number may be another's.
        let pid = self.0.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            // Gone already is what was wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

pub(super) async fn run(command: &[String], action: Action, record: &Record) -> Result<(), Error> {
    let fill = |argument: &String| {
        // Neither name nor value can hold a brace.
        argument
            .replace("{action}", action.as_str())
            .replace("{name}", &record.name)
            .replace("{value}", &record.value)
    };
    let (program, arguments) = command.split_first().ok_or(Error::NoHook(no_command()))?;
    let child = Command::new(program)
        .args(arguments.iter().map(fill))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::NoHook)?;
    let mut running = Running(child);
    let status = running.0.wait().await.map_err(Error::NoHook)?;
    if status.success() { Ok(()) } else { Err(Error::HookFailed(status)) }
}

fn no_command() -> std::io::Error {
    std::io::ErrorKind::InvalidInput.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::acme::dns::{By, Dns};

    fn hook(script: &str) -> Dns {
        let command = ["/bin/sh", "-c", script, "hook", "{action}", "{name}", "{value}"];
        let by = By::Hook(command.map(str::to_owned).to_vec());
        Dns { by, timeout: Duration::from_secs(20), wait: Duration::ZERO }
    }

    #[tokio::test]
    async fn the_command_is_told_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let said = folder.path().join("said");
        let dns = hook(&format!("echo \"$@\" >> {}", said.display()));
        let record = dns.set("a.test", "v $(touch x)".to_owned()).await.expect("it is set");
        dns.clear(record).await;
        let said = std::fs::read_to_string(said).expect("it ran");
        assert_eq!(
            said,
            "set _acme-challenge.a.test v $(touch x)\nclear _acme-challenge.a.test v $(touch x)\n"
        );
    }

    #[tokio::test]
    async fn a_command_that_fails_has_failed() {
        let error = hook("exit 3").set("a.test", String::new()).await.expect_err("it fails");
        assert!(matches!(error, Error::HookFailed(status) if status.code() == Some(3)));
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid_file = folder.path().join("pid");
        // The inner process makes itself known, then waits for ever.
        let mut dns = hook(&format!("sleep 1000 & echo $! > {}; wait", pid_file.display()));
        dns.timeout = Duration::from_millis(500);
        let error = dns.set("a.test", String::new()).await.expect_err("it hangs");
        assert!(matches!(error, Error::TimedOut), "{error}");
        let pid = std::fs::read_to_string(pid_file).expect("it ran");
        let stat = format!("/proc/{}/stat", pid.trim());
        // Killed at once; its parent, init, collects it when it likes.
        let mut runs = true;
        for _ in 0..2000 {
            runs = std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
            if !runs {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!runs, "{stat} still runs");
    }
}
