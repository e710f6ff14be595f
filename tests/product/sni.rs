//! A wake that begins with the ClientHello.

use crate::{
    hold::{gated, open_gate},
    support::{Edge, Setup},
    tls::{Authority, HTTPS, NAMES, ask, whoami},
    wire::Wire,
};

const AT_SNI: &str = "[wake]\non = \"sni\"\n";

fn edge(authority: &Authority, more: &str, config: &str) -> Edge {
    let setup = Setup::new().listen(HTTPS).config(config).route("demo", &gated(more));
    authority.mint(&["alice.test", "bob.test", "alice.none"]).set_up(setup, "all").start()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_alone_wakes_its_session_once_and_the_first_request_takes_over() {
    let authority = Authority::new();
    let mut edge = edge(&authority, AT_SNI, "");
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    edge.wait_until("it wakes", |edge| edge.starts("alice.test") == 1);
    assert_eq!(edge.session("alice.test")["leases"], 1);
    assert_eq!(edge.metric(&["dormouse_leases_at_sni_total "]), 1.0);
    open_gate(&edge, "alice.test");
    edge.wait_state("alice.test", "awake");
    let mut wire = Wire(stream);
    assert!(whoami(&mut wire, "alice.test").await.starts_with("HTTP/1.1 200"));
    // The request was the lease's last use, though the connection is still open.
    edge.wait_until("it is given back", |edge| edge.session("alice.test")["leases"] == 0);
    assert!(whoami(&mut wire, "alice.test").await.starts_with("HTTP/1.1 200"));
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_more_gives_its_lease_back() {
    let authority = Authority::new();
    let mut edge = edge(&authority, AT_SNI, "[timeouts]\nclient_head = \"500ms\"\n");
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    edge.wait_until("it wakes", |edge| edge.starts("alice.test") == 1);
    open_gate(&edge, "alice.test");
    // By the edge's clock, with the connection still open on our side.
    edge.wait_state("alice.test", "idle");
    drop(stream);

    let other = authority.client().connect(&edge, "bob.test").await.expect("a handshake");
    edge.wait_until("it wakes", |edge| edge.starts("bob.test") == 1);
    drop(other);
    edge.wait_until("it is given back", |edge| edge.session("bob.test")["leases"] == 0);
    open_gate(&edge, "bob.test");
    edge.wait_state("bob.test", "idle");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_wakes_for_a_name_without_a_route_or_where_the_route_does_not_say_so() {
    let authority = Authority::new();
    for (more, config, name) in [(AT_SNI, "", "alice.none"), ("", "", "alice.test")] {
        let edge = edge(&authority, more, config);
        let stream = authority.client().connect(&edge, name).await.expect("a handshake");
        let request = "GET /whoami HTTP/1.1\r\nHost: nobody.example";
        let (_, head) = ask(stream, request).await;
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        assert_eq!((edge.starts(name), edge.metric(&["dormouse_leases_at_sni_total "])), (0, 0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxys_handshake_wakes_nobody() {
    let authority = Authority::new();
    let setup = Setup::new().listen(HTTPS).listen("\ntrusted_proxies = [\"127.0.0.1\"]");
    let setup = setup.route("demo", &gated(AT_SNI));
    let edge = authority.mint(NAMES).set_up(setup, "both").start();
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    let (_, head) = ask(stream, "GET /whoami HTTP/1.1\r\nHost: nobody.example").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    assert_eq!(edge.starts("alice.test"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_for_another_session_gives_the_lease_back() {
    let authority = Authority::new();
    let mut edge = edge(&authority, AT_SNI, "");
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    edge.wait_until("it wakes", |edge| edge.starts("alice.test") == 1);
    open_gate(&edge, "bob.test");
    let (_wire, head) = ask(stream, "GET /whoami HTTP/1.1\r\nHost: bob.test").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    edge.wait_until("it is given back", |edge| edge.session("alice.test")["leases"] == 0);
    open_gate(&edge, "alice.test");
}

/// The certificate comes after the ClientHello: who has the right one wakes when the handshake ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_lets_in_wakes_at_the_end_of_its_handshake_and_no_other_does() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let listen =
        "https = [{ address = \"@HTTPS@\", client_ca = \"ca.pem\", client_auth = \"optional\" }]";
    let more = format!("{AT_SNI}[access]\nmtls = {{ san = [\"{{session}}.users.test\"] }}\n");
    let setup = Setup::new().listen(listen).file("ca.pem", &theirs.pem());
    let setup = setup.route("demo", &gated(&more));
    let mut edge = authority.mint(NAMES).set_up(setup, "both").start();
    let alice = theirs.mint(&["alice.users.test"]);
    for (client, host) in
        [(authority.client(), "alice.test"), (authority.client().showing(&alice), "bob.test")]
    {
        let stream = client.connect(&edge, host).await.expect("a handshake");
        let (_, head) = ask(stream, &format!("GET /whoami HTTP/1.1\r\nHost: {host}")).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    }
    assert_eq!(edge.metric(&["dormouse_leases_at_sni_total "]), 0.0);
    let client = authority.client().showing(&alice);
    let stream = client.connect(&edge, "alice.test").await.expect("a handshake");
    edge.wait_until("it wakes", |edge| edge.starts("alice.test") == 1);
    assert_eq!(edge.metric(&["dormouse_leases_at_sni_total "]), 1.0);
    open_gate(&edge, "alice.test");
    let mut wire = Wire(stream);
    assert!(whoami(&mut wire, "alice.test").await.starts_with("HTTP/1.1 200"));
    assert_eq!((edge.starts("alice.test"), edge.starts("bob.test")), (1, 0));
}
