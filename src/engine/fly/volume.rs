//! The volume of a session: made once, found by its name, and never removed by us.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Config,
    machine::{DIGEST, digest, guest, or_empty},
};
use crate::{engine::Error, session::Spec};

/// The most that Fly takes: letters, digits and `_`.
const NAME_MAX: usize = 30;

/// All optional, as with a machine.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    #[serde(deserialize_with = "or_empty")]
    pub(super) id: String,
    /// A machine must be where its volume is.
    #[serde(deserialize_with = "or_empty")]
    pub(super) region: String,
    #[serde(deserialize_with = "or_empty")]
    name: String,
    #[serde(deserialize_with = "or_empty")]
    state: String,
}

impl Volume {
    pub(super) fn read(value: Value) -> Result<Self, Error> {
        serde_json::from_value(value)
            .ok()
            .filter(|volume: &Self| !volume.id.is_empty())
            .ok_or_else(|| Error::Failed("Fly answered no volume".to_owned()))
    }

    /// The one of this name, if it is there and stays.
    pub(super) fn find(listed: Value, name: &str) -> Result<Option<Self>, Error> {
        let listed: Vec<Self> = serde_json::from_value(listed)
            .map_err(|e| Error::Failed(format!("Fly listed no volumes: {e}")))?;
        let mut named: Vec<_> = listed
            .into_iter()
            .filter(|volume| volume.name == name && !volume.state.contains("destroy"))
            .collect();
        if named.len() > 1 {
            let text = format!("{} volumes are called `{name}`: destroy all but one", named.len());
            return Err(Error::Conflict(text));
        }
        Ok(named.pop())
    }
}

/// Where a route's volume goes: its name in the app, and the path in the machine.
pub(super) fn wanted<'a>(config: &Config, spec: &'a Spec) -> Option<(String, &'a str)> {
    let (source, target) = spec.volumes.first()?.split_once(':')?;
    Some((name(&config.owner, source), target.trim_end_matches(":rw")))
}

/// One name a source and owner, whatever characters they are made of.
fn name(owner: &str, source: &str) -> String {
    let plain = source.chars().map(|c| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    });
    let plain: String = plain.take(NAME_MAX - DIGEST - 1).collect();
    format!("{plain}_{}", digest(owner, source))
}

/// The body of a create. Fly looks for a host that has room for the machine, too.
pub(super) fn create(config: &Config, spec: &Spec, name: &str) -> Value {
    let gigabytes = spec.fly.volume_size.div_ceil(1 << 30);
    let mut body = json!({ "name": name, "size_gb": gigabytes, "compute": guest(spec) });
    if let Some(region) = &config.region {
        body["region"] = json!(region);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_fly_takes_and_another_for_another_source() {
        let long = "home-Alice.of.a-very-long-host";
        for source in ["home-alice", "home_alice", long] {
            let name = name("edge-1", source);
            assert!(name.len() <= NAME_MAX, "{name}");
            let is_taken = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(is_taken), "{name}");
        }
        assert_ne!(name("edge-1", "home-alice"), name("edge-1", "home_alice"));
        assert_ne!(name("edge-1", "home"), name("edge-2", "home"));
    }

    #[test]
    fn two_of_one_name_are_told_and_one_that_is_destroyed_is_none() {
        let of = |state: &str| json!({ "id": "vol_1", "name": "home", "state": state });
        let find = |listed: Value| Volume::find(listed, "home");
        assert_eq!(find(json!([of("created")])).unwrap().unwrap().id, "vol_1");
        assert!(find(json!([of("pending_destroy")])).unwrap().is_none());
        assert!(matches!(find(json!([of("created"), of("created")])), Err(Error::Conflict(_))));
        assert!(find(json!({ "error": "no" })).is_err());
    }
}
