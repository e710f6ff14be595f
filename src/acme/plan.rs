//! When which certificate is ordered: pure, with the time and chance given.
//!
//! Knows names and times; no server, no disk, no task.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::store::Validity;
use crate::config::OnDemand;

/// The longest wait between two tries, server's wish aside.
const RETRY_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// A host that clients asked for and that could not be certified is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// The most hosts that wait for a first certificate because clients asked for it.
const WAITING_MAX: usize = 100;
const HOUR: f64 = 3600.0;

/// Every name that is to have a certificate, and what became of it.
#[derive(Debug)]
pub(super) struct Plan {
    entries: BTreeMap<String, Entry>,
    retry: Duration,
    on_demand: Option<Bucket>,
}

/// One name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) wanted_by: WantedBy,
    /// The certificate that it has; it keeps it whatever happens.
    pub(super) validity: Option<Validity>,
    /// Failures since the last success.
    pub(super) failures: u32,
    pub(super) error: Option<String>,
    /// When it is ordered. For a host that clients asked for, and that has none: when it may be
    /// asked for again.
    pub(super) due: SystemTime,
    pub(super) phase: Phase,
}

/// Who wants a name's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedBy {
    /// `acme.hosts`.
    Operator,
    /// `acme.on_demand`.
    Clients,
}

/// Where a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until it is due.
    Rests,
    /// Its order is under way.
    Ordered,
    /// It failed, and nobody tries it until a client asks again.
    Failed,
}

/// What becomes of a client's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is ordered now.
    New,
    /// It is on its way, or it is there.
    Known,
    /// Not now.
    Refused(Why),
}

/// Why nothing is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// `acme.on_demand` is false.
    Off,
    /// It failed, a moment ago.
    Failed,
    /// `acme.on_demand_rate`.
    Rate,
    /// `acme.on_demand_max`, or too many wait.
    Full,
}

impl Why {
    /// The label of the metric.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Failed => "failed",
            Self::Rate => "rate",
            Self::Full => "full",
        }
    }
}

/// Orders that clients may still cause.
#[derive(Debug)]
struct Bucket {
    limits: OnDemand,
    tokens: f64,
    filled: SystemTime,
}

impl Bucket {
    fn take(&mut self, now: SystemTime) -> bool {
        let rate = f64::from(self.limits.rate);
        // A clock that was set back fills nothing.
        let since = now.duration_since(self.filled).unwrap_or_default().as_secs_f64();
        self.tokens = (self.tokens + since * rate / HOUR).min(rate);
        self.filled = now;
        let has_one = 1.0 <= self.tokens;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

impl Plan {
    pub(super) fn new(retry: Duration, on_demand: Option<OnDemand>, now: SystemTime) -> Self {
        let bucket = |limits: OnDemand| Bucket { limits, tokens: limits.rate.into(), filled: now };
        Self { entries: BTreeMap::new(), retry, on_demand: on_demand.map(bucket) }
    }

    /// Takes a name in, with the certificate that it has. `chance` is from 0 to 1.
    pub(super) fn add(
        &mut self,
        name: &str,
        wanted_by: WantedBy,
        validity: Option<Validity>,
        now: SystemTime,
        chance: f64,
    ) {
        let due = validity.map_or(now, |validity| renewal(validity, chance));
        let phase = Phase::Rests;
        let entry = Entry { wanted_by, validity, failures: 0, error: None, due, phase };
        self.entries.entry(name.to_owned()).or_insert(entry);
    }

    /// A client wants `host`, which a route matches and which has no certificate.
    pub(super) fn ask(&mut self, host: &str, now: SystemTime) -> Asked {
        if let Some(entry) = self.entries.get(host) {
            match entry.phase {
                Phase::Failed if now < entry.due => return Asked::Refused(Why::Failed),
                Phase::Failed => {}
                Phase::Rests | Phase::Ordered => return Asked::Known,
            }
        }
        self.forget_failed(now);
        let waiting = self.entries.values().filter(|entry| entry.waits_for_clients()).count();
        let of_clients =
            self.entries.values().filter(|entry| entry.wanted_by == WantedBy::Clients).count();
        let is_known = self.entries.contains_key(host);
        let Some(bucket) = &mut self.on_demand else { return Asked::Refused(Why::Off) };
        let is_full =
            !is_known && usize::try_from(bucket.limits.max).is_ok_and(|max| max <= of_clients);
        if is_full || WAITING_MAX <= waiting {
            return Asked::Refused(Why::Full);
        }
        if !bucket.take(now) {
            return Asked::Refused(Why::Rate);
        }
        let entry = self.entries.entry(host.to_owned()).or_insert_with(|| Entry {
            wanted_by: WantedBy::Clients,
            validity: None,
            failures: 0,
            error: None,
            due: now,
            phase: Phase::Rests,
        });
        (entry.due, entry.phase) = (now, Phase::Rests);
        Asked::New
    }

    /// What is due and rests, what waits longest first. Marks it as ordered.
    pub(super) fn take_due(&mut self, now: SystemTime) -> Option<String> {
        let resting = self.entries.iter_mut().filter(|(_, entry)| entry.phase == Phase::Rests);
        let first = resting.min_by_key(|(_, entry)| entry.due);
        let (name, entry) = first.filter(|(_, entry)| entry.due <= now)?;
        entry.phase = Phase::Ordered;
        Some(name.clone())
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<SystemTime> {
        let resting = self.entries.values().filter(|entry| entry.phase == Phase::Rests);
        resting.map(|entry| entry.due).min()
    }

    pub(super) fn succeeded(&mut self, name: &str, validity: Validity, chance: f64) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.due = renewal(validity, chance);
            (entry.validity, entry.phase) = (Some(validity), Phase::Rests);
            (entry.failures, entry.error) = (0, None);
        }
    }

    /// Returns when it may be tried again: `calm` is until when the server wants to be left alone.
    pub(super) fn failed(
        &mut self,
        name: &str,
        error: String,
        now: SystemTime,
        calm: Option<SystemTime>,
        chance: f64,
    ) -> Option<SystemTime> {
        let retry = self.retry;
        let entry = self.entries.get_mut(name)?;
        entry.failures = entry.failures.saturating_add(1);
        entry.error = Some(error);
        let due = now + backoff(retry, entry.failures, chance);
        entry.due = calm.map_or(due, |calm| calm.max(due));
        let is_lost = entry.wanted_by == WantedBy::Clients && entry.validity.is_none();
        entry.phase = if is_lost { Phase::Failed } else { Phase::Rests };
        Some(entry.due)
    }

    /// It was broken off from our side: it is due at once.
    pub(super) fn broken_off(&mut self, name: &str, now: SystemTime) {
        if let Some(entry) = self.entries.get_mut(name) {
            (entry.due, entry.phase) = (now, Phase::Rests);
        }
    }

    /// No route has it any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.entries.remove(name);
    }

    fn forget_failed(&mut self, now: SystemTime) {
        self.entries.retain(|_, entry| {
            entry.phase != Phase::Failed
                || now.duration_since(entry.due).is_ok_and(|since| since < FORGET_AFTER)
                || now < entry.due
        });
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter()
    }
}

impl Entry {
    fn waits_for_clients(&self) -> bool {
        self.wanted_by == WantedBy::Clients
            && self.validity.is_none()
            && self.phase != Phase::Failed
    }
}

/// When a third of its time is left, and a little before: not all at once.
fn renewal(validity: Validity, chance: f64) -> SystemTime {
    let lifetime = validity.until.duration_since(validity.from).unwrap_or_default();
    validity.until - lifetime / 3 - (lifetime / 30).mul_f64(chance.clamp(0.0, 1.0))
}

/// Doubles with each failure, and a tenth more or less by chance.
fn backoff(first: Duration, failures: u32, chance: f64) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(20));
    first.saturating_mul(doubled).min(RETRY_MAX).mul_f64(0.95 + chance.clamp(0.0, 1.0) / 10.0)
}

#[cfg(test)]
mod tests;
