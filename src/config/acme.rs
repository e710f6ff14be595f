//! `[acme]`: certificates that come and renew by themselves. Its shape, what it means, and what can
//! be wrong with it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Listen;
use crate::route::{
    canonical_host,
    source::Findings,
    text::{AddressText, DurationText, duration},
};

const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";
const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
/// Names in one list; each is an order of its own.
const HOSTS_MAX: usize = 1000;

/// `[acme]`: certificates that come and renew by themselves. To write this table is to agree to the
/// terms of service of the directory. What is left out here is not done: without `hosts` and
/// `on_demand` nothing is ordered.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AcmeTable {
    /// The ACME server: `"production"` or `"staging"` of Let's Encrypt, or the `https://` address
    /// of a directory.
    pub(crate) directory: String,
    /// Mail addresses that the server may write to. They are in no log.
    pub(crate) contact: Vec<String>,
    /// The authority that signed the server's own certificate, a PEM file: whom to trust beside
    /// those that the system trusts.
    pub(crate) ca_file: Option<PathBuf>,
    /// The names to have a certificate for, each its own; `*.example.com` by dns-01 alone.
    pub(crate) hosts: Vec<String>,
    /// Order also for a host that has no certificate when a client asks for it, if a route matches
    /// the host. A pattern such as `{session}.example.com` matches any label: prefer a wildcard.
    pub(crate) on_demand: bool,
    /// The most certificates ordered on demand in an hour, renewals not counted.
    #[schemars(range(min = 1))]
    pub(crate) on_demand_rate: u32,
    /// The most hosts that have a certificate on demand, or wait for one.
    #[schemars(range(min = 1))]
    pub(crate) on_demand_max: u32,
    /// How to show that a host is ours; a wildcard is always shown by `dns-01`.
    pub(crate) challenge: ChallengeWord,
    /// How long to wait after a failure; twice as long after each further one, up to 12 hours. The
    /// server's own `Retry-After` counts, too.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub(crate) retry: Duration,
    /// For dns-01: a command (no shell) that sets and clears a TXT record. In its arguments
    /// `{action}` is `set` or `clear`, `{name}` the record (`_acme-challenge.example.com`), `{value}`
    /// its text. Exit status 0 says that it is done.
    pub(crate) dns_hook: Option<Vec<String>>,
    /// The most time for one run of `dns_hook`, or for one DNS update; what takes longer is ended.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub(crate) dns_timeout: Duration,
    /// How long a record that was set takes to be seen everywhere, before the server is told to
    /// look.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub(crate) dns_wait: Duration,
    /// For dns-01 without a command: DNS updates (RFC 2136), signed with TSIG.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns_update: Option<DnsUpdateTable>,
}

/// `[acme.dns_update]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DnsUpdateTable {
    /// The primary server of the zone: `ADDRESS:PORT`. Asked over TCP.
    pub(crate) server: AddressText,
    /// The zone that the records are in.
    pub(crate) zone: String,
    /// The TSIG key's name.
    pub(crate) key_name: String,
    /// A file that holds the TSIG key's secret in base64, and nothing else.
    pub(crate) key_file: PathBuf,
    /// The TSIG key's algorithm.
    #[serde(default)]
    pub(crate) algorithm: TsigWord,
}

/// How a host is shown to be ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ChallengeWord {
    /// A file on port 80: `listen.http` must be reachable there.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate on port 443: `listen.https` must be reachable there.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// A TXT record.
    #[serde(rename = "dns-01")]
    Dns01,
}

/// The algorithm of a TSIG key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TsigWord {
    /// HMAC with SHA-256.
    #[default]
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// HMAC with SHA-384.
    #[serde(rename = "hmac-sha384")]
    HmacSha384,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512")]
    HmacSha512,
}

impl Default for AcmeTable {
    fn default() -> Self {
        Self {
            directory: "production".to_owned(),
            contact: Vec::new(),
            ca_file: None,
            hosts: Vec::new(),
            on_demand: false,
            on_demand_rate: 20,
            on_demand_max: 1000,
            challenge: ChallengeWord::default(),
            retry: Duration::from_secs(5 * 60),
            dns_hook: None,
            dns_timeout: Duration::from_secs(2 * 60),
            dns_wait: Duration::from_secs(5),
            dns_update: None,
        }
    }
}

/// `[acme]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The directory's address.
    pub directory: String,
    /// `mailto:` addresses.
    pub contact: Vec<String>,
    /// Who signed the server's certificate, when the system does not trust it.
    pub ca_file: Option<PathBuf>,
    /// The names that always have a certificate: canonical, or `*.` and a canonical host.
    pub hosts: Vec<String>,
    /// Whether clients may cause orders, and how many.
    pub on_demand: Option<OnDemand>,
    /// How a name is shown to be ours, unless it is a wildcard.
    pub challenge: ChallengeWord,
    /// The wait after a first failure.
    pub retry: Duration,
    /// Who sets TXT records.
    pub dns: Option<Dns>,
}

impl Acme {
    /// The folder of this server in the `state` folder: what one server gave is never shown as
    /// another's.
    pub fn folder(&self, state: &Path) -> PathBuf {
        state.join("acme").join(server_name(&self.directory))
    }
}

/// The limits of what clients may cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDemand {
    /// Orders in an hour.
    pub rate: u32,
    /// Hosts in all.
    pub max: u32,
}

/// Who sets TXT records, and how long that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// By which means.
    pub by: DnsBy,
    /// The most time for one change.
    pub timeout: Duration,
    /// From a change until it is seen.
    pub wait: Duration,
}

/// By which means TXT records are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsBy {
    /// The operator's command and its arguments. Not empty.
    Hook(Vec<String>),
    /// RFC 2136.
    Update(DnsUpdate),
}

/// Where DNS updates go, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsUpdate {
    /// The primary server.
    pub server: SocketAddr,
    /// The zone, canonical.
    pub zone: String,
    /// The TSIG key's name, canonical.
    pub key_name: String,
    /// Where its secret is.
    pub key_file: PathBuf,
    /// Its algorithm.
    pub algorithm: TsigWord,
}

/// What `[acme]` means; what is wrong with it goes to `found`.
pub(super) fn check(
    table: AcmeTable,
    listen: &Listen,
    base: &Path,
    found: &mut Findings<'_>,
) -> Acme {
    let mut check = Check { base, found };
    let directory = check.directory(&table.directory);
    let contact = check.contact(&table.contact);
    let hosts = check.hosts(&table.hosts);
    for (key, limit) in
        [("on_demand_rate", table.on_demand_rate), ("on_demand_max", table.on_demand_max)]
    {
        if limit == 0 {
            check.found.value(&["acme", key], format!("`{key}` starts at 1"));
        }
    }
    for (key, time) in [("retry", table.retry), ("dns_timeout", table.dns_timeout)] {
        if time.is_zero() {
            check.found.value(&["acme", key], format!("`{key}` must be more than nothing"));
        }
    }
    check.listens(&table, listen);
    let dns = check.dns(&table);
    check.needs_dns(&table, dns.is_some());
    let on_demand = OnDemand { rate: table.on_demand_rate, max: table.on_demand_max };
    Acme {
        directory,
        contact,
        ca_file: table.ca_file.map(|path| base.join(path)),
        hosts,
        on_demand: table.on_demand.then_some(on_demand),
        challenge: table.challenge,
        retry: table.retry,
        dns,
    }
}

struct Check<'a, 's> {
    base: &'a Path,
    found: &'a mut Findings<'s>,
}

impl Check<'_, '_> {
    fn directory(&mut self, word: &str) -> String {
        match word {
            "production" => PRODUCTION.to_owned(),
            "staging" => STAGING.to_owned(),
            url => {
                let is_https = url.parse::<http::Uri>().is_ok_and(|uri| {
                    uri.scheme_str() == Some("https")
                        && uri
                            .authority()
                            .is_some_and(|authority| !authority.as_str().contains('@'))
                });
                if !is_https {
                    self.found.value(&["acme", "directory"], "not an ACME directory").hint =
                        Some("expected \"production\", \"staging\" or an https:// address".into());
                }
                url.to_owned()
            }
        }
    }

    fn listens(&mut self, table: &AcmeTable, listen: &Listen) {
        if listen.https.is_empty() {
            let wrong = "nobody would be shown the certificates: there is no listen.https";
            self.found.key(&["acme"], wrong).hint = Some("set listen.https".into());
        }
        if listen.http.is_empty() && table.challenge == ChallengeWord::Http01 {
            self.found.value(&["acme", "challenge"], "http-01 needs listen.http").hint =
                Some("set listen.http, or challenge = \"tls-alpn-01\"".into());
        }
    }

    fn contact(&mut self, contact: &[String]) -> Vec<String> {
        for (index, address) in contact.iter().enumerate() {
            let is_mail = address.split_once('@').is_some_and(|(who, host)| {
                !who.is_empty() && !who.contains(':') && canonical_host(host).is_some()
            });
            if !is_mail {
                let path = ["acme", "contact", &index.to_string()];
                self.found.value(&path, "not a mail address").hint =
                    Some("expected ops@example.com".into());
            }
        }
        contact.iter().map(|address| format!("mailto:{address}")).collect()
    }

    fn hosts(&mut self, hosts: &[String]) -> Vec<String> {
        if HOSTS_MAX < hosts.len() {
            self.found.value(&["acme", "hosts"], format!("more than {HOSTS_MAX} hosts"));
        }
        let mut known = BTreeSet::new();
        for (index, host) in hosts.iter().enumerate() {
            let path = ["acme", "hosts", &index.to_string()];
            if !is_name(host) {
                self.found.value(&path, format!("`{host}` can have no certificate")).hint =
                    Some("expected a host in lower case, or `*.` and a host".into());
            } else if !known.insert(host) {
                self.found.value(&path, format!("`{host}` stands here twice"));
            }
        }
        hosts.to_vec()
    }

    fn dns(&mut self, table: &AcmeTable) -> Option<Dns> {
        let by = match (&table.dns_hook, &table.dns_update) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                let wrong = "either `dns_hook` or `[acme.dns_update]`, not both";
                self.found.key(&["acme", "dns_hook"], wrong);
                return None;
            }
            (Some(command), None) => self.hook(command),
            (None, Some(update)) => self.update(update),
        };
        Some(Dns { by, timeout: table.dns_timeout, wait: table.dns_wait })
    }

    fn hook(&mut self, command: &[String]) -> DnsBy {
        let has = |mark: &str| command.iter().skip(1).any(|argument| argument.contains(mark));
        if command.first().is_none_or(String::is_empty) {
            self.found.value(&["acme", "dns_hook"], "no command");
        } else if !["{action}", "{name}", "{value}"].into_iter().all(has) {
            self.found.value(&["acme", "dns_hook"], "the command is not told what to do").hint =
                Some("its arguments need `{action}`, `{name}` and `{value}`".into());
        }
        DnsBy::Hook(command.to_vec())
    }

    fn update(&mut self, update: &DnsUpdateTable) -> DnsBy {
        let mut name = |key: &str, text: &str| {
            let canonical = canonical_host(text).unwrap_or_default().into_owned();
            if canonical.is_empty() || canonical.starts_with('[') {
                let path = ["acme", "dns_update", key];
                self.found.value(&path, format!("`{text}` is no name of DNS"));
            }
            canonical
        };
        DnsBy::Update(DnsUpdate {
            server: update.server.0,
            zone: name("zone", &update.zone),
            key_name: name("key_name", &update.key_name),
            key_file: self.base.join(&update.key_file),
            algorithm: update.algorithm,
        })
    }

    fn needs_dns(&mut self, table: &AcmeTable, has_dns: bool) {
        let wildcard = table.hosts.iter().position(|host| host.starts_with("*."));
        let (wrong, index) = match wildcard {
            _ if has_dns || table.dns_hook.is_some() => return,
            _ if table.challenge == ChallengeWord::Dns01 => ("dns-01 needs a way into DNS", None),
            Some(index) => ("a wildcard needs dns-01, and that a way into DNS", Some(index)),
            None => return,
        };
        let index = index.map(|index| index.to_string());
        let path = match &index {
            Some(index) => vec!["acme", "hosts", index],
            None => vec!["acme", "challenge"],
        };
        self.found.value(&path, wrong).hint = Some("set acme.dns_hook or [acme.dns_update]".into());
    }
}

/// `acme.example.com-1a2b3c4d`: to be found by people, and different for every address.
fn server_name(directory: &str) -> String {
    let host = directory.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    let digest = Sha256::digest(directory);
    let mark: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    // An IPv6 address comes in brackets and with colons.
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '.';
    let host = host.unwrap_or_default().replace(|letter| !plain(letter), "_");
    format!("{host}-{mark}")
}

/// What a certificate can be had for: a DNS name of more than one label, or a wildcard of one.
pub(crate) fn is_name(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    let is_address = host.parse::<std::net::Ipv4Addr>().is_ok();
    canonical_host(host).is_some_and(|canonical| *canonical == *host)
        && host.contains('.')
        && !host.contains('_')
        && !is_address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_has_a_folder_of_its_own() {
        assert_ne!(server_name("https://a.test/dir"), server_name("https://a.test/other"));
        assert!(server_name("https://[::1]:14000/dir").starts_with("___1_-"));
    }

    #[test]
    fn a_certificate_is_for_a_name_of_dns() {
        for name in ["a.test", "*.a.test", "xn--bcher-kva.example", "1.example"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "*", "test", "*.test", "*.*.a.test", "A.test", "a_b.test", "a.test."] {
            assert!(!is_name(name), "{name}");
        }
        for name in ["127.0.0.1", "[::1]", "a.test:80", "a..test", "-a.test"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
