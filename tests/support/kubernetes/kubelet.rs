//! What a scheduler, a kubelet and a network do for the Pods of a cluster, as far as an edge can
//! see it: real processes, each on a loopback address of its own.
//!
//! What a Pod's image is called says how its life goes: see [`run_pod`].

use std::{
    collections::HashMap,
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::watcher::{self, Event, watcher},
};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::mortal;

/// How often processes are looked at.
const BEAT: Duration = Duration::from_millis(20);

/// Serves a cluster until it is dropped.
pub(crate) async fn run(client: Client) {
    let mut kubelet = Kubelet { client: client.clone(), seen: HashMap::new(), last: 0 };
    let mut pods = watcher(Api::<Pod>::all(client), watcher::Config::default()).boxed();
    loop {
        tokio::select! {
            event = pods.next() => match event.expect("a watch has no end") {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => kubelet.see(pod),
                Ok(Event::Delete(pod)) => kubelet.forget(&pod),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(BEAT).await,
            },
            () = tokio::time::sleep(BEAT) => kubelet.beat().await,
        }
    }
}

struct Kubelet {
    client: Client,
    seen: HashMap<String, Seen>,
    /// The last address that was given away.
    last: u16,
}

/// A Pod, and what became of it here.
struct Seen {
    pod: Pod,
    process: Option<Child>,
    /// When it was told to end.
    told: Option<Instant>,
    /// What the server is still to be told; nothing yet is `None`, and nothing more `Null`.
    status: Option<Value>,
}

impl Kubelet {
    fn see(&mut self, pod: Pod) {
        let uid = pod.metadata.uid.clone().unwrap();
        let fresh = Seen { pod: pod.clone(), process: None, told: None, status: None };
        self.seen.entry(uid).or_insert(fresh).pod = pod;
    }

    fn forget(&mut self, pod: &Pod) {
        if let Some(seen) = self.seen.remove(pod.metadata.uid.as_ref().unwrap())
            && let Some(process) = seen.process
        {
            signal(&process, Signal::KILL);
        }
    }

    async fn beat(&mut self) {
        for seen in self.seen.values_mut() {
            let is_bound = seen.pod.spec.as_ref().unwrap().node_name.is_some();
            let is_going = seen.pod.metadata.deletion_timestamp.is_some();
            match (is_going, is_bound) {
                // What the server refuses, or cannot take now, is tried at the next beat.
                (true, _) => drop(end_pod(&self.client, seen).await),
                (false, false) => drop(place(&self.client, seen).await),
                (false, true) => drop(run_pod(&self.client, seen, &mut self.last).await),
            }
        }
    }
}

fn pods(client: &Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap())
}

fn image(pod: &Pod) -> &str {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    container.image.as_deref().unwrap()
}

/// The scheduler. For `image = "unplaced"` there is no node.
async fn place(client: &Client, seen: &mut Seen) -> kube::Result<()> {
    let name = seen.pod.metadata.name.as_deref().unwrap();
    if image(&seen.pod) == "unplaced" {
        let condition = json!({"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient memory."});
        seen.status.get_or_insert_with(|| json!({"conditions": [condition]}));
        return say(client, seen).await;
    }
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node-1"}});
    let _: Value = pods(client, &seen.pod)
        .create_subresource("binding", name, &PostParams::default(), &binding)
        .await?;
    Ok(())
}

/// The kubelet. `image = "absent"` cannot be pulled, `"slow"` never ends to start, `"failing"` ends
/// at once, `"crashing"` again and again, and of all others the arguments are what busybox runs.
async fn run_pod(client: &Client, seen: &mut Seen, last: &mut u16) -> kube::Result<()> {
    let image = image(&seen.pod).to_owned();
    let waiting = |reason: &str, message: &str| {
        let state = json!({"waiting": {"reason": reason, "message": message}});
        json!({"phase": "Pending", "containerStatuses": [status(&image, false, state)]})
    };
    match (&mut seen.process, image.as_str()) {
        (None, _) if seen.status.is_some() => {}
        (None, "absent") => {
            let said = "Back-off pulling image \"absent\"";
            seen.status = Some(waiting("ImagePullBackOff", said));
        }
        (None, "failing") => {
            let state = json!({"terminated": {"exitCode": 3, "message": "the last lines"}});
            let of_container = status(&image, false, state);
            seen.status = Some(json!({"phase": "Failed", "containerStatuses": [of_container]}));
        }
        (None, "crashing") => {
            let mut of_container = waiting("CrashLoopBackOff", "back-off 5m0s");
            of_container["phase"] = "Running".into();
            of_container["podIP"] = "127.77.255.1".into();
            of_container["containerStatuses"][0]["lastState"] =
                json!({"terminated": {"exitCode": 3, "message": "the last lines"}});
            seen.status = Some(of_container);
        }
        (None, "slow") => seen.status = Some(waiting("ContainerCreating", "")),
        (None, _) => {
            *last += 1;
            // Two runs at once on one machine are two clusters.
            let net = 64 + std::process::id() % 128;
            let ip = format!("127.{net}.{}.{}", *last >> 8, *last & 255);
            let process = start(&seen.pod, &ip);
            // A second apart, in their order.
            let since =
                format!("2026-01-01T{:02}:{:02}:{:02}Z", *last / 3600, *last / 60 % 60, *last % 60);
            let state = json!({"running": {"startedAt": since}});
            let mut of_container = status(&image, true, state);
            of_container["containerID"] = json!(format!("process://{}", process.id()));
            seen.status = Some(json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [of_container]}));
            seen.process = Some(process);
        }
        (Some(process), _) => {
            if let Some(exit) = process.try_wait().unwrap() {
                let code = exit.code().unwrap_or(137);
                let state = json!({"terminated": {"exitCode": code, "message": "the last lines"}});
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                let of_container = status(&image, false, state);
                seen.status = Some(json!({"phase": phase, "containerStatuses": [of_container]}));
                seen.process = None;
            }
        }
    }
    say(client, seen).await
}

fn status(image: &str, runs: bool, state: Value) -> Value {
    json!({"name": "instance", "image": image, "imageID": "", "ready": runs, "started": runs,
        "restartCount": 0, "state": state})
}

fn start(pod: &Pod, ip: &str) -> Child {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let args = container.args.clone().unwrap_or_default();
    let mut command = mortal("busybox");
    // A Pod has a network of its own; here it has an address of its own.
    command.args(args.iter().map(|arg| arg.replace("0.0.0.0", ip)));
    command
        .envs(container.env.iter().flatten().map(|env| (&env.name, env.value.as_ref().unwrap())));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().unwrap()
}

/// TERM, after the grace KILL, and when the processes are gone so is the Pod.
async fn end_pod(client: &Client, seen: &mut Seen) -> kube::Result<()> {
    if let Some(process) = &mut seen.process {
        let told = *seen.told.get_or_insert_with(|| {
            signal(process, Signal::TERM);
            Instant::now()
        });
        let grace = seen.pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
        if told.elapsed() > Duration::from_secs(grace.unsigned_abs()) {
            signal(process, Signal::KILL);
        }
        if process.try_wait().unwrap().is_none() {
            return Ok(());
        }
        seen.process = None;
    }
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: seen.pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let name = seen.pod.metadata.name.as_deref().unwrap();
    pods(client, &seen.pod).delete(name, &now).await.map(drop)
}

async fn say(client: &Client, seen: &mut Seen) -> kube::Result<()> {
    let Some(status) = seen.status.as_ref().filter(|status| !status.is_null()) else {
        return Ok(());
    };
    let name = seen.pod.metadata.name.as_deref().unwrap();
    let uid = seen.pod.metadata.uid.as_ref().unwrap();
    let body = json!({"metadata": {"uid": uid}, "status": status});
    let patch = Patch::Merge(&body);
    pods(client, &seen.pod).patch_status(name, &PatchParams::default(), &patch).await?;
    seen.status = Some(Value::Null);
    Ok(())
}

/// The process and all that it started.
fn signal(process: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(process), signal);
}
