//! What Fly says of a machine, and what it is told to make one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Config, Public, volume::Volume};
use crate::{
    engine::{Error, Health, Instance, InstanceState, Life, filled},
    session::{Depth, Generation, SessionId, Spec},
};

const OWNER: &str = "dormouse_owner";
const SESSION: &str = "dormouse_session";
const GENERATION: &str = "dormouse_generation";
/// The port of an instance whose route says none.
const PORT: u16 = 8080;
/// Characters of a digest, 5 bits each.
pub(super) const DIGEST: usize = 16;

/// All optional: an answer of tomorrow, or half of one, is still read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    #[serde(deserialize_with = "or_empty")]
    pub(super) id: String,
    #[serde(deserialize_with = "or_empty")]
    pub(super) state: String,
    #[serde(deserialize_with = "or_empty")]
    pub(super) instance_id: String,
    private_ip: Option<String>,
    config: Option<MachineConfig>,
    events: Option<Vec<MachineEvent>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct MachineConfig {
    metadata: Option<BTreeMap<String, Value>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct MachineEvent {
    #[serde(deserialize_with = "or_empty")]
    id: String,
    #[serde(deserialize_with = "or_empty")]
    r#type: String,
    #[serde(deserialize_with = "or_empty")]
    timestamp: u64,
}

/// `null` is what is not there.
pub(super) fn or_empty<'de, T, D>(value: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// The states of the API, by what can be done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Started,
    Starting,
    Asleep(Depth),
    /// Only to be destroyed.
    Failed,
    /// Something goes on: look again.
    Changing,
}

impl Machine {
    /// `None` for something without an id.
    pub(super) fn read(value: Value) -> Result<Option<Self>, Error> {
        let machine: Self = serde_json::from_value(value)
            .map_err(|e| Error::Failed(format!("Fly answered no machine: {e}")))?;
        Ok(Some(machine).filter(|machine| !machine.id.is_empty()))
    }

    /// Those of a list that are there. One that cannot be read is an error where it is `owner`'s,
    /// and nobody's otherwise: others may have what they like in their app.
    pub(super) fn read_all(listed: Value, owner: &str) -> Result<Vec<Self>, Error> {
        let Value::Array(listed) = listed else {
            return Err(Error::Failed("Fly listed machines as something else than a list".into()));
        };
        let mut all = Vec::new();
        for value in listed {
            let is_ours = value["config"]["metadata"][OWNER] == owner;
            let id = value["id"].as_str().unwrap_or("without an id").to_owned();
            match Self::read(value) {
                Ok(machine) => all.extend(machine.filter(|machine| !machine.is_gone())),
                Err(error) if is_ours => {
                    return Err(Error::Failed(format!("machine {id}: {error}")));
                }
                Err(_) => {}
            }
        }
        Ok(all)
    }

    pub(super) fn kind(&self) -> State {
        match self.state.as_str() {
            "started" => State::Started,
            "starting" | "restarting" => State::Starting,
            "suspended" => State::Asleep(Depth::Suspended),
            "stopped" | "created" => State::Asleep(Depth::Stopped),
            "failed" | "launch_failed" => State::Failed,
            _ => State::Changing,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state.as_str(), "destroying" | "destroyed" | "replaced" | "migrated")
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.config.as_ref()?.metadata.as_ref()?.get(key)?.as_str()
    }

    pub(super) fn session(&self, owner: &str) -> Option<SessionId> {
        let ours = self.metadata(OWNER) == Some(owner);
        self.metadata(SESSION).filter(|_| ours).map(SessionId::new)
    }

    /// Its last start: `instance_id` alone is that of its configuration, and stays over a stop.
    pub(super) fn life(&self) -> Option<Life> {
        if !matches!(self.kind(), State::Started | State::Starting) {
            return None;
        }
        let starts = self.events.iter().flatten().filter(|event| event.r#type == "start");
        let last = starts.max_by_key(|event| event.timestamp);
        let last = last.map_or("", |event| event.id.as_str());
        Some(Life::new(format!("{}:{}:{last}", self.id, self.instance_id)))
    }

    /// Its address in the 6PN; `None` while it has none.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.private_ip.as_ref()?.parse().ok()
    }

    pub(super) fn instance(&self, session: SessionId) -> Instance {
        let state = match self.kind() {
            State::Started => InstanceState::Running(Health::Unchecked),
            // On its way down nobody is sent to it any more, by whomever it was put to sleep.
            State::Changing if self.state == "suspending" => {
                InstanceState::Asleep(Depth::Suspended)
            }
            State::Changing if self.state == "stopping" => InstanceState::Asleep(Depth::Stopped),
            State::Starting | State::Changing => InstanceState::Running(Health::Starting),
            State::Asleep(depth) => InstanceState::Asleep(depth),
            State::Failed => InstanceState::Asleep(Depth::Stopped),
        };
        let generation = self.metadata(GENERATION).and_then(|text| text.parse().ok());
        Instance {
            session,
            generation: Generation(generation.unwrap_or(0)),
            life: self.life(),
            state,
        }
    }
}

/// The body of a create.
pub(super) fn create(
    config: &Config,
    session: &SessionId,
    spec: &Spec,
    generation: Generation,
    volume: Option<(&Volume, &str)>,
) -> Result<Value, Error> {
    let Some(image) = &spec.image else {
        return Err(Error::Invalid(
            "the route has no instance.image to create a machine from".into(),
        ));
    };
    let mut machine = json!({
        "image": image,
        "env": env(session, spec),
        "metadata": {
            OWNER: config.owner,
            SESSION: session.host(),
            GENERATION: generation.to_string(),
        },
        "guest": guest(spec),
        // Whoever restarts a machine by himself would fight who puts it to sleep.
        "restart": { "policy": "no" },
        "auto_destroy": false,
    });
    if !spec.command.is_empty() {
        let command: Vec<_> = spec.command.iter().map(|word| told(spec, word)).collect();
        machine["init"] = json!({ "cmd": command });
    }
    if let Some(Public { tls, port, .. }) = config.public {
        let handlers = if tls { &["tls", "http"][..] } else { &["http"] };
        machine["services"] = json!([{
            "internal_port": port_of(spec),
            "protocol": "tcp",
            // Who wakes it and puts it to sleep is the edge.
            "autostart": false,
            "autostop": "off",
            "ports": [{ "port": port, "handlers": handlers }],
        }]);
    }
    if let Some((volume, path)) = volume {
        machine["mounts"] = json!([{ "volume": volume.id, "path": path }]);
    }
    let mut body = json!({ "name": name(&config.owner, session), "config": machine });
    let region = volume.map(|(volume, _)| &volume.region).filter(|region| !region.is_empty());
    if let Some(region) = region.or(config.region.as_ref()) {
        body["region"] = json!(region);
    }
    Ok(body)
}

/// What the route says goes before what is said of ourselves.
fn env<'a>(session: &SessionId, spec: &'a Spec) -> BTreeMap<&'a str, String> {
    let of_route = spec.env.iter().map(|(name, value)| (&**name, told(spec, value)));
    [("DORMOUSE_SESSION", session.host().to_owned())].into_iter().chain(of_route).collect()
}

/// What an API that repeats what it was given may give away.
pub(super) fn secrets(spec: &Spec) -> Vec<String> {
    spec.env.values().map(|value| told(spec, value)).collect()
}

/// The port that the instance listens on.
pub(super) fn port_of(spec: &Spec) -> u16 {
    spec.port.unwrap_or(PORT)
}

/// A machine's size.
pub(super) fn guest(spec: &Spec) -> Value {
    json!({
        "cpu_kind": "shared",
        "cpus": spec.nano_cpus.map_or(1, |nano| nano.div_ceil(1_000_000_000)),
        // In steps of 256 MB, says Fly.
        "memory_mb": spec.memory.map_or(256, |bytes| bytes.div_ceil(256 << 20) * 256),
    })
}

/// On every address, so on that of the 6PN, too.
fn told(spec: &Spec, text: &str) -> String {
    filled(text, Ipv6Addr::UNSPECIFIED.into(), port_of(spec))
}

/// Of two texts that belong together, in letters and digits: as many bits as the length of a
/// volume's name leaves. Who may choose a session's host must not find one with another's digest.
pub(super) fn digest(owner: &str, text: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::new().chain_update(owner).chain_update([0]).chain_update(text).finalize();
    digest.iter().take(DIGEST).map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

/// One name a session, so that two creates cannot both succeed.
fn name(owner: &str, session: &SessionId) -> String {
    let label = session.host().split('.').next().unwrap_or_default();
    let plain = label.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(30);
    format!("dormouse-{}-{}", plain.collect::<String>(), digest(owner, session.host()))
}
