//! `loadtest sockets`: WebSockets that are opened, kept, and made to echo.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    cli::Unmeasured,
    client::Fault,
    found::Found,
    pace::{self, Pace},
    run::{Peers, Run},
    stats::Series,
    tally::Tally,
    target::{Reach, Target},
    text::Span,
    wake::{self, Socket},
    watch::{self, Watch},
};

/// Between two looks at the server.
const LOOK: Duration = Duration::from_millis(250);
/// How many are being opened at once: a listener's backlog is short.
const OPENING_MAX: usize = 64;

/// Opens WebSockets, keeps them, and sends messages that are to be echoed.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sockets {
    /// The WebSocket's URL, with http:// or https://; an n in braces is the session's number, from 0.
    #[arg(value_name = "URL")]
    pub url: String,
    /// How many.
    #[arg(short = 'c', long, default_value_t = 100)]
    pub sockets: usize,
    /// Sessions that they are spread over.
    #[arg(long, default_value_t = 1)]
    pub sessions: usize,
    /// Messages a second in all, whatever the server does; latency counts from when one was due.
    /// Without it: the next message of a socket goes out when the echo is there. 0: none.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Bytes of a message.
    #[arg(long, default_value_t = 100)]
    pub size: usize,
    /// How long messages are sent, or sockets are only kept, each round.
    #[arg(long, default_value = "4s")]
    pub time: Span,
    /// How long the server is left alone before its memory is taken down.
    #[arg(long, default_value = "2s")]
    pub settle: Span,
    /// How many rounds of each server; the sockets of one are closed before the next.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// How long opening a socket, or one echo, may take.
    #[arg(long, default_value = "30s")]
    pub timeout: Span,
    /// Who else is measured.
    #[command(flatten, next_help_heading = "Servers")]
    pub peers: Peers,
    /// How servers are reached.
    #[command(flatten, next_help_heading = "Reach")]
    pub reach: Reach,
}

/// Does the work.
pub async fn run(args: &Sockets, run: &Run) -> anyhow::Result<Found> {
    ensure!(0 < args.sockets && 0 < args.sessions, "at least one socket and session");
    let targets = args.peers.targets(&args.url, &args.reach)?;
    for target in &targets {
        target.check().await?;
        // Awake, and its caches warm, before its memory is taken down.
        for n in 0..args.sessions {
            let place = target.place(n)?;
            let open = wake::open(target, &place, args.timeout.0).await;
            let mut socket =
                open.map_err(|fault| Unmeasured(format!("{}: no socket: {fault}", target.name)))?;
            let _ = socket.close(None).await;
        }
    }
    let mut watched = vec![Vec::new(); targets.len()];
    let tallies = run
        .in_turn(targets.len(), args.rounds, async |server, round| {
            let mut tally = Tally::default();
            let watch = Watch::begin(targets[server].pids.clone(), LOOK, run.began);
            one_round(args, &targets[server], round, run, &mut tally).await;
            watched[server].extend(watch.end().await);
            tally
        })
        .await;
    let mut found = Found::of("echo", &targets, tallies);
    for (served, seen) in found.servers.iter_mut().zip(watched) {
        served.seen = seen;
    }
    Ok(found)
}

async fn one_round(args: &Sockets, target: &Target, round: usize, run: &Run, tally: &mut Tally) {
    let before = watch::look(&target.pids);
    let began = Instant::now();
    let sockets = open_all(args, target, run, tally).await;
    if sockets.is_empty() {
        return;
    }
    tally.value("opened-per-second", sockets.len() as f64 / began.elapsed().as_secs_f64());
    run.nap(args.settle.0).await;
    if let Some((before, after)) = before.zip(watch::look(&target.pids)) {
        let count = sockets.len() as f64;
        let more = after.rss_bytes as f64 - before.rss_bytes as f64;
        tally.value("memory-per-socket", more / count);
        tally.value("fds-per-socket", (after.fds as f64 - before.fds as f64) / count);
    }
    let sockets = if args.rate == Some(0.0) {
        let (before, began) = (watch::look(&target.pids), Instant::now());
        run.nap(args.time.0).await;
        if let Some((a, b)) = before.zip(watch::look(&target.pids)) {
            tally.value("cpu", watch::cores(a, b, began.elapsed().as_secs_f64()));
        }
        still_open(sockets, args.timeout.0, tally).await
    } else {
        talk(args, target, sockets, round, run, tally).await
    };
    for some in sockets.into_iter().collect::<Vec<_>>().chunks_mut(OPENING_MAX) {
        // What comes of the goodbye is not measured.
        join_all(some.iter_mut().map(|socket| socket.close(None))).await;
    }
}

async fn open_all(args: &Sockets, target: &Target, run: &Run, tally: &mut Tally) -> Vec<Socket> {
    let mut sockets = Vec::with_capacity(args.sockets);
    let all: Vec<usize> = (0..args.sockets).map(|n| n % args.sessions).collect();
    for some in all.chunks(OPENING_MAX) {
        let opening = some.iter().map(async |&n| {
            let place = target.place(n).expect("checked before");
            let began = Instant::now();
            wake::open(target, &place, args.timeout.0).await.map(|s| (s, began.elapsed()))
        });
        let Some(opened) = run.unless_stopped(join_all(opening)).await else { break };
        for socket in opened {
            match socket {
                Ok((socket, took)) => {
                    tally.took("open", took);
                    sockets.push(socket);
                }
                Err(fault) => tally.fault(&fault),
            }
        }
    }
    sockets
}

/// Each answers once more, or it was not kept.
async fn still_open(sockets: Vec<Socket>, limit: Duration, tally: &mut Tally) -> Vec<Socket> {
    let mut kept = Vec::with_capacity(sockets.len());
    for mut socket in sockets {
        let began = Instant::now();
        match timeout(limit, wake::echo(&mut socket, Message::text("still there?"))).await {
            Ok(Ok(())) => {
                tally.took("echo", began.elapsed());
                tally.answers += 1;
                kept.push(socket);
            }
            Ok(Err(fault)) => tally.fault(&fault),
            Err(_) => tally.fault(&Fault::Timeout),
        }
    }
    kept
}

async fn talk(
    args: &Sockets,
    target: &Target,
    sockets: Vec<Socket>,
    round: usize,
    run: &Run,
    tally: &mut Tally,
) -> Vec<Socket> {
    let due = args
        .rate
        .map(|rate| pace::schedule(rate, args.time.0, false, run.seed.wrapping_add(round as u64)));
    let due = match due.transpose() {
        Ok(due) => due,
        Err(error) => {
            tally.fault(&Fault::Resolve(error.to_string()));
            return sockets;
        }
    };
    let before = watch::look(&target.pids);
    let began = Instant::now();
    let (end, limit) = (began + args.time.0, args.timeout.0);
    let pace = due.map(|due| Pace::begin(due, run.stop.clone()));
    let message = Message::binary(vec![0x2a; args.size]);
    let mut talkers = JoinSet::new();
    for socket in sockets {
        let talker = Talker { socket, message: message.clone(), limit, run: run.clone() };
        talkers.spawn(talker.talk(pace.clone(), end));
    }
    let (mut kept, mut all) = (Vec::new(), Series::many());
    for (socket, series, part) in talkers.join_all().await {
        all.merge(&series);
        tally.merge(part);
        kept.extend(socket);
    }
    let seconds = began.elapsed().as_secs_f64();
    tally.series("echo", all);
    tally.value("rate", tally.answers as f64 / seconds);
    if let Some((a, b)) = before.zip(watch::look(&target.pids)).filter(|_| 0 < tally.answers) {
        tally.value("cpu-per-answer", (b.cpu_s - a.cpu_s) * 1e6 / tally.answers as f64);
    }
    kept
}

struct Talker {
    socket: Socket,
    message: Message,
    limit: Duration,
    run: Run,
}

impl Talker {
    /// Until time is up, or the socket is lost.
    async fn talk(
        mut self,
        pace: Option<Arc<Pace>>,
        end: Instant,
    ) -> (Option<Socket>, Series, Tally) {
        // A thousand histograms would be a gigabyte: a socket's own values are few.
        let (mut series, mut tally) = (Series::Exact(Vec::new()), Tally::default());
        loop {
            let due = match &pace {
                Some(pace) => pace.next().await,
                None => (Instant::now() < end && self.run.goes_on()).then(Instant::now),
            };
            let Some(due) = due else { return (Some(self.socket), series, tally) };
            if end + self.limit < Instant::now() {
                tally.fault(&Fault::NotSent);
                continue;
            }
            let echo = timeout(self.limit, wake::echo(&mut self.socket, self.message.clone()));
            let Some(echoed) = self.run.unless_stopped(echo).await else {
                return (None, series, tally);
            };
            match echoed.unwrap_or(Err(Fault::Timeout)) {
                Ok(()) => {
                    series.latency(due.elapsed());
                    tally.answers += 1;
                }
                Err(fault) => {
                    tally.fault(&fault);
                    return (None, series, tally);
                }
            }
        }
    }
}
