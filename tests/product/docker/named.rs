//! Containers that exist already, and routes that do not care which engine runs them.

use std::process::Command;

use super::{Made, Yard, demo, demo_image};
use crate::{
    dockerd::{self, IMAGE},
    support::DORMOUSE,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_exists_is_found_by_its_name_and_never_removed() {
    let rig = dockerd::shared();
    let name = format!("alice-desk-{}", std::process::id());
    let create = ["create", "--name", &name, IMAGE];
    let made = Made::by(rig, &create, &["rm", "-f", &name]);
    let route = format!(
        "host = \"{{session}}.test\"\nengine = \"docker\"\n[instance.docker]\n\
         container = \"{}\"\ngrace = \"1s\"\n[ready]\nprobe = \"http\"\n\
         [idle]\nafter = \"1s\"\nmin_awake = \"0s\"\n",
        name.replace("alice", "{session}")
    );
    let mut yard = Yard::new(&route);
    let running = |yard: &Yard<'_>| yard.field(&name, ".State.Status");
    assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
    yard.edge.wait_state("alice.test", "asleep");
    assert_eq!(running(&yard), "exited");
    // Others start it: it is adopted, and sleeps again.
    let generation = yard.generation("alice.test");
    rig.docker(&["start", &name]);
    yard.edge.wait_until("it was adopted and sleeps", |edge| {
        let session = edge.session("alice.test");
        session["state"] == "asleep"
            && session["generation"].as_u64().is_some_and(|now| generation < now)
    });
    assert_eq!(running(&yard), "exited");
    assert_eq!(yard.get("alice.test", "/").await.0, 200);

    yard.edge.announce("wake failed");
    assert_eq!(yard.get("bob.test", "/").await.0, 502, "nobody made one for bob");
    let error = yard.edge.session("bob.test")["last_error"].to_string();
    assert!(error.contains("container `bob-desk"), "{error}");
    assert_eq!(yard.crew.containers(), Vec::<String>::new(), "and neither did the edge");
    drop(yard);
    drop(made);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_and_a_route_names_is_adopted_though_nobody_comes() {
    let rig = dockerd::shared();
    let names = ["early", "late"].map(|name| format!("{name}-desk-{}", std::process::id()));
    let made = names.each_ref().map(|name| {
        Made::by(rig, &["run", "--detach", "--name", name, IMAGE], &["rm", "-f", name])
    });
    let route = |at: usize| {
        format!(
            "host = \"desk{at}.test\"\nengine = \"docker\"\n[instance.docker]\n\
             container = \"{}\"\ngrace = \"1s\"\n[ready]\nprobe = \"http\"\n\
             [idle]\nafter = \"1s\"\nmin_awake = \"0s\"\n",
            names[at]
        )
    };
    let mut yard = Yard::new(&route(0));
    // There at the start; then one that comes with an edit.
    for (at, name) in names.iter().enumerate() {
        if 0 < at {
            yard.edge.write_route("late", &route(at));
        }
        let crew = &yard.crew;
        yard.edge.wait_until("it sleeps", |_| crew.field(name, ".State.Status") == "exited");
        assert_eq!(yard.get(&format!("desk{at}.test"), "/").await.0, 200);
    }
    drop(yard);
    drop(made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_exists_is_found_by_its_label() {
    let rig = dockerd::shared();
    let name = format!("labelled-{}", std::process::id());
    let label = format!("desk=alice-{}", std::process::id());
    let create = ["create", "--name", &name, "--label", &label, IMAGE];
    let made = Made::by(rig, &create, &["rm", "-f", &name]);
    let route = format!(
        "host = \"{{session}}.test\"\nengine = \"docker\"\n[instance.docker]\n\
         label = \"{}\"\ngrace = \"1s\"\n[ready]\nprobe = \"http\"\n",
        label.replace("alice", "{session}")
    );
    let mut yard = Yard::new(&route);
    assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
    assert_eq!(yard.field(&name, ".State.Status"), "running");
    yard.put_to_sleep("alice.test", "paused");
    assert_eq!(yard.field(&name, ".State.Status"), "paused");
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    drop(yard);
    drop(made);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_route_file_runs_on_either_kind_of_engine() {
    let route = format!(
        "host = \"{{session}}.test\"\nengine = \"main\"\n[instance]\nimage = \"{}\"\n\
         command = [\"dormouse\", \"demo-session\", \"--listen\", \"{{address}}\"]\n\
         env = {{ PATH = \"{}:/usr/local/bin\" }}\n[instance.docker]\ngrace = \"5s\"\n\
         [instance.process]\ngrace = \"5s\"\n[ready]\nprobe = \"http\"\npath = \"/healthz\"\n\
         [idle]\nsleep = [{{ after = \"1h\", to = \"paused\" }}, {{ after = \"2h\", to = \"stopped\" }}]\n",
        demo_image(),
        std::path::Path::new(DORMOUSE).parent().expect("a folder").display(),
    );
    let ask = async |yard: &mut Yard<'_>| {
        for depth in ["paused", "stopped"] {
            yard.whoami("alice.test").await;
            yard.put_to_sleep("alice.test", depth);
        }
        yard.whoami("alice.test").await["address"].clone()
    };
    let rig = dockerd::shared();
    let mut yard = Yard::with(rig, "[engines.main]\nkind = \"process\"\n", &[("demo", &route)]);
    let own = ask(&mut yard).await;
    assert!(own.as_str().expect("text").starts_with("127.0.0.1:"), "{own}");
    assert_eq!(yard.crew.containers().len(), 0);
    yard.put_to_sleep("alice.test", "stopped");
    drop(yard);

    let owner = format!("both-{}", std::process::id());
    let engine = format!(
        "[engines.main]\nkind = \"docker\"\nendpoint = \"{}\"\nowner = \"{owner}\"\n",
        rig.endpoint()
    );
    let mut yard = Yard::with(rig, &engine, &[("demo", &route)]);
    yard.crew.owner = owner;
    assert_eq!(ask(&mut yard).await, "0.0.0.0:8080");
    assert_eq!(yard.crew.containers().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_with_both_engines_serves_both() {
    let process = crate::support::witnessed("", "").replace("{session}.test", "{session}.local");
    let routes = [("docker", demo("", "")), ("process", process)];
    let routes = routes.each_ref().map(|(name, route)| (*name, route.as_str()));
    let yard = Yard::with(dockerd::shared(), "", &routes);
    tokio::join!(yard.whoami("alice.test"), yard.whoami("alice.local"));
    assert_eq!(yard.edge.session("alice.test")["engine"], "docker");
    assert_eq!(yard.edge.session("alice.local")["engine"], "local");
}

#[test]
fn the_compose_file_brings_up_an_edge_and_its_sessions() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compose-test");
    let ran = Command::new(script).arg(DORMOUSE).output().expect("it runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
}

/// A route to the container of this name, or with this more of `[instance.docker]`.
fn to(docker: &str) -> String {
    format!(
        "host = \"{{session}}.test\"\nengine = \"docker\"\n[instance.docker]\n{docker}\n\
         grace = \"1s\"\n[ready]\nprobe = \"http\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_docker_restarts_until_it_serves_is_waited_for() {
    let rig = dockerd::shared();
    let name = format!("crashes-{}", std::process::id());
    let script = "cd /tmp; echo x >> n; test $(wc -l < n) -ge 3 || exit 1; \
                  exec busybox httpd -f -p 8080 -h /www";
    let create = ["create", "--name", &name, "--restart", "always", IMAGE, "sh", "-c", script];
    let made = Made::by(rig, &create, &["rm", "-f", &name]);
    let yard = Yard::new(&to(&format!("container = \"{name}\"")));
    assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
    assert_eq!(yard.field(&name, ".RestartCount"), 2);
    drop(yard);
    drop(made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_and_made_anew_is_served_at_once() {
    let rig = dockerd::shared();
    let name = format!("anew-{}", std::process::id());
    let run = ["run", "--detach", "--name", &name, IMAGE];
    let made = Made::by(rig, &run, &["rm", "-f", &name]);
    let yard = Yard::new(&to(&format!("container = \"{name}\"")));
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    for _ in 0..4 {
        rig.docker(&["rm", "-f", &name]);
        rig.docker(&run);
        assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
    }
    drop(yard);
    drop(made);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_containers_with_one_label_are_said_and_one_less_is_served() {
    let rig = dockerd::shared();
    let (one, two) =
        (format!("twin-a-{}", std::process::id()), format!("twin-b-{}", std::process::id()));
    let label = format!("twin={}", std::process::id());
    let create = |name| ["create", "--name", name, "--label", &label, IMAGE];
    let first = Made::by(rig, &create(&one), &["rm", "-f", &one]);
    let second = Made::by(rig, &create(&two), &["rm", "-f", &two]);
    let mut yard = Yard::new(&to(&format!("label = \"{label}\"")));
    yard.edge.announce("wake failed");
    yard.edge.announce("cannot ask the engine");
    let (status, _) = yard.get("alice.test", "/").await;
    assert_eq!(status, 503);
    yard.edge.wait_state("alice.test", "asleep");
    let error = yard.edge.session("alice.test")["last_error"].to_string();
    assert!(error.contains("2 containers have the label"), "{error}");
    drop(second);
    assert!(yard.cli(&["wake", "alice.test"]).status.success());
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    drop(yard);
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_instance_that_listens_late_is_waited_for_without_a_probe_of_its_own() {
    let route = format!(
        "host = \"{{session}}.test\"\nengine = \"docker\"\n[instance]\nimage = \"{IMAGE}\"\n\
         command = [\"sh\", \"-c\", \"sleep 1; exec busybox httpd -f -p {{port}} -h /www\"]\n\
         [instance.docker]\npublish = true\ngrace = \"1s\"\n"
    );
    let yard = Yard::new(&route);
    assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
}
