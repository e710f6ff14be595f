//! What happened in the simulation, told for people and without wall-clock time.

use std::{collections::BTreeSet, fmt::Write, time::Duration};

use dormouse::session::{
    Admission, Depth, Effect, Event, Refusal,
    machine::{Asker, Session, SleepAnswer},
};

#[derive(Debug)]
pub(crate) enum What {
    Event(Event),
    Acquire(Asker, Admission),
    Sleep(Depth, SleepAnswer),
    /// The route was edited.
    Policy,
    /// The instance ended by itself.
    Died,
    /// Somebody else started the instance.
    Foreign,
}

#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) at: Duration,
    pub(crate) what: What,
    pub(crate) effects: Vec<Effect>,
    pub(crate) session: Session,
}

#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Note>);

impl Notes {
    pub(crate) fn push(&mut self, note: Note) {
        self.0.push(note);
    }

    /// The last `most` of them, one a line.
    pub(crate) fn last(&self, most: usize) -> String {
        let mut text = String::new();
        for note in &self.0[self.0.len().saturating_sub(most)..] {
            let what = match &note.what {
                What::Event(event) => word(event),
                What::Acquire(asker, Admission::Ready(e)) => {
                    format!("{asker:?}: Ready({})", e.generation)
                }
                What::Acquire(asker, Admission::Wait(g)) => format!("{asker:?}: Wait({g})"),
                What::Acquire(asker, Admission::Refuse(refusal)) => {
                    format!("{asker:?}: {}", refused(*refusal))
                }
                What::Sleep(to, answer) => format!("Sleep({to}): {answer:?}"),
                What::Policy | What::Died | What::Foreign => format!("{:?}", note.what),
            };
            let effects: Vec<_> = note.effects.iter().map(effect).collect();
            let (session, at) = (&note.session, note.at.as_secs_f64());
            let (state, generation) = (session.state().name(), session.generation());
            let (leases, effects) = (session.leases(), effects.join(" "));
            writeln!(text, "{at:10.3} {what:32} => {state} {generation} ({leases}) {effects}")
                .expect("a String takes everything");
        }
        text
    }

    /// Adds which kinds of things happened.
    pub(crate) fn kinds(&self, seen: &mut BTreeSet<String>) {
        for note in &self.0 {
            match &note.what {
                What::Acquire(_, Admission::Refuse(refusal)) => {
                    seen.insert(refused(*refusal).to_owned());
                }
                What::Sleep(_, SleepAnswer::InUse(_)) => drop(seen.insert("InUse".to_owned())),
                What::Sleep(_, answer) => drop(seen.insert(format!("{answer:?}"))),
                What::Acquire(Asker::Ignored, Admission::Ready(_)) => {
                    seen.insert("Ignored".to_owned());
                }
                What::Event(Event::Evict) => {
                    seen.insert(format!("Evict => {}", note.session.state().name()));
                }
                What::Event(Event::RunsAlready(_)) if note.session.is_found() => {
                    seen.insert("RunsAlready".to_owned());
                }
                What::Event(Event::Timer) if note.session.is_found() => {
                    seen.insert("Found: looked at again".to_owned());
                }
                What::Event(Event::Found) => {
                    seen.insert(format!("Found => {}", note.session.state().name()));
                }
                _ => {}
            }
            for effect in &note.effects {
                match effect {
                    Effect::Stop(_, to) => drop(seen.insert(format!("Stop {to}"))),
                    Effect::Fail(_, failure) => drop(seen.insert(format!("{failure:?}"))),
                    Effect::Rejoin(_) => drop(seen.insert("Rejoin".to_owned())),
                    Effect::Start(_) | Effect::Open(_) => {}
                }
            }
        }
    }
}

/// What a world worth living in must contain.
pub(crate) const KINDS: &[&str] = &[
    "Full",
    "CoolingDown",
    "StopFailing",
    "Retired",
    "Asleep",
    "Ignored",
    "Evict => stopping",
    "Evict => idle",
    "Timeout",
    "EngineBusy",
    "EngineRefused",
    "Died",
    "PutToSleep",
    "Begun",
    "Already",
    "InUse",
    "Rejoin",
    "RunsAlready",
    "Found: looked at again",
    "Found => waking",
    "Found => asleep",
    "Stop paused",
    "Stop suspended",
    "Stop stopped",
    "Stop removed",
];

fn word(event: &Event) -> String {
    match event {
        Event::Started(endpoint) => format!("Started({})", endpoint.generation),
        Event::Release(g) => format!("Release({g})"),
        Event::ReleaseIgnored(g) => format!("ReleaseIgnored({g})"),
        Event::Begun(g) => format!("Begun({g})"),
        Event::RunsAlready(g) => format!("RunsAlready({g})"),
        Event::StartFailed(g, failure) => format!("StartFailed({g}, {failure:?})"),
        Event::Stopped(g) => format!("Stopped({g})"),
        Event::StopFailed(g) => format!("StopFailed({g})"),
        Event::Lost(g, depth) => format!("Lost({g}, {depth})"),
        Event::Found | Event::Evict | Event::Retire | Event::Timer => format!("{event:?}"),
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Start(g) => format!("Start({g})"),
        Effect::Stop(g, to) => format!("Stop({g}, {to})"),
        Effect::Open(endpoint) => format!("Open({})", endpoint.generation),
        Effect::Rejoin(g) => format!("Rejoin({g})"),
        Effect::Fail(g, failure) => format!("Fail({g}, {failure:?})"),
    }
}

fn refused(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Full => "Full",
        Refusal::CoolingDown(_) => "CoolingDown",
        Refusal::StopFailing(_) => "StopFailing",
        Refusal::Retired => "Retired",
        Refusal::Asleep => "Asleep",
    }
}
