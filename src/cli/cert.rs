//! `dormouse cert dev`: a local authority and a certificate by it, so that HTTPS works on a laptop.

use std::{collections::BTreeSet, path::PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    check,
    exit::{Exit, Failure, Outcome, print, print_json, short},
};
use crate::{
    certs::mint_dev,
    route::{HostPattern, RouteTable, canonical_host},
};

/// Certificates.
#[derive(Clone, Debug, Args)]
pub(super) struct Cert {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum CertCommand {
    Dev(Dev),
}

/// Mints a local authority and a certificate by it, for development.
///
/// The authority stays in the state folder; the certificate comes into the folder of certificates,
/// from where a running edge serves it at once. What is there already stays, unless it ends soon or
/// is for other hosts.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse cert dev                               for the routes' hosts and *.localhost
  dormouse cert dev '*.desk.test' ide.test        for these
  curl --cacert state/dev-ca/ca.pem https://alice.localhost:8443/")]
struct Dev {
    /// The hosts: names, or *.NAME for every name one label longer [default: those of the routes,
    /// and *.localhost].
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// The edge's settings [default: ./dormouse.toml, or the defaults where there is no such file].
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Print {authority, new_authority, certificate, new, hosts} as JSON.
    #[arg(long)]
    json: bool,
}

/// `cert dev --json`.
#[derive(Serialize)]
struct Minted {
    authority: String,
    new_authority: bool,
    certificate: String,
    new: bool,
    hosts: Vec<String>,
}

impl Cert {
    pub(super) fn run(self) -> Outcome {
        let CertCommand::Dev(dev) = self.command;
        dev.run()
    }
}

impl Dev {
    fn run(self) -> Outcome {
        let (config, table) = check::load(self.config.as_deref(), &[])
            .map_err(|errors| Failure::of_files(&errors))?;
        let hosts = if self.hosts.is_empty() { hosts_of(&table) } else { named(self.hosts)? };
        let minted = mint_dev(&config.paths.certs, &config.paths.state, &hosts)
            .map_err(|error| Failure::new(Exit::Failed, error))?;
        let (authority, certificate) = (short(&minted.authority), short(&minted.file));
        if self.json {
            return print_json(&Minted {
                authority: minted.authority.display().to_string(),
                new_authority: minted.new_authority,
                certificate: minted.file.display().to_string(),
                new: minted.new,
                hosts,
            });
        }
        let what = if minted.new { "minted" } else { "is still good" };
        let mut text = format!("{certificate} {what}: {}", hosts.join(", "));
        if config.listen.https.is_empty() {
            text += "\nnothing listens for HTTPS yet: add https = [\"127.0.0.1:8443\"] to [listen]";
        }
        print(&(text + &trust(&authority)))
    }
}

/// How to trust the authority.
fn trust(authority: &str) -> String {
    format!(
        "\ntrust its authority where you need it, and nowhere else:\n\
         \x20 curl --cacert {authority} https://…\n\
         \x20 Debian, Ubuntu: sudo cp {authority} /usr/local/share/ca-certificates/dormouse-dev.crt \
         && sudo update-ca-certificates\n\
         \x20 macOS: sudo security add-trusted-cert -d -r trustRoot \
         -k /Library/Keychains/System.keychain {authority}\n\
         \x20 Firefox: Settings, Certificates, Authorities, Import"
    )
}

fn named(hosts: Vec<String>) -> Result<Vec<String>, Failure> {
    let canonical = |host: String| {
        let (star, name) = match host.strip_prefix("*.") {
            Some(name) => ("*.", name),
            None => ("", &*host),
        };
        let name = canonical_host(name).filter(|name| !name.starts_with('['));
        let wrong = || Failure::new(Exit::Usage, format!("`{host}` is no host for a certificate"));
        Ok(format!("{star}{}", name.ok_or_else(wrong)?))
    };
    hosts.into_iter().map(canonical).collect()
}

/// Names that cover what the routes serve, as far as one star can.
fn hosts_of(table: &RouteTable) -> Vec<String> {
    let mut hosts = BTreeSet::from(["*.localhost".to_owned()]);
    hosts.extend(table.iter().filter_map(|route| covering(&route.host)));
    hosts.into_iter().collect()
}

/// `{session}-ide.example.com` is covered by `*.example.com`; two labels of captures by nothing.
fn covering(host: &HostPattern) -> Option<String> {
    let text = host.as_str();
    let Some(end) = text.rfind('}') else {
        return (!text.starts_with('[')).then(|| text.to_owned());
    };
    let (first, parent) = text.split_once('.')?;
    (end < first.len()).then(|| format!("*.{parent}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_covers_captures_of_the_first_label() {
        let covered = |text: &str| covering(&HostPattern::parse(text).expect("a pattern"));
        for (pattern, name) in [
            ("{session}.desk.test", Some("*.desk.test")),
            ("{session}-ide.desk.test", Some("*.desk.test")),
            ("www.desk.test", Some("www.desk.test")),
            ("{session}.{team}.desk.test", None),
        ] {
            assert_eq!(covered(pattern).as_deref(), name, "{pattern}");
        }
    }

    #[test]
    fn hosts_are_names_and_stars_in_front() {
        let hosts = |hosts: &[&str]| named(hosts.iter().map(|host| (*host).to_owned()).collect());
        assert_eq!(hosts(&["*.A.test", "b.test."]).expect("hosts"), ["*.a.test", "b.test"]);
        for wrong in ["*", "a.*.test", "a b", "", "*."] {
            assert!(hosts(&[wrong]).is_err(), "{wrong}");
        }
    }
}
