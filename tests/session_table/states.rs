//! One session in each state and in each of its corners, led there by events alone.

use std::time::{Duration, Instant};

use dormouse::session::{
    Address, Admission, Depth, Endpoint, Event, Failure, Generation, Policy, Rung,
    machine::{Asker, Session},
};

/// A session to try things on.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    /// The session, and what time it is there.
    pub(crate) make: fn() -> (Session, Instant),
}

const G: Generation = Generation(8);

pub(crate) fn policy() -> Policy {
    let rung = |after, to| Rung { after: Duration::from_secs(after), to };
    Policy {
        ladder: [rung(120, Depth::Paused), rung(900, Depth::Stopped), rung(3600, Depth::Removed)]
            .into(),
        min_awake: Duration::from_secs(60),
        wake_timeout: Duration::from_secs(30),
        boot_max: Duration::from_secs(300),
        held_max: 2,
    }
}

pub(crate) fn endpoint(generation: Generation) -> Endpoint {
    Endpoint { generation, address: Address::Tcp(([127, 0, 0, 1], 80).into()) }
}

/// Generation 7 was the last; what comes is 8.
fn new() -> (Session, Instant) {
    let now = Instant::now();
    (Session::new(policy(), Generation(7), Depth::Removed, now), now)
}

type Life = (Session, Instant);

fn then(life: Life, event: Event) -> Life {
    later(life, 0, event)
}

fn later((mut session, now): Life, seconds: u64, event: Event) -> Life {
    let now = now + Duration::from_secs(seconds);
    session.handle(event, now, &mut Vec::new());
    (session, now)
}

fn ask(life: Life) -> Life {
    ask_as(Asker::Client, life)
}

fn ask_as(asker: Asker, (mut session, now): Life) -> Life {
    let admission = session.acquire(asker, now, &mut Vec::new());
    assert!(!matches!(admission, Admission::Refuse(_)), "{admission:?} in {session:?}");
    (session, now)
}

fn sleep((mut session, now): Life, to: Depth) -> Life {
    session.sleep(to, now, &mut Vec::new());
    (session, now)
}

fn waking() -> Life {
    ask(new())
}

fn awake() -> Life {
    later(waking(), 1, Event::Started(endpoint(G)))
}

fn idle() -> Life {
    later(awake(), 10, Event::Release(G))
}

fn stopping() -> Life {
    later(idle(), 120, Event::Timer)
}

fn paused() -> Life {
    later(stopping(), 1, Event::Stopped(G))
}

fn found() -> Life {
    then(new(), Event::Found)
}

fn failed() -> Life {
    then(waking(), Event::StartFailed(G, Failure::EngineBusy))
}

fn cooling() -> Life {
    then(failed(), Event::Stopped(G))
}

pub(crate) fn samples() -> [Sample; 34] {
    let sample = |name, make| Sample { name, make };
    [
        sample("asleep, never was", new),
        sample("asleep, paused", paused),
        sample("asleep, cooling down", cooling),
        sample("asleep, retired", || then(new(), Event::Retire)),
        sample("asleep, paused and retired", || {
            // Deep enough when its route went, found lighter since.
            then(then(cooling(), Event::Retire), Event::Lost(G, Depth::Paused))
        }),
        sample("waking, one waits", waking),
        sample("waking, nobody waits", || then(waking(), Event::Release(G))),
        sample("waking, full", || ask(waking())),
        sample("waking, begun", || then(waking(), Event::Begun(G))),
        sample("waking, from paused", || ask(paused())),
        sample("found, nobody waits", found),
        sample("found, one waits", || ask(found())),
        sample("found, full", || ask(ask(found()))),
        sample("found, for longer than it must be awake", || later(found(), 70, Event::Found)),
        sample("found, its engine cannot say where", || {
            then(found(), Event::StartFailed(G, Failure::EngineBusy))
        }),
        sample("awake, one lease", awake),
        sample("awake, two leases", || ask(awake())),
        sample("awake, one lease that is ignored", || {
            let (session, now) = idle();
            ask_as(Asker::Ignored, (session, now + Duration::from_secs(5)))
        }),
        sample("awake, two leases, one is ignored", || ask_as(Asker::Ignored, awake())),
        sample("awake, retired", || then(awake(), Event::Retire)),
        sample("idle", idle),
        sample("idle, for longer than it must be awake", || later(idle(), 60, Event::Found)),
        sample("idle, adopted", || {
            later(then(new(), Event::Found), 2, Event::Started(endpoint(G)))
        }),
        sample("stopping, nobody waits", stopping),
        sample("stopping, one waits", || ask(stopping())),
        sample("stopping, full", || ask(ask(stopping()))),
        sample("stopping, after a failed wake", failed),
        sample("stopping, it failed", || then(stopping(), Event::StopFailed(G))),
        sample("stopping, it failed and failed the waiting", || {
            then(ask(stopping()), Event::StopFailed(G))
        }),
        sample("stopping, tried again", || {
            later(then(stopping(), Event::StopFailed(G)), 1, Event::Timer)
        }),
        sample("stopping, one waits after others were failed", || {
            let failed = then(ask(stopping()), Event::StopFailed(G));
            ask(later(failed, 1, Event::Timer))
        }),
        sample("stopping, deeper asked for", || sleep(stopping(), Depth::Removed)),
        sample("stopping, retired", || then(stopping(), Event::Retire)),
        sample("stopping, deeper", || later(paused(), 780, Event::Timer)),
    ]
}
