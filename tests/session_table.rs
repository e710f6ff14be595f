//! The whole state × event product of the session machine: nothing is undecided. The long form is
//! a snapshot (`cargo insta review`), the short form is the table of `docs/session-states.md`
//! (`UPDATE=1 cargo test --test session_table` writes it).

#[path = "session_table/states.rs"]
mod states;

use std::{
    collections::BTreeSet,
    fmt::Write,
    time::{Duration, Instant},
};

use dormouse::session::{
    Admission, Depth, Effect, Endpoint, Event, Failure, Generation, Refusal,
    machine::{Asker, Session, SleepAnswer, State, Way},
};
use states::{Sample, endpoint, policy, samples};

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Of a generation that is over.
    Old,
    /// Of the generation that the state is of.
    Current,
    /// Of the one that those who wait behind a stop wait for.
    Next,
    /// Of one that nobody has asked for yet.
    Future,
}

/// What is done to a session.
#[derive(Clone, Copy, Debug)]
enum Input {
    Acquire(Asker),
    Sleep(Depth),
    Adopt,
    Message(&'static str, Whose),
    Found,
    Evict,
    Retire,
    Early,
    Due,
}

/// The messages that carry a generation.
const MESSAGES: [&str; 9] = [
    "Release",
    "ReleaseIgnored",
    "Begun",
    "RunsAlready",
    "Started",
    "StartFailed",
    "Stopped",
    "StopFailed",
    "Lost(suspended)",
];

fn inputs() -> Vec<Input> {
    use Input::{Acquire, Adopt, Due, Early, Evict, Found, Message, Retire, Sleep};
    let mut all = [Asker::Client, Asker::Operator, Asker::Ignored].map(Acquire).to_vec();
    all.extend(Depth::ALL.map(Sleep));
    for kind in MESSAGES {
        let all_of = [Whose::Current, Whose::Next, Whose::Old, Whose::Future];
        all.extend(all_of.map(|whose| Message(kind, whose)));
    }
    all.extend([Due, Early, Found, Evict, Retire, Adopt]);
    all
}

impl Input {
    fn name(self) -> String {
        match self {
            Self::Acquire(asker) => format!("acquire by {asker:?}").to_lowercase(),
            Self::Sleep(to) => format!("sleep({to})"),
            Self::Adopt => "adopt_policy".to_owned(),
            Self::Message(kind, whose) => format!("{kind} of {whose:?}").replace(" of Current", ""),
            Self::Found => "Found".to_owned(),
            Self::Evict => "Evict".to_owned(),
            Self::Retire => "Retire".to_owned(),
            Self::Early => "Timer, early".to_owned(),
            Self::Due => "Timer, due".to_owned(),
        }
    }

    /// Whether it must change nothing, whatever the state.
    fn is_void(self) -> bool {
        match self {
            Self::Message(_, Whose::Old | Whose::Future) | Self::Early => true,
            // Behind a stop, the next generation already has leases to give back.
            Self::Message(kind, Whose::Next) => kind != "Release",
            _ => false,
        }
    }

    /// Does it to `session`; the answer, when there is one, and the effects. `None` when the
    /// session wants no timer that could be due.
    fn put_to(self, session: &mut Session, mut now: Instant) -> Option<Outcome> {
        let before = session.clone();
        let current = session.generation();
        let next = match session.state() {
            State::Stopping { next, .. } => *next,
            _ => current.next(),
        };
        let (mut answer, mut out) = (None, Vec::new());
        match self {
            Self::Acquire(asker) => answer = Some(admitted(session.acquire(asker, now, &mut out))),
            Self::Sleep(to) => {
                answer = Some(match session.sleep(to, now, &mut out) {
                    SleepAnswer::InUse(_) => "in use".to_owned(),
                    answer => format!("{answer:?}").to_lowercase(),
                });
            }
            Self::Adopt => session.adopt_policy(policy()),
            Self::Found => session.handle(Event::Found, now, &mut out),
            Self::Evict => session.handle(Event::Evict, now, &mut out),
            Self::Retire => session.handle(Event::Retire, now, &mut out),
            Self::Early => session.handle(Event::Timer, now, &mut out),
            Self::Due => {
                now = now.max(session.deadline()?);
                session.handle(Event::Timer, now, &mut out);
            }
            Self::Message(kind, whose) => {
                let generation = match whose {
                    Whose::Old => Generation(current.0 - 1),
                    Whose::Current => current,
                    Whose::Next => next,
                    Whose::Future => Generation(next.0 + 1),
                };
                session.handle(message(kind, generation), now, &mut out);
            }
        }
        Some(Outcome { before, after: session.clone(), now, answer, out })
    }
}

fn message(kind: &str, generation: Generation) -> Event {
    match kind {
        "Release" => Event::Release(generation),
        "ReleaseIgnored" => Event::ReleaseIgnored(generation),
        "Begun" => Event::Begun(generation),
        "RunsAlready" => Event::RunsAlready(generation),
        "Started" => Event::Started(endpoint(generation)),
        "StartFailed" => Event::StartFailed(generation, Failure::EngineRefused),
        "Stopped" => Event::Stopped(generation),
        "StopFailed" => Event::StopFailed(generation),
        "Lost(suspended)" => Event::Lost(generation, Depth::Suspended),
        _ => unreachable!("{kind} is not a message"),
    }
}

fn admitted(admission: Admission) -> String {
    let word = match admission {
        Admission::Ready(_) => "ready",
        Admission::Wait(_) => "wait",
        Admission::Refuse(Refusal::Full) => "refuse: full",
        Admission::Refuse(Refusal::CoolingDown(_)) => "refuse: cooling down",
        Admission::Refuse(Refusal::StopFailing(_)) => "refuse: stop failing",
        Admission::Refuse(Refusal::Retired) => "refuse: retired",
        Admission::Refuse(Refusal::Asleep) => "refuse: asleep",
    };
    word.to_owned()
}

/// What came of one input.
struct Outcome {
    before: Session,
    after: Session,
    now: Instant,
    answer: Option<String>,
    out: Vec<Effect>,
}

impl Outcome {
    /// Not even a private counter moved.
    fn is_nothing(&self) -> bool {
        let moved = format!("{:?}", self.before) != format!("{:?}", self.after);
        self.answer.is_none() && self.out.is_empty() && !moved
    }

    /// Effects with generations relative to that of the state before: `g`, `g+1`.
    fn effects(&self) -> Vec<String> {
        let relative = |g: Generation| match g.0 - self.before.generation().0 {
            0 => "g".to_owned(),
            above => format!("g+{above}"),
        };
        let tell = |effect: &Effect| match effect {
            Effect::Start(g) => format!("`Start({})`", relative(*g)),
            Effect::Stop(g, to) => format!("`Stop({}, {to})`", relative(*g)),
            Effect::Open(Endpoint { generation, .. }) => {
                format!("`Open({})`", relative(*generation))
            }
            Effect::Rejoin(g) => format!("`Rejoin({})`", relative(*g)),
            Effect::Fail(g, failure) => format!("`Fail({}, {failure:?})`", relative(*g)),
        };
        self.out.iter().map(tell).collect()
    }

    /// The long form: everything that can be seen of the state.
    fn long(&self) -> String {
        let mut parts: Vec<String> = self.answer.iter().cloned().collect();
        parts.extend(self.effects());
        let moved = format!("{:?}", self.before) != format!("{:?}", self.after);
        if moved {
            parts.push(format!("=> {}", tell(&self.after, self.now)));
        }
        parts.join(", ").replace(", =>", " =>")
    }

    /// The short form: what was answered, done and changed.
    fn short(&self) -> String {
        let mut parts: Vec<String> = self.answer.iter().cloned().collect();
        parts.extend(self.effects());
        let (before, after) = (self.before.state(), self.after.state());
        if before.name() != after.name() {
            parts.push(format!("→ {}", after.name()));
        }
        let leases = i64::from(self.after.leases()) - i64::from(self.before.leases());
        if before.name() == after.name() && leases != 0 && !self.after.is_retired() {
            parts.push(if 0 < leases { "+1".to_owned() } else { "−1".to_owned() });
        }
        if parts.is_empty() && !self.is_nothing() {
            parts.push("noted".to_owned());
        }
        parts.join(", ")
    }
}

/// A state, with times as seconds from `now`.
fn tell(session: &Session, now: Instant) -> String {
    let from_now = |at: Instant| {
        let (later, earlier) =
            (at.saturating_duration_since(now), now.saturating_duration_since(at));
        if later.is_zero() {
            format!("-{}s", earlier.as_secs())
        } else {
            format!("+{}s", later.as_secs())
        }
    };
    let maybe = |at: Option<Instant>| at.map_or("never".to_owned(), from_now);
    let mut text = format!("{} {}", session.state().name(), session.generation());
    let told = match session.state() {
        State::Asleep { depth, idle_since, not_before } => {
            let not_before = maybe(*not_before);
            write!(text, " {depth} idle_since={} not_before={not_before}", from_now(*idle_since))
        }
        State::Waking { leases, way: Way::Boot { began, deadline, resumes } } => {
            let (began, deadline) = (from_now(*began), maybe(*deadline));
            write!(text, " leases={leases} began={began} deadline={deadline} resumes={resumes}")
        }
        State::Waking { leases, way: Way::Found { at, since, look_at, attempts } } => write!(
            text,
            " leases={leases} found={} since={} look_at={} attempts={attempts}",
            from_now(*at),
            from_now(*since),
            maybe(*look_at)
        ),
        State::Awake { endpoint, woke_at, leases, ignored, since } => {
            assert_eq!(endpoint.generation, session.generation());
            let (woke_at, since) = (from_now(*woke_at), from_now(*since));
            write!(text, " leases={leases} ignored={ignored} woke_at={woke_at} since={since}")
        }
        State::Idle { endpoint, woke_at, since } => {
            assert_eq!(endpoint.generation, session.generation());
            write!(text, " woke_at={} since={}", from_now(*woke_at), from_now(*since))
        }
        State::Stopping { to, idle_since, retry_at, attempts, failed, next, leases } => write!(
            text,
            " to={to} idle_since={} retry_at={} attempts={attempts} failed={failed} next={next} \
             leases={leases}",
            from_now(*idle_since),
            maybe(*retry_at)
        ),
    };
    told.expect("a String takes everything");
    let timer = session.deadline().map_or("none".to_owned(), from_now);
    let retired = if session.is_retired() { " retired" } else { "" };
    format!("{text}{retired}; timer={timer}")
}

fn try_all(sample: &Sample) -> impl Iterator<Item = (Input, Option<Outcome>)> + '_ {
    inputs().into_iter().map(|input| {
        let (mut session, now) = (sample.make)();
        (input, input.put_to(&mut session, now))
    })
}

#[test]
fn every_state_answers_every_event_as_recorded() {
    let mut text = String::new();
    for sample in samples() {
        let (session, now) = (sample.make)();
        writeln!(text, "## {}: {}", sample.name, tell(&session, now)).expect("a String");
        let mut nothing = Vec::new();
        for (input, outcome) in try_all(&sample) {
            match outcome {
                Some(outcome) if outcome.is_nothing() && input.is_void() => {}
                Some(outcome) if outcome.is_nothing() => nothing.push(input.name()),
                Some(outcome) => {
                    let name = input.name();
                    writeln!(text, "{name:24} {}", outcome.long()).expect("a String");
                }
                None => nothing.push(format!("{} (never)", input.name())),
            }
        }
        nothing.push("any other generation; an early timer".to_owned());
        writeln!(text, "nothing: {}\n", nothing.join("; ")).expect("a String");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_message_of_another_generation_and_an_early_timer_change_nothing() {
    for sample in samples() {
        for (input, outcome) in try_all(&sample) {
            let nothing = outcome.is_none_or(|outcome| outcome.is_nothing());
            assert!(nothing || !input.is_void(), "{} in {}", input.name(), sample.name);
        }
    }
}

/// Rows are events, columns are states; a cell has what every sample of the state came to.
fn markdown() -> String {
    let columns = ["asleep", "waking", "awake", "idle", "stopping"];
    let mut text = String::from("| | Asleep | Waking g | Awake g | Idle g | Stopping g |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for row in inputs().into_iter().filter(|input| !input.is_void()) {
        let mut cells = columns.map(|_| (Vec::new(), BTreeSet::new()));
        for sample in samples() {
            let (mut session, now) = (sample.make)();
            let column = columns.iter().position(|name| *name == session.state().name());
            let (cell, seen) = &mut cells[column.expect("every state has a column")];
            let short = row.put_to(&mut session, now).map_or(String::new(), |o| o.short());
            if !short.is_empty() && seen.insert(short.clone()) {
                cell.push(short);
            }
        }
        let cells = cells.map(|(cell, _)| cell.join("<br>or "));
        let name = row.name().replace(" of Next", "(g+1)");
        let name = match row {
            Input::Message("Lost(suspended)", _) => "Lost(g, suspended)".to_owned(),
            Input::Message(_, Whose::Current) => format!("{name}(g)"),
            _ => name,
        };
        writeln!(text, "| {name} | {} |", cells.join(" | ")).expect("a String");
    }
    text
}

#[test]
fn the_table_in_the_docs_is_this_machines() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/session-states.md");
    let page = std::fs::read_to_string(path).expect("docs/session-states.md is committed");
    let (begin, end) = ("<!-- table: generated -->\n", "<!-- end of table -->");
    let (head, rest) = page.split_once(begin).expect("the page marks where its table begins");
    let (table, foot) = rest.split_once(end).expect("the page marks where its table ends");
    let now = format!("\n{}\n", markdown());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{head}{begin}{now}{end}{foot}")).expect("docs/ is writable");
        return;
    }
    assert!(table == now, "the table is stale: UPDATE=1 cargo test --test session_table\n{now}");
}

/// All states and most of their corners; a new one in the machine needs a sample here.
#[test]
fn every_state_has_samples() {
    let names: BTreeSet<_> = samples().map(|s| (s.make)().0.state().name()).into_iter().collect();
    assert_eq!(names.len(), 5);
    let soon = Duration::from_secs(1);
    let timers = samples().into_iter().filter(|sample| {
        let (session, now) = (sample.make)();
        session.deadline().is_some_and(|at| now + soon <= at)
    });
    assert!(3 < timers.count(), "early timers can only be tried where a timer is wanted later");
}
