//! `loadtest herd`: many clients at the same instant on sleeping sessions.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{sync::Barrier, task::JoinSet};

use crate::{
    client::{Connection, Fault, server_timing},
    found::Found,
    identity::IdentityArgs,
    reset::{Reset, ResetArgs},
    run::{Peers, Run},
    tally::Tally,
    target::{Place, Reach, Target},
    text::Span,
    watch::{Seen, Watch},
};

/// Between two looks at the server while clients are held.
const LOOK: Duration = Duration::from_millis(50);
/// How many connections are being opened at once: a listener's backlog is short.
const OPENING_MAX: usize = 64;

/// Sends the requests of many clients at the same instant to sessions that sleep. Their
/// connections are open before.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Herd {
    /// What to ask for; an n in braces is the session's number, from 0.
    #[arg(value_name = "URL")]
    pub url: String,
    /// How many clients each session gets.
    #[arg(short = 'k', long, default_value_t = 100)]
    pub clients: usize,
    /// How many sessions, all at once.
    #[arg(long, default_value_t = 1)]
    pub sessions: usize,
    /// How many times.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// The instances say who they are, so that starts can be counted.
    #[arg(long)]
    pub identity: bool,
    /// How long one answer may take.
    #[arg(long, default_value = "60s")]
    pub timeout: Span,
    /// Who the instances are.
    #[command(flatten, next_help_heading = "Identity")]
    pub who: IdentityArgs,
    /// How a session is brought back to sleep.
    #[command(flatten, next_help_heading = "Back to sleep")]
    pub reset: ResetArgs,
    /// Who else is measured.
    #[command(flatten, next_help_heading = "Servers")]
    pub peers: Peers,
    /// How servers are reached.
    #[command(flatten, next_help_heading = "Reach")]
    pub reach: Reach,
}

/// What one client got.
struct Got {
    session: usize,
    /// From its request until its answer was whole.
    took: Duration,
    life: Option<u64>,
    timing: Vec<(String, f64)>,
}

/// Does the work.
pub async fn run(args: &Herd, run: &Run) -> anyhow::Result<Found> {
    ensure!(0 < args.clients && 0 < args.sessions, "at least one client and session");
    let targets = args.peers.targets(&args.url, &args.reach)?;
    let mut resets = Vec::new();
    for (n, target) in targets.iter().enumerate() {
        target.check().await?;
        let owned = args.reach.i_own_this_target;
        let own = if n == 0 { args.reset.own(owned) } else { args.reset.of(&target.name, owned) };
        resets.push(own?);
        resets[n].check().await?;
    }
    let mut watched = vec![Vec::new(); targets.len()];
    let tallies = run
        .in_turn(targets.len(), args.rounds, async |server, _| {
            let (target, reset) = (&targets[server], &resets[server]);
            let mut tally = Tally::default();
            let herd = one_herd(args, target, reset, &mut tally, &mut watched[server], run.began);
            run.unless_stopped(herd).await;
            tally
        })
        .await;
    let mut found = Found::of("ttfb", &targets, tallies);
    for (served, seen) in found.servers.iter_mut().zip(watched) {
        served.seen = seen;
    }
    if resets[0].is_none() {
        found.notes.push("no --admin, --reset-command or --reset-wait: were they asleep?".into());
    }
    Ok(found)
}

async fn one_herd(
    args: &Herd,
    target: &Target,
    reset: &Reset,
    tally: &mut Tally,
    watched: &mut Vec<Seen>,
    began: Instant,
) {
    let places: Vec<_> =
        (0..args.sessions).map(|n| Arc::new(target.place(n).expect("checked before"))).collect();
    let back = places.iter().enumerate().map(|(n, place)| reset.reset(place, n));
    for fault in join_all(back).await.into_iter().filter_map(Result::err) {
        tally.fault(&fault);
    }
    let connections = connect(args, target, &places, tally).await;
    if connections.is_empty() {
        return;
    }
    let watch = Watch::begin(target.pids.clone(), LOOK, began);
    let start = Arc::new(Barrier::new(connections.len()));
    let held = connections.len() as f64;
    let mut clients = JoinSet::new();
    for (session, mut connection) in connections {
        let (place, start) = (Arc::clone(&places[session]), Arc::clone(&start));
        let (identity, who, limit) = (args.identity, args.who.clone(), args.timeout.0);
        clients.spawn(async move {
            start.wait().await;
            let answer = connection.get(&place, limit).await?;
            let life = identity.then(|| who.life(&answer.body, &place.host)).transpose()?;
            let timing = server_timing(&answer.headers);
            let got = Got { session, took: answer.took, life, timing };
            Ok::<_, Fault>((Instant::now(), answer.wait, got))
        });
    }
    let mut got = Vec::new();
    for answer in clients.join_all().await {
        match answer {
            Ok((done, wait, client)) => {
                tally.took("ttfb", wait);
                tally.took("total", client.took);
                for (name, millis) in &client.timing {
                    tally.exact(&format!("server.{name}"), *millis);
                }
                tally.answers += 1;
                got.push((done, client));
            }
            Err(fault) => tally.fault(&fault),
        }
    }
    let seen = watch.end().await;
    if let (Some(first), Some(peak)) = (seen.first(), seen.iter().map(|s| s.rss_bytes).max()) {
        tally.value("memory-per-held", peak.saturating_sub(first.rss_bytes) as f64 / held);
    }
    watched.extend(seen);
    judge(args, &got, tally);
}

/// Connections of all clients, the sessions taking turns.
async fn connect(
    args: &Herd,
    target: &Target,
    places: &[Arc<Place>],
    tally: &mut Tally,
) -> Vec<(usize, Connection)> {
    let mut opened = Vec::new();
    let all: Vec<usize> = (0..args.clients * args.sessions).map(|n| n % args.sessions).collect();
    for some in all.chunks(OPENING_MAX) {
        let opening = some.iter().map(async |&session| {
            (session, Connection::open(target, &places[session], args.timeout.0).await)
        });
        for (session, connection) in join_all(opening).await {
            match connection {
                Ok(connection) => opened.push((session, connection)),
                Err(fault) => tally.fault(&fault),
            }
        }
    }
    opened
}

/// One start for each session, and nobody much later than the first.
fn judge(args: &Herd, got: &[(Instant, Got)], tally: &mut Tally) {
    for session in 0..args.sessions {
        let of_it = || got.iter().filter(move |(_, client)| client.session == session);
        let done = || of_it().map(|(done, _)| *done);
        if let (Some(first), Some(last)) = (done().min(), done().max()) {
            tally.took("spread", last - first);
        }
        if args.identity {
            let lives: BTreeSet<_> = of_it().filter_map(|(_, client)| client.life).collect();
            tally.exact("starts", lives.len() as f64);
            if 1 < lives.len() {
                tally.fault(&Fault::TwoLives);
            }
        }
    }
}
