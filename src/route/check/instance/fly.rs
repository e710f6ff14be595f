//! What a machine of Fly needs, and what it cannot have.

use crate::{route::check::Check, session::Spec};

impl Check<'_> {
    pub(super) fn fly(&mut self, spec: &Spec) {
        if spec.image.is_none() {
            self.found.value(&["instance", "image"], "a machine of Fly needs an image");
        }
        if spec.volumes.len() > 1 {
            let path = ["instance", "volumes", "1"];
            self.found.value(&path, "a machine of Fly has one volume, no more");
        }
        for (index, volume) in spec.volumes.iter().enumerate() {
            let wrong = if volume.starts_with('/') {
                "a machine of Fly has no folder of its host: name a volume"
            } else if volume.ends_with(":ro") {
                "a volume of Fly is always writable"
            } else if !self.is_each_sessions_own(volume) {
                "a volume of Fly is one machine's, and this route has many: put all its captures \
                 in the volume's name, with `.` between them"
            } else {
                continue;
            };
            self.found.value(&["instance", "volumes", &index.to_string()], wrong);
        }
    }

    /// Whether no two sessions of this route have the same name for it: every capture stands in it,
    /// and between two of them something that no capture holds.
    fn is_each_sessions_own(&self, volume: &str) -> bool {
        let name = volume.split_once(':').map_or(volume, |(name, _)| name);
        // `{{app}}` is a text in braces, and no capture.
        let name = name.replace("}}", "");
        let place = |capture: &String| {
            let capture = format!("{{{capture}}}");
            name.find(&capture).map(|at| (at, at + capture.len()))
        };
        let Some(mut places) = self.captures.iter().map(place).collect::<Option<Vec<_>>>() else {
            return false;
        };
        places.sort_unstable();
        places.windows(2).all(|pair| name[pair[0].1..pair[1].0].contains('.'))
    }
}
