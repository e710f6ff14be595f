//! `loadtest cold`: what a visitor waits for while a session wakes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::ensure;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    cli::Unmeasured,
    client::Fault,
    floor::{Floor, FloorArgs},
    found::{Found, Served},
    pace::{self, Pace},
    report::FLOOR,
    reset::{Reset, ResetArgs},
    run::{Peers, Run},
    tally::Tally,
    target::{Reach, Target},
    text::{Pattern, Span},
    wake,
};

/// Wakes sleeping sessions and measures what the first visitor waits for.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cold {
    /// What to ask for; an n in braces is the session's number, from 0.
    #[arg(value_name = "URL")]
    pub url: String,
    /// How many wakes are measured.
    #[arg(short = 'n', long, default_value_t = 40)]
    pub samples: usize,
    /// How many sessions there are for it.
    #[arg(long, default_value_t = 1)]
    pub sessions: usize,
    /// When: sequential, parallel=K (at the same instant) or poisson=RATE (a second).
    #[arg(long, default_value_t = Pattern::Sequential)]
    pub pattern: Pattern,
    /// Open a WebSocket and wait for one echo instead of a GET.
    #[arg(long)]
    pub websocket: bool,
    /// Wakes of each session that do not count: the first creates things and warms caches.
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    /// How long one wake may take.
    #[arg(long, default_value = "60s")]
    pub timeout: Span,
    /// How a session is brought back to sleep.
    #[command(flatten, next_help_heading = "Back to sleep")]
    pub reset: ResetArgs,
    /// The instance without a proxy.
    #[command(flatten, next_help_heading = "Floor")]
    pub floor: FloorArgs,
    /// Who else is measured.
    #[command(flatten, next_help_heading = "Servers")]
    pub peers: Peers,
    /// How servers are reached.
    #[command(flatten, next_help_heading = "Reach")]
    pub reach: Reach,
}

/// One server with its way back to sleep.
struct Sleeper<'a> {
    target: &'a Target,
    reset: Reset,
}

/// Does the work.
pub async fn run(args: &Cold, run: &Run) -> anyhow::Result<Found> {
    ensure!(0 < args.samples && 0 < args.sessions, "at least one sample of one session");
    let (at_once, rounds) = match args.pattern {
        Pattern::Sequential => (1, args.samples),
        Pattern::Parallel(k) => {
            ensure!(k <= args.sessions, "parallel={k} needs --sessions {k} or more");
            (k, args.samples.div_ceil(k))
        }
        Pattern::Poisson(_) => (1, 1),
    };
    let targets = args.peers.targets(&args.url, &args.reach)?;
    let sleepers = sleepers(args, &targets).await?;
    let floor = args.floor.open(at_once).await?;
    warm_up(args, &sleepers, floor.as_ref(), run).await?;

    let servers = sleepers.len() + usize::from(floor.is_some());
    let mut tallies = run
        .in_turn(servers, rounds, async |server, round| match (sleepers.get(server), &floor) {
            (Some(sleeper), _) => sample(args, sleeper, round, run).await,
            (None, Some(floor)) => by_hand(args, floor, at_once, run).await,
            (None, None) => Tally::default(),
        })
        .await;
    let by_hand = floor.is_some().then(|| tallies.pop()).flatten();
    let mut found = Found::of("ttfb", &targets, tallies);
    if let Some(rounds) = by_hand {
        let url = args.floor.floor.clone().unwrap_or_default();
        found.servers.push(Served { name: FLOOR.into(), url, rounds, seen: Vec::new() });
    }
    if let Some(floor) = floor {
        floor.close().await;
    }
    if sleepers[0].reset.is_none() {
        found.notes.push("no --admin, --reset-command or --reset-wait: were they asleep?".into());
    }
    Ok(found)
}

async fn sleepers<'a>(args: &Cold, targets: &'a [Target]) -> anyhow::Result<Vec<Sleeper<'a>>> {
    let mut sleepers = Vec::new();
    for (n, target) in targets.iter().enumerate() {
        target.check().await?;
        let owned = args.reach.i_own_this_target;
        let reset = match n {
            0 => args.reset.own(owned)?,
            _ => args.reset.of(&target.name, owned)?,
        };
        reset.check().await?;
        sleepers.push(Sleeper { target, reset });
    }
    Ok(sleepers)
}

/// Every session wakes and sleeps once or more, and so does the floor's.
async fn warm_up(
    args: &Cold,
    sleepers: &[Sleeper<'_>],
    floor: Option<&Floor>,
    run: &Run,
) -> anyhow::Result<()> {
    for round in 0..args.warmup {
        for sleeper in sleepers {
            for n in 0..args.sessions {
                if !run.goes_on() {
                    return Ok(());
                }
                run.bar.set_message(format!("warm-up {round} of session {n}"));
                let woken = run.unless_stopped(wake_one(args, sleeper, n)).await;
                let name = &sleeper.target.name;
                woken.transpose().map_err(|fault| {
                    Unmeasured(format!("{name}: session {n} cannot be woken: {}", fault.says()))
                })?;
            }
        }
        if let Some(floor) = floor {
            by_hand(args, floor, 1, run).await;
        }
    }
    run.bar.set_message("");
    Ok(())
}

async fn wake_one(args: &Cold, sleeper: &Sleeper<'_>, n: usize) -> Result<wake::Visit, Fault> {
    let place = sleeper.target.place(n).map_err(|e| Fault::Resolve(e.to_string()))?;
    sleeper.reset.reset(&place, n).await?;
    wake::visit(sleeper.target, &place, args.websocket, args.timeout.0).await
}

/// One round.
async fn sample(args: &Cold, sleeper: &Sleeper<'_>, round: usize, run: &Run) -> Tally {
    let mut tally = Tally::default();
    match args.pattern {
        Pattern::Sequential => {
            let woken = run.unless_stopped(wake_one(args, sleeper, round % args.sessions)).await;
            if let Some(woken) = woken {
                wake::record(&mut tally, woken);
            }
        }
        Pattern::Parallel(k) => {
            let sessions: Vec<_> = (0..k).map(|n| (round * k + n) % args.sessions).collect();
            run.unless_stopped(at_once(args, sleeper, &sessions, &mut tally)).await;
        }
        Pattern::Poisson(rate) => at_random(args, sleeper, rate, run, &mut tally).await,
    }
    tally
}

/// All asleep first; then all at the same instant.
async fn at_once(args: &Cold, sleeper: &Sleeper<'_>, sessions: &[usize], tally: &mut Tally) {
    let places = sessions.iter().map(|&n| (n, sleeper.target.place(n).expect("checked before")));
    let places: Vec<_> = places.collect();
    let resets = join_all(places.iter().map(|(n, place)| sleeper.reset.reset(place, *n))).await;
    let visits = places.iter().zip(resets).map(async |((_, place), reset)| {
        reset?;
        wake::visit(sleeper.target, place, args.websocket, args.timeout.0).await
    });
    for visit in join_all(visits).await {
        wake::record(tally, visit);
    }
}

/// Arrivals at random times, each at a session that is asleep by then.
async fn at_random(args: &Cold, sleeper: &Sleeper<'_>, rate: f64, run: &Run, tally: &mut Tally) {
    // Twice the mean time that so many arrivals take: only a bound.
    let time = Duration::from_secs_f64(2.0 * args.samples as f64 / rate + 1.0);
    let mut due = match pace::schedule(rate, time, true, run.seed) {
        Ok(due) => due,
        Err(error) => return tally.fault(&Fault::NotReset(error.to_string())),
    };
    due.truncate(args.samples);
    let asleep: Arc<Mutex<VecDeque<usize>>> = Arc::default();
    let mut under_way = JoinSet::new();
    for n in 0..args.sessions {
        let place = sleeper.target.place(n).expect("checked before");
        match sleeper.reset.reset(&place, n).await {
            Ok(()) => asleep.lock().expect("no panic").push_back(n),
            Err(fault) => tally.fault(&fault),
        }
    }
    let pace = Pace::begin(due, run.stop.clone());
    let mut none_asleep = 0;
    while let Some(at) = pace.next().await {
        let Some(n) = asleep.lock().expect("no panic").pop_front() else {
            none_asleep += 1;
            continue;
        };
        let (target, reset) = (sleeper.target.clone(), sleeper.reset.clone());
        let (asleep, websocket, limit) = (Arc::clone(&asleep), args.websocket, args.timeout.0);
        under_way.spawn(async move {
            let late = at.elapsed();
            let place = target.place(n).expect("checked before");
            let visit = wake::visit(&target, &place, websocket, limit).await;
            let back = reset.reset(&place, n).await;
            if back.is_ok() {
                asleep.lock().expect("no panic").push_back(n);
            }
            (visit, back, late)
        });
    }
    for (visit, back, late) in under_way.join_all().await {
        tally.took("lateness", late);
        wake::record(tally, visit);
        if let Err(fault) = back {
            tally.fault(&fault);
        }
    }
    for _ in 0..none_asleep {
        tally.fault(&Fault::NotReset("none was asleep: more --sessions".into()));
    }
}

async fn by_hand(args: &Cold, floor: &Floor, at_once: usize, run: &Run) -> Tally {
    let mut tally = Tally::default();
    // Arrivals at random meet an instance that starts alone; as many starts as sessions wake.
    let times = if matches!(args.pattern, Pattern::Poisson(_)) { args.samples } else { 1 };
    for _ in 0..times {
        let Some(measured) = run.unless_stopped(floor.measure(at_once)).await else { break };
        for start in measured {
            match start {
                Ok(took) => {
                    tally.took("ttfb", took);
                    tally.answers += 1;
                }
                Err(fault) => tally.fault(&fault),
            }
        }
    }
    tally
}
