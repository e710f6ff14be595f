//! `[pool]`: what is made ahead must be the same whoever takes it.

use crate::{
    route::{
        check::Check,
        file::PoolTable,
        template::{Names, render},
        template_strings,
    },
    session::{Depth, Pool, Probe, Spec},
};

/// More than one edge keeps for one route.
const READY_MAX: u32 = 100;

impl Check<'_> {
    pub(in crate::route) fn pool(
        &mut self,
        table: &PoolTable,
        spec: &mut Spec,
        probe: &Probe,
    ) -> Pool {
        if !(1..=READY_MAX).contains(&table.ready) {
            let wrong = format!("`ready` is 1 to {READY_MAX}");
            self.found.value(&["pool", "ready"], wrong);
        }
        let depths = self.kind.map_or(&[][..], |kind| kind.depths());
        let lightest = depths.first().copied().unwrap_or(Depth::Paused);
        let depth = table.depth.map_or(lightest, Depth::from);
        if let Some(deepest) = depths.last() {
            let kept: Vec<_> = depths.iter().filter(|depth| *depth < deepest).collect();
            if !kept.contains(&&depth) {
                let names: Vec<_> = kept.iter().map(|depth| format!("`{depth}`")).collect();
                let wrong = format!("at `{depth}` this engine keeps nothing ahead");
                self.found.value(&["pool", "depth"], wrong).hint = Some(match &*names {
                    [] => "remove [pool]: this engine's instances are there or not".to_owned(),
                    names => format!("expected {}", names.join(" or ")),
                });
            }
        }
        if self.captures.is_empty() {
            let wrong = "this route has one host, so one session: nobody else would take a spare";
            self.found.value(&["pool"], wrong);
        }
        if spec.docker.container.is_some() || spec.docker.label.is_some() {
            let wrong = "a container that exists is not made ahead";
            self.found.value(&["pool"], wrong);
        }
        if spec.kubernetes.scale.is_some() {
            self.found.value(&["pool"], "a workload that exists is not made ahead");
        }
        template_strings(spec, |path, text, reserved| self.of_nobody(path, text, reserved));
        if let Probe::Http { path, .. } = probe {
            self.of_nobody(&["ready", "path"], path, &[]);
        }
        Pool { ready: table.ready, depth }
    }

    /// Without captures to fill in, one that is there is unknown.
    fn of_nobody(&mut self, path: &[&str], text: &str, reserved: &[&str]) {
        let (with, without) = (self.captures, &[][..]);
        let fits = render(text, Names { captures: with, reserved }, &[]).is_ok();
        if fits && render(text, Names { captures: without, reserved }, &[]).is_err() {
            let wrong =
                "a capture stands here, and [pool] makes instances before there is a session";
            self.found.value(path, wrong).hint =
                Some("remove the capture, or remove [pool]".into());
        }
    }
}
