//! The pure machine of one session: what decides, without the lock, the gate and the timers around.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use divan::Bencher;
use dormouse::session::{
    Address, Depth, Endpoint, Event, Generation,
    machine::{Asker, Session},
};

use crate::instant::plan;

const IDLE: Duration = Duration::from_secs(60);

fn endpoint(generation: Generation) -> Endpoint {
    Endpoint { generation, address: Address::Tcp(([127, 0, 0, 1], 1).into()) }
}

/// A session that is idle.
fn idle(now: Instant) -> Session {
    let mut session = Session::new(plan(IDLE).policy, Generation(0), Depth::Removed, now);
    let mut out = Vec::new();
    session.acquire(Asker::Client, now, &mut out);
    session.handle(Event::Started(endpoint(session.generation())), now, &mut out);
    session.handle(Event::Release(session.generation()), now, &mut out);
    session
}

/// Two steps: a request comes to an idle session, and ends. Two threads share nothing here: what
/// the second row has above the first is the machine's, and is in every figure of two threads.
#[divan::bench(threads = [1, 2], sample_count = 40, sample_size = 50_000)]
fn request_and_release(bencher: Bencher<'_, '_>) {
    thread_local! {
        static SESSION: RefCell<Session> = RefCell::new(idle(Instant::now()));
    }
    let now = Instant::now();
    bencher.bench(|| {
        SESSION.with_borrow_mut(|session| {
            let mut out = Vec::new();
            let admission = session.acquire(Asker::Client, now, &mut out);
            session.handle(Event::Release(session.generation()), now, &mut out);
            (admission, session.deadline())
        })
    });
}

/// Five steps: request, started, release, deadline, stopped. What the engine does costs nothing here.
#[divan::bench]
fn wake_and_sleep(bencher: Bencher<'_, '_>) {
    let mut now = Instant::now();
    let mut session = Session::new(plan(IDLE).policy, Generation(0), Depth::Removed, now);
    let mut out = Vec::with_capacity(8);
    bencher.bench_local(|| {
        session.acquire(Asker::Client, now, &mut out);
        let generation = session.generation();
        session.handle(Event::Started(endpoint(generation)), now, &mut out);
        session.handle(Event::Release(generation), now, &mut out);
        now += IDLE;
        session.handle(Event::Timer, now, &mut out);
        session.handle(Event::Stopped(generation), now, &mut out);
        assert_eq!((session.state().name(), out.len()), ("asleep", 3));
        out.clear();
    });
}
