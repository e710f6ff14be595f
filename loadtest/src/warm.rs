//! `loadtest warm`: requests to sessions that are awake.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    cli::Unmeasured,
    client::{Connection, Fault},
    found::Found,
    pace::{self, Pace},
    run::{Peers, Run},
    stats::Series,
    tally::Tally,
    target::{Place, Reach, Target},
    text::Span,
    watch,
};

/// Sends requests to sessions that are awake: as fast as the answers come (closed loop), or at a
/// rate that does not wait for them (open loop, --rate).
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Warm {
    /// What to ask for; an n in braces is the session's number, from 0.
    #[arg(value_name = "URL")]
    pub url: String,
    /// Requests a second, whatever the server does; latency counts from when a request was due.
    /// Without it: the next request of a connection goes out when the answer is there.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// With --rate: at random times instead of evenly.
    #[arg(long)]
    pub poisson: bool,
    /// Keep-alive connections.
    #[arg(short = 'c', long, default_value_t = 32)]
    pub connections: usize,
    /// Requests under way at once on each connection, with --http2.
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// Sessions that the connections are spread over.
    #[arg(long, default_value_t = 1)]
    pub sessions: usize,
    /// How long a round is.
    #[arg(long, default_value = "4s")]
    pub time: Span,
    /// How many rounds of each server.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// How long one answer may take.
    #[arg(long, default_value = "30s")]
    pub timeout: Span,
    /// Who else is measured.
    #[command(flatten, next_help_heading = "Servers")]
    pub peers: Peers,
    /// How servers are reached.
    #[command(flatten, next_help_heading = "Reach")]
    pub reach: Reach,
}

/// What one client of a round found, apart from the others.
struct Share {
    latency: Series,
    service: Series,
    lateness: Series,
    tally: Tally,
}

/// Does the work.
pub async fn run(args: &Warm, run: &Run) -> anyhow::Result<Found> {
    ensure!(0 < args.connections && 0 < args.sessions, "at least one connection and session");
    ensure!(0 < args.streams && 0 < args.rounds, "at least one stream and round");
    ensure!(args.streams == 1 || args.reach.http2, "several --streams need --http2");
    let targets = args.peers.targets(&args.url, &args.reach)?;
    for target in &targets {
        target.check().await?;
        for n in 0..args.sessions {
            let place = target.place(n)?;
            let woken = async {
                Connection::open(target, &place, args.timeout.0)
                    .await?
                    .get(&place, args.timeout.0)
                    .await
            };
            let Some(woken) = run.unless_stopped(woken).await else { break };
            woken.map_err(|fault| {
                Unmeasured(format!("{}: session {n} does not answer: {fault}", target.name))
            })?;
        }
    }
    let tallies = run
        .in_turn(targets.len(), args.rounds, async |server, round| {
            one_round(args, &targets[server], round, run).await
        })
        .await;
    Ok(Found::of("latency", &targets, tallies))
}

async fn one_round(args: &Warm, target: &Target, round: usize, run: &Run) -> Tally {
    let mut tally = Tally::default();
    let mut connections = Vec::new();
    for n in 0..args.connections {
        let place = Arc::new(target.place(n % args.sessions).expect("checked before"));
        match Connection::open(target, &place, args.timeout.0).await {
            Ok(connection) => connections.push((connection, place)),
            Err(fault) => tally.fault(&fault),
        }
    }
    let pace = args.rate.map(|rate| {
        let seed = run.seed.wrapping_add(round as u64);
        pace::schedule(rate, args.time.0, args.poisson, seed)
    });
    let due = match pace.transpose() {
        Ok(due) => due,
        Err(error) => {
            tally.fault(&Fault::Resolve(error.to_string()));
            return tally;
        }
    };
    let (before, own_before) = (watch::look(&target.pids), watch::own_cpu());
    let began = Instant::now();
    let (end, limit) = (began + args.time.0, args.timeout.0);
    let pace = due.map(|due| Pace::begin(due, run.stop.clone()));
    let mut clients = JoinSet::new();
    for (connection, place) in connections {
        for lane in connection.lanes(args.streams) {
            let (target, place, run) = (target.clone(), Arc::clone(&place), run.clone());
            let client = Client { target, place, connection: lane, limit };
            match &pace {
                Some(pace) => clients.spawn(client.open_loop(Arc::clone(pace), end, run)),
                None => clients.spawn(client.closed_loop(end, run)),
            };
        }
    }
    let shares = clients.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = before.zip(watch::look(&target.pids)).map(|(a, b)| b.cpu_s - a.cpu_s);
    for share in shares {
        tally.series("latency", share.latency);
        tally.series("service", share.service);
        if args.rate.is_some() {
            tally.series("lateness", share.lateness);
        }
        tally.merge(share.tally);
    }
    tally.value("rate", tally.answers as f64 / seconds);
    tally.value("client-cpu", (watch::own_cpu() - own_before) / seconds);
    if let Some(cpu) = cpu.filter(|_| 0 < tally.answers) {
        tally.value("cpu-per-answer", cpu * 1e6 / tally.answers as f64);
    }
    tally
}

/// One lane: a request at a time.
struct Client {
    target: Target,
    place: Arc<Place>,
    connection: Connection,
    limit: Duration,
}

impl Client {
    async fn closed_loop(mut self, end: Instant, run: Run) -> Share {
        let mut share = Share::new();
        while Instant::now() < end && run.goes_on() {
            let began = Instant::now();
            run.unless_stopped(self.ask(&mut share, began)).await;
        }
        share
    }

    async fn open_loop(mut self, pace: Arc<Pace>, end: Instant, run: Run) -> Share {
        let mut share = Share::new();
        while let Some(due) = pace.next().await {
            // What could not even be sent so long after the last one was due is a fault, too.
            if end + self.limit < Instant::now() {
                share.tally.fault(&Fault::NotSent);
                continue;
            }
            share.lateness.latency(due.elapsed());
            run.unless_stopped(self.ask(&mut share, due)).await;
        }
        share
    }

    /// One request; its latency counts from `due`.
    async fn ask(&mut self, share: &mut Share, due: Instant) {
        let began = Instant::now();
        let asked = async {
            if !self.connection.is_open() {
                self.connection = Connection::open(&self.target, &self.place, self.limit).await?;
            }
            self.connection.get(&self.place, self.limit).await
        };
        match asked.await {
            Ok(_) => {
                share.latency.latency(due.elapsed());
                share.service.latency(began.elapsed());
                share.tally.answers += 1;
            }
            Err(fault) => {
                share.tally.fault(&fault);
                if fault == Fault::Timeout {
                    self.connection.close();
                }
                if fault == Fault::Connect {
                    // A server that is gone is not asked a million times a second.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

impl Share {
    fn new() -> Self {
        let (latency, service, lateness) = (Series::many(), Series::many(), Series::many());
        Self { latency, service, lateness, tally: Tally::default() }
    }
}
