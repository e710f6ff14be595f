//! One route, word for word, on engines of several kinds: only what the name `main` means differs.

use std::process::Command;

use crate::{
    dockerd::{self, IMAGE},
    fly::{Fake, TOKEN},
    kubernetes,
    podman::Podman,
    support::{DORMOUSE, Edge, Setup, client},
    vm::image,
};

/// Each kind takes what is its own: a program of this machine, an image, a kernel.
const ROUTE: &str = r#"
host = "{session}.test"
engine = "main"
[instance]
image = "@IMAGE@"
command = ["busybox", "httpd", "-f", "-p", "{address}", "-h", "/etc"]
memory = "128MiB"
[instance.docker]
grace = "100ms"
[instance.kubernetes]
grace = "1s"
[instance.process]
grace = "1s"
[instance.qemu]
kernel = "@VM@/vmlinuz"
initrd = "@VM@/initrd"
append = "console=ttyS0 quiet panic=-1"
grace = "100ms"
[wake]
timeout = "2m"
[ready]
probe = "http"
path = "/hosts"
[idle]
sleep = [{ after = "2h", to = "stopped" }]
"#;

fn edge(engine: &str) -> Edge {
    let route = ROUTE.replace("@IMAGE@", IMAGE).replace("@VM@", &image().to_string_lossy());
    let engine = format!("[engines.main]\n{engine}\n[paths]\nstate = \"@DIR@/state\"\n");
    Setup::new().config(&engine).file("token", TOKEN).route("desk", &route).start()
}

async fn hosts(edge: &Edge) -> (u16, String) {
    let answer = client().get(edge.url("alice.test", "/hosts")).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

/// From nothing, and from each depth that the kind has.
async fn lives(mut edge: Edge, depths: &[&str]) {
    for depth in depths {
        let (status, text) = hosts(&edge).await;
        assert!(status == 200 && text.contains("localhost"), "before {depth}: {status} {text}");
        sleep(&mut edge, depth);
    }
}

/// `seen` is how it may be seen to sleep then, `|` between; the first is where it is put.
fn sleep(edge: &mut Edge, seen: &str) {
    let to = seen.split('|').next().unwrap_or_default();
    edge.wait_state("alice.test", "idle");
    let ran = Command::new(DORMOUSE)
        .args(["sleep", "alice.test", "--to", to, "--config"])
        .arg(edge.path("dormouse.toml"))
        .output()
        .expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    edge.wait_until(&format!("alice.test is {to}"), |edge| {
        let session = edge.session("alice.test");
        session["state"] == "asleep" && seen.split('|').any(|depth| session["depth"] == depth)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_runs_on_processes() {
    lives(edge("kind = \"process\""), &["paused", "stopped"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_runs_on_containers() {
    let (endpoint, owner) =
        (dockerd::shared().endpoint(), format!("parity-{}", std::process::id()));
    let engine = format!("kind = \"docker\"\nendpoint = \"{endpoint}\"\nowner = \"{owner}\"");
    let mut edge = edge(&engine);
    // On a machine that is busy elsewhere runc gives a freeze up; the edge asks again.
    edge.announce("unable to freeze");
    lives(edge, &["paused", "stopped", "removed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_runs_on_virtual_machines() {
    let mut edge = edge("kind = \"process\"");
    edge.kill();
    edge.spawn(&["--engine", "main=qemu"]);
    lives(edge, &["paused", "suspended", "stopped", "removed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_runs_on_podman() {
    let podman = Podman::up("parity").await;
    let endpoint = podman.endpoint();
    let mut edge = edge(&format!("kind = \"podman\"\nendpoint = \"{endpoint}\""));
    edge.announce("unable to freeze");
    lives(edge, &["paused", "stopped", "removed"]).await;
}

/// Over a real API server; the test plays the kubelet.
#[tokio::test(flavor = "multi_thread")]
async fn the_route_runs_on_kubernetes() {
    let cluster = tokio::task::spawn_blocking(kubernetes::shared).await.expect("a cluster");
    let engine = format!(
        "kind = \"kubernetes\"\n[engines.main.kubernetes]\nkubeconfig = \"{}\"\n\
         context = \"admin\"\nnamespace = \"default\"",
        cluster.kubeconfig().display()
    );
    // Of a Pod that was stopped nothing is left, and a moment later that is seen.
    lives(edge(&engine), &["stopped|removed", "removed"]).await;
}

/// Over a stateful fake of Fly's API, whose machines are processes.
#[tokio::test(flavor = "multi_thread")]
async fn the_route_runs_on_fly() {
    let fake = Fake::start(std::time::Duration::from_millis(20)).await;
    let engine = format!(
        "kind = \"fly\"\n[engines.main.fly]\napp = \"desks\"\ntoken_file = \"token\"\n\
         endpoint = \"http://{}/v1\"",
        fake.address
    );
    lives(edge(&engine), &["suspended", "stopped", "removed"]).await;
}
