//! What a right route means.

use std::time::Duration;

use dormouse::{
    route::{Protocol, RouteTable, WakeOn},
    session::{
        Depth, DockerSpec, FirecrackerSpec, FlySpec, KubernetesSpec, Listen, Policy, Probe,
        ProcessSpec, QemuSpec, Rung, Spec, UpstreamTls,
    },
};

use crate::{mistakes::error, parse, route};

#[test]
fn the_shortest_route_has_all_defaults() {
    let route = route("demo", "alice.localhost");
    assert_eq!(
        (&*route.name, &*route.recipe.engine, route.recipe.protocol),
        ("demo", "local", Protocol::Auto)
    );
    let plan = route.plan("alice.localhost");
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let expected = Policy {
        ladder: [Rung { after: minutes(15), to: Depth::Stopped }].into(),
        min_awake: minutes(1),
        wake_timeout: Duration::from_secs(30),
        boot_max: Duration::from_secs(300),
        held_max: 1000,
    };
    assert_eq!(plan.policy, expected);
    assert_eq!((plan.probe, plan.tls), (Probe::Tcp, None));
    assert_eq!(plan.spec, Spec { command: vec!["x".into()], ..Spec::default() });
    assert_eq!(route.set_headers("alice.localhost").count(), 0);
}

#[test]
fn every_key_reaches_the_plan_with_its_captures_filled_in() {
    let route = parse("full", include_str!("full.toml")).unwrap();
    let host = "alice-6080.desk.example.com";
    let plan = route.plan(host);
    let text = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let some = |text: &str| Some(text.to_owned());
    let process = ProcessSpec {
        listen: Listen::Unix,
        directory: some("/srv/alice"),
        grace: Duration::from_secs(5),
        log_max: 64 * 1024,
    };
    let docker = DockerSpec {
        container: None,
        label: None,
        network: some("desk-alice"),
        runtime: some("runsc"),
        publish: some("127.0.0.2"),
        user: some("1000:1000"),
        read_only: false,
        tmpfs: text(&["/tmp", "/run:size=16m"]),
        cap_add: text(&["NET_BIND_SERVICE"]),
        grace: Duration::from_secs(3),
    };
    let kubernetes = KubernetesSpec {
        scale: some("deployment/desk-alice"),
        service_account: some("desk"),
        runtime_class: some("gvisor"),
        pull_secrets: text(&["registry"]),
        node_selector: [("disk".to_owned(), "alice".to_owned())].into(),
        user: some("1000:1000"),
        read_only: false,
        tmpfs: text(&["/run:size=16m"]),
        cap_add: text(&["NET_BIND_SERVICE"]),
        storage_class: some("fast"),
        volume_size: 2 << 30,
        grace: Duration::from_secs(4),
    };
    let qemu = QemuSpec {
        kernel: some("vmlinuz"),
        initrd: some("initrd-alice"),
        append: some("quiet session=alice"),
        disk: some("desk.img"),
        disk_format: "raw".to_owned(),
        outbound: true,
        tap: some("vm-alice"),
        address: some("172.16.0.3"),
        grace: Duration::from_secs(6),
    };
    let firecracker = FirecrackerSpec {
        kernel: some("vmlinux"),
        initrd: some("initrd-alice"),
        append: some("quiet session=alice"),
        disk: some("desk-alice.ext4"),
        layer: Some(8 << 30),
        tap: some("tap-alice"),
        address: some("172.16.0.2"),
        golden: some("golden/alice"),
        vmgenid: true,
        grace: Duration::from_secs(7),
    };
    let env = [("SESSION", "alice"), ("WHERE", "{host}:{port}")];
    let fly = FlySpec { volume_size: 5 << 30 };
    let expected = Spec {
        image: some("desk:alice"),
        command: text(&["serve", "--listen", "{address}", "--name=alice", "{braces}"]),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        port: Some(6080),
        memory: Some(512 * 1024 * 1024),
        nano_cpus: Some(1_500_000_000),
        pids: Some(200),
        volumes: text(&["home-alice:/home/user", "/srv/shared:/shared:ro"]),
        parameters: [("home".to_owned(), "home-alice".to_owned())].into(),
        process,
        docker,
        kubernetes,
        fly,
        qemu,
        firecracker,
    };
    assert_eq!(plan.spec, expected);
    let Probe::Http { path, status, headers } = &plan.probe else { panic!("{:?}", plan.probe) };
    assert_eq!((path.as_str(), *status), ("/ready?of=alice", Some(204)));
    assert!(!format!("{:?}", plan.probe).contains("s3cret"), "no secret is printed");
    let headers: Vec<_> =
        headers.iter().map(|header| (&header.name[..], &header.value[..])).collect();
    assert_eq!(headers, [(&b"Authorization"[..], &b"Bearer s3cret"[..]), (b"X-Session", b"alice")]);
    let tls = UpstreamTls { verify: false, sni: "alice.internal".into() };
    assert_eq!((plan.tls, route.tls(host)), (Some(tls.clone()), Some(tls)));
    let rungs: Vec<_> =
        plan.policy.ladder.iter().map(|rung| (rung.after.as_secs(), rung.to)).collect();
    let day = 24 * 60 * 60;
    assert_eq!(rungs, [(120, Depth::Paused), (900, Depth::Stopped), (30 * day, Depth::Removed)]);
    assert_eq!((plan.policy.held_max, route.recipe.protocol), (7, Protocol::Http2));
    let client_tls = &route.recipe.client_tls;
    let hsts = client_tls.hsts.as_ref().map(|hsts| hsts.to_str().unwrap());
    let said = "max-age=31536000; includeSubDomains; preload";
    assert_eq!((client_tls.redirect, hsts, route.recipe.wake_on), (true, Some(said), WakeOn::Sni));
    let headers: Vec<_> = route.set_headers(host).collect();
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| (&name[..], value.to_str().unwrap())).collect();
    assert_eq!(headers, [(&b"Authorization"[..], "Bearer s3cret"), (b"X-Session", "alice")]);
}

#[test]
fn tls_without_a_name_asks_for_the_sessions_host() {
    let text = "host = \"{s}.e\"\ninstance.command = [\"x\"]\nupstream.tls = true";
    let tls = parse("r", text).unwrap().tls("alice.e").unwrap();
    assert_eq!(tls, UpstreamTls { verify: true, sni: "alice.e".into() });
}

#[test]
fn hsts_is_a_duration_or_a_table_and_not_said_by_itself() {
    let hsts = |text: &str| {
        let text = format!("host = \"a.e\"\ninstance.command = [\"x\"]\n{text}");
        parse("r", &text).unwrap().recipe.client_tls.hsts.clone()
    };
    assert_eq!(hsts(""), None);
    assert_eq!(hsts("tls.hsts = \"180d\"").unwrap(), "max-age=15552000");
    assert_eq!(hsts("tls.hsts = \"0s\"").unwrap(), "max-age=0");
    let table = "tls.hsts = { max_age = \"1h\", include_subdomains = true }";
    assert_eq!(hsts(table).unwrap(), "max-age=3600; includeSubDomains");
}

#[test]
fn routes_are_equal_when_they_do_the_same() {
    let text = include_str!("full.toml");
    let full = parse("full", text).unwrap();
    assert_eq!(full, parse("full", &format!("# a comment\n{text}")).unwrap());
    assert_ne!(full, parse("full", &text.replace("s3cret", "other")).unwrap());
    assert_ne!(full, parse("full", &text.replace("desk:{session}", "desk:2")).unwrap());
}

#[test]
fn no_secret_in_debug_or_in_errors() {
    let full = parse("full", include_str!("full.toml")).unwrap();
    let table = RouteTable::new([full]).unwrap();
    let route = table.get("full").unwrap();
    let headers: Vec<_> = route.set_headers("alice-1.desk.example.com").collect();
    let recipe = &route.recipe;
    assert!(!format!("{table:?} {route:?} {recipe:?} {headers:?}").contains("s3cret"));
    for wrong in
        ["4711", "4711.5", "\"4711{\"", "\"4711\\u0001\"", "[4711]", "{ a = 4711 }", "true"]
    {
        let header = error(&format!("upstream.set_headers = {{ Authorization = {wrong} }}"));
        assert!(!header.contains("4711"), "{header}");
    }
    let env = error("instance.env = { TOKEN = 4711 }");
    assert!(!env.contains("4711"), "{env}");
}

/// One file for every engine: what one lacks falls to the next deeper depth that it has, and never
/// before the route says so.
#[test]
fn a_rung_that_the_engine_lacks_falls_to_the_next_that_it_has() {
    let fallen = |rungs: &[(&str, &str)]| {
        let rungs: Vec<_> = rungs
            .iter()
            .map(|(after, to)| format!("{{ after = \"{after}\", to = \"{to}\" }}"))
            .collect();
        let text = format!(
            "host = \"a.e\"\ninstance.command = [\"x\"]\nidle.sleep = [{}]",
            rungs.join(", ")
        );
        let route = parse("demo", &text).unwrap();
        let ladder: Vec<_> = route
            .recipe
            .policy
            .ladder
            .iter()
            .map(|rung| (rung.after.as_secs() / 60, rung.to.as_str()))
            .collect();
        (ladder, route.notes.len())
    };
    let paused_stopped = vec![(2, "paused"), (15, "stopped")];
    let readme = [("2m", "paused"), ("15m", "stopped"), ("7d", "removed")];
    assert_eq!(fallen(&readme), (paused_stopped, 1), "there is nothing deeper than `stopped`");
    assert_eq!(fallen(&[("2m", "suspended")]), (vec![(2, "stopped")], 1));
    let own = [("2m", "suspended"), ("15m", "stopped")];
    assert_eq!(fallen(&own), (vec![(15, "stopped")], 1), "not stopped before the route says so");
    assert_eq!(fallen(&[("7d", "removed")]), (vec![(7 * 24 * 60, "stopped")], 1));
    assert_eq!(fallen(&[("2m", "paused")]), (vec![(2, "paused")], 0));
}

#[test]
fn a_month_is_no_minute() {
    let said = error("idle.after = \"15M\"");
    assert!(said.contains("`M` would be months: write \"15m\" for minutes"), "{said}");
}
