//! Certificates that come by themselves, from a real ACME server: Debian's pebble.

mod named;
mod pebble;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;

use crate::{
    support::{Edge, Setup, blocking, client, free_port, witnessed},
    tls::{HTTPS, Tls, shown},
};
use named::Named;
use pebble::{Dns, Pebble};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Where an edge will listen: pebble must know before.
#[derive(Clone, Copy)]
struct Ports {
    http: SocketAddr,
    https: SocketAddr,
}

impl Ports {
    fn free() -> Self {
        Self { http: free_port(), https: free_port() }
    }

    /// A pebble that looks for this edge, and its DNS.
    fn servers(self, validity: Duration) -> (Dns, Pebble) {
        self.servers_that_reject(0, validity)
    }

    fn servers_that_reject(self, nonces_rejected: u32, validity: Duration) -> (Dns, Pebble) {
        let (http, tls, dns) = (self.http.port(), self.https.port(), Dns::start());
        let address = dns.address;
        let setup = pebble::Setup { http, tls, validity, nonces_rejected, dns: address };
        (dns, Pebble::start(&setup))
    }

    /// An edge with a route for `*.test`.
    fn edge(self, acme: &str) -> Edge {
        let setup = Setup::new().ports(self.http, self.https).listen(HTTPS).config(acme);
        setup.route("demo", &witnessed("", "")).start()
    }
}

/// What the admin API says of a name.
fn name(edge: &Edge, name: &str) -> Value {
    let answer = edge.admin_get("/v1/acme");
    let names = answer["names"].as_array().expect("a list").iter();
    names.into_iter().find(|is| is["name"] == name).cloned().unwrap_or(Value::Null)
}

fn wait_valid(edge: &mut Edge, host: &str) {
    let what = format!("{host} has a certificate");
    edge.wait_until(&what, |edge| {
        let is = name(edge, host);
        is["certificate"] == "valid" && is["phase"] == "resting" && is["failures"] == 0
    });
}

/// `state/acme/SERVER`.
fn folder(edge: &Edge) -> PathBuf {
    let servers: Vec<_> = fs::read_dir(edge.path("state/acme"))
        .expect("state/acme")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(servers.len(), 1, "{servers:?}");
    servers[0].clone()
}

fn certificate(edge: &Edge, stem: &str) -> PathBuf {
    folder(edge).join(format!("certs/{stem}.pem"))
}

/// The names in the certificate in this file, which holds its key, too.
fn names_in(file: &Path) -> Vec<String> {
    let pem = fs::read(file).expect("a certificate");
    PrivateKeyDer::from_pem_slice(&pem).expect("a key");
    let leaf = CertificateDer::from_pem_slice(&pem).expect("a certificate");
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).expect("X.509");
    let names = leaf.subject_alternative_name().expect("readable").expect("there");
    names.value.general_names.iter().map(ToString::to_string).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

fn get(edge: &Edge, host: &str, path: &str) -> (u16, String) {
    let url = edge.url(host, path);
    blocking(async {
        let answer = client().get(url).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    })
}

#[test]
fn a_listed_host_has_a_certificate_by_http_01_and_nobody_was_woken() {
    let ports = Ports::free();
    // As it does by default.
    let (_dns, pebble) = ports.servers_that_reject(5, LONG);
    let acme = pebble.toml() + "hosts = ['a.test']\nretry = '1s'\n";
    let mut edge = ports.edge(&acme);
    // Three refused nonces in a row are a failure.
    edge.announce("no certificate");
    wait_valid(&mut edge, "a.test");
    let file = certificate(&edge, "a.test");
    assert_eq!(names_in(&file), ["DNSName(a.test)"]);
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&edge.path("state/acme")), 0o700);
    assert_eq!(mode(&folder(&edge).join("account.json")), 0o600);
    assert_eq!(edge.starts("a.test"), 0);
    assert_eq!(fs::read_dir(folder(&edge).join("orders")).expect("orders").count(), 0);
    let secret = fs::read_to_string(&file).expect("a key");
    let secret = secret.lines().nth(1).expect("a line of the key");
    assert!(!edge.log().iter().any(|line| line.contains(secret)));
}

#[test]
fn a_challenge_that_nobody_shows_is_no_request_for_a_session() {
    let ports = Ports::free();
    let (_dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + "on_demand = true\n";
    let edge = ports.edge(&acme);
    let (status, _) = get(&edge, "alice.test", "/.well-known/acme-challenge/nothing");
    assert_eq!((status, edge.starts("alice.test"), pebble.orders()), (404, 0, 0));
    let without = Setup::new().route("demo", &witnessed("", "")).start();
    get(&without, "alice.test", "/.well-known/acme-challenge/nothing");
    assert_eq!(without.starts("alice.test"), 1, "without [acme] the path is the instance's");
}

/// The certificate that the edge shows for a host, if it shakes hands.
fn shake(edge: &Edge, pebble: &Pebble, host: &str) -> Option<CertificateDer<'static>> {
    let tls = Tls::trusting(&pebble.root());
    blocking(async { tls.connect(edge, host).await.ok().map(|stream| shown(&stream)) })
}

#[test]
fn a_listed_host_has_a_certificate_by_tls_alpn_01_and_shows_it() {
    let ports = Ports::free();
    let (_dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + "hosts = ['a.test']\nchallenge = 'tls-alpn-01'\n";
    let mut edge = ports.edge(&acme);
    wait_valid(&mut edge, "a.test");
    let leaf = shake(&edge, &pebble, "a.test").expect("a handshake that the client trusts");
    let file = fs::read(certificate(&edge, "a.test")).expect("a certificate");
    assert_eq!(leaf, CertificateDer::from_pem_slice(&file).expect("a certificate"));
    // Pebble looks from several places.
    assert!(1.0 <= edge.metric(&["handshakes_total", "challenge"]));
    assert_eq!(edge.starts("a.test"), 0);
}

#[test]
fn a_client_hello_orders_for_a_routed_host_and_waits_for_the_certificate() {
    let ports = Ports::free();
    let (_dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + "on_demand = true\nchallenge = 'tls-alpn-01'\n";
    let edge = ports.edge(&acme);
    for unknown in ["unknown.example", "a.b.test", "test"] {
        assert!(shake(&edge, &pebble, unknown).is_none(), "{unknown}");
    }
    assert_eq!(pebble.orders(), 0);
    assert!(shake(&edge, &pebble, "alice.test").is_some());
    assert!(shake(&edge, &pebble, "alice.test").is_some());
    assert_eq!(pebble.orders(), 1);
    assert_eq!(edge.starts("alice.test"), 0);
}

#[test]
fn a_wildcard_has_a_certificate_by_dns_01_and_the_hook() {
    let ports = Ports::free();
    let (dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + &dns.hook() + "hosts = ['*.a.test']\n";
    let mut edge = ports.edge(&acme);
    wait_valid(&mut edge, "*.a.test");
    assert_eq!(names_in(&certificate(&edge, "_wildcard.a.test")), ["DNSName(*.a.test)"]);
}

/// A pebble that asks this name server.
fn pebble_by(named: &Named) -> Pebble {
    let setup =
        pebble::Setup { http: 1, tls: 1, validity: LONG, nonces_rejected: 0, dns: named.address };
    Pebble::start(&setup)
}

#[test]
fn a_wildcard_has_a_certificate_by_dns_01_and_signed_updates() {
    let named = Named::start();
    let pebble = pebble_by(&named);
    let acme = pebble.toml() + "hosts = ['*.a.test']\n" + &named.toml("dormouse");
    let mut edge = Ports::free().edge(&acme);
    wait_valid(&mut edge, "*.a.test");
    assert_eq!(names_in(&certificate(&edge, "_wildcard.a.test")), ["DNSName(*.a.test)"]);
    assert!(named.has("test.", "SOA"));
    assert!(!named.has("_acme-challenge.a.test.", "TXT"), "it is cleared");
}

#[test]
fn an_update_by_a_key_that_the_name_server_does_not_know_is_told() {
    let named = Named::start();
    let pebble = pebble_by(&named);
    let acme = pebble.toml() + "hosts = ['*.a.test']\n" + &named.toml("stranger");
    let mut edge = Ports::free().edge(&acme);
    edge.announce("no certificate");
    edge.wait_until("it has failed", |edge| name(edge, "*.a.test")["failures"] == 1);
    let error = name(&edge, "*.a.test")["error"].as_str().expect("text").to_owned();
    assert!(error.contains("the DNS server"), "{error}");
}

#[test]
fn a_certificate_is_renewed_before_it_ends() {
    let ports = Ports::free();
    let (_dns, pebble) = ports.servers(Duration::from_secs(9));
    let acme = pebble.toml() + "hosts = ['a.test']\n";
    let mut edge = ports.edge(&acme);
    edge.announce("ends");
    wait_valid(&mut edge, "a.test");
    let first = fs::read(certificate(&edge, "a.test")).expect("a certificate");
    edge.wait_until("it is renewed", |edge| {
        // Never a moment without one.
        fs::read(certificate(edge, "a.test")).expect("a certificate") != first
    });
    wait_valid(&mut edge, "a.test");
    assert!(2 <= pebble.orders());
}

#[test]
fn while_the_server_is_down_the_certificate_before_stays() {
    let ports = Ports::free();
    let (_dns, mut pebble) = ports.servers(Duration::from_secs(12));
    let acme = pebble.toml() + "hosts = ['a.test']\nretry = '200ms'\n";
    let mut edge = ports.edge(&acme);
    edge.announce("ends").announce("no new certificate").announce("no certificate");
    edge.announce("does not know our account");
    wait_valid(&mut edge, "a.test");
    pebble.stop();
    let first = fs::read(certificate(&edge, "a.test")).expect("a certificate");
    edge.wait_until("it has failed twice", |edge| {
        2 <= name(edge, "a.test")["failures"].as_u64().expect("a number")
    });
    assert_eq!(fs::read(certificate(&edge, "a.test")).expect("a certificate"), first);
    assert!(name(&edge, "a.test")["error"].is_string());
    assert!(1.0 <= edge.metric(&["dormouse_acme_failing"]));
    // It has forgotten everything, our account, too.
    pebble.run();
    edge.wait_until("it is renewed", |edge| {
        fs::read(certificate(edge, "a.test")).expect("a certificate") != first
    });
    wait_valid(&mut edge, "a.test");
}

#[test]
fn a_name_that_cannot_be_shown_gets_nothing_and_is_not_asked_for_again_at_once() {
    // Pebble looks where nobody listens.
    let (_dns, pebble) = Ports::free().servers(LONG);
    let acme = pebble.toml() + "hosts = ['a.test']\non_demand = true\n";
    let mut edge = Ports::free().edge(&acme);
    edge.announce("no certificate");
    edge.wait_until("it has failed", |edge| name(edge, "a.test")["failures"] == 1);
    let is = name(&edge, "a.test");
    assert_eq!((&is["certificate"], &is["phase"]), (&"missing".into(), &"resting".into()));
    let error = is["error"].as_str().expect("text");
    assert!(error.contains("did not see that the name is ours"), "{error}");
    assert_eq!(fs::read_dir(folder(&edge).join("certs")).expect("certs").count(), 0);

    get(&edge, "b.test", "/whoami");
    edge.wait_until("the other has failed", |edge| name(edge, "b.test")["phase"] == "failed");
    let orders = pebble.orders();
    for _ in 0..5 {
        get(&edge, "b.test", "/whoami");
    }
    assert_eq!(edge.metric(&["acme_on_demand_refused_total", "failed"]), 5.0);
    assert_eq!((pebble.orders(), orders), (2, 2));
}

#[test]
fn on_demand_is_for_hosts_that_a_route_matches_alone() {
    let ports = Ports::free();
    let (_dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + "on_demand = true\non_demand_rate = 2\n";
    let mut edge = ports.edge(&acme);
    for host in ["unknown.example", "a.b.test", "test", "127.0.0.1"] {
        assert_eq!(get(&edge, host, "/").0, 404);
    }
    assert_eq!(get(&edge, "alice.test", "/whoami").0, 200);
    wait_valid(&mut edge, "alice.test");
    assert_eq!(name(&edge, "alice.test")["wanted_by"], "clients");
    get(&edge, "alice.test", "/whoami");
    get(&edge, "bob.test", "/whoami");
    wait_valid(&mut edge, "bob.test");
    get(&edge, "carol.test", "/whoami");
    assert_eq!(edge.metric(&["acme_on_demand_refused_total", "rate"]), 1.0);
    assert_eq!(pebble.orders(), 2, "one for each host that was let through");
    assert_eq!(edge.admin_get("/v1/acme")["names"].as_array().expect("a list").len(), 2);
}

/// A hook that says where it is, and waits for a file before it sets the record.
fn gated_hook(dns: &Dns) -> String {
    let script = format!(
        "touch reached.$1; until [ -e go ]; do sleep 0.01; done; \
         exec curl -sf -d \"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" \
         http://{}/$1-txt",
        dns.management
    );
    let cd = "cd \"$0\" && ";
    format!(
        "dns_hook = ['/bin/sh', '-c', '{cd}{script}', '@DIR@', '{{action}}', '{{name}}', '{{value}}']\n"
    )
}

#[test]
fn an_order_that_a_crash_cut_off_goes_on() {
    let ports = Ports::free();
    let (dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + &gated_hook(&dns) + "challenge = 'dns-01'\nhosts = ['a.test']\n";
    let mut edge = ports.edge(&acme);
    edge.wait_until("the order is under way", |edge| edge.path("reached.set").exists());
    edge.kill();
    assert!(!certificate(&edge, "a.test").exists());
    let order = folder(&edge).join("orders/a.test.json");
    assert_eq!(mode(&order), 0o600);
    fs::write(edge.path("go"), "").expect("written");
    edge.spawn(&[]);
    wait_valid(&mut edge, "a.test");
    assert_eq!(edge.log_count(&["an order goes on", "Pending"]), 1);
    assert_eq!(pebble.orders(), 1);
    assert!(!order.exists());
}

#[test]
fn a_certificate_that_was_signed_and_not_kept_is_fetched_after_the_crash() {
    let ports = Ports::free();
    let (_dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + "on_demand = true\n";
    let mut edge = ports.edge(&acme);
    edge.announce("no certificate").announce("left half-written");
    // No file can take the place of a folder that is not empty.
    let file = certificate(&edge, "alice.test");
    fs::create_dir_all(file.join("in the way")).expect("made");
    get(&edge, "alice.test", "/whoami");
    edge.wait_until("it was not kept", |edge| 0 < edge.log_count(&["no certificate", "keep it"]));
    edge.kill();
    fs::remove_dir_all(&file).expect("removed");
    edge.spawn(&[]);
    wait_valid(&mut edge, "alice.test");
    assert_eq!(edge.log_count(&["an order goes on", "Valid"]), 1);
    assert_eq!(pebble.orders(), 1);
    assert_eq!(names_in(&file), ["DNSName(alice.test)"]);
}

#[test]
fn a_second_process_orders_nothing_before_the_first_has_ended() {
    let ports = Ports::free();
    let (dns, pebble) = ports.servers(LONG);
    let acme = pebble.toml() + &gated_hook(&dns) + "challenge = 'dns-01'\nhosts = ['a.test']\n";
    let mut edge = ports.edge(&acme);
    edge.wait_until("the order is under way", |edge| edge.path("reached.set").exists());
    let next = crate::handover::launch_next(&mut edge);
    fs::remove_file(edge.path("reached.set")).expect("removed");
    edge.signal(rustix::process::Signal::QUIT);
    let mut before = edge.replace(next);
    crate::support::wait_exit(&mut before);
    edge.wait_until("the next process serves", |edge| edge.admin_status("/readyz") == Some(200));
    edge.wait_until("the next process goes on", |edge| edge.path("reached.set").exists());
    fs::write(edge.path("go"), "").expect("written");
    wait_valid(&mut edge, "a.test");
    assert_eq!(edge.log_count(&["an order goes on"]), 1);
    assert_eq!(pebble.orders(), 1);
}
