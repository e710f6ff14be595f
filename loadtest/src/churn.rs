//! `loadtest churn`: sessions that wake and sleep at random for a long time, every answer checked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    cli::Unmeasured,
    client::{Connection, Fault, server_timing},
    found::Found,
    identity::IdentityArgs,
    reset::ResetArgs,
    run::{Peers, Run},
    stats::slope,
    tally::Tally,
    target::{Reach, Target},
    text::Span,
    watch::{self, Seen, Watch},
};

/// Wakes sessions and puts them to sleep at random, and checks whose answer each answer is.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Churn {
    /// Where an instance says who it is; an n in braces is the session's number, from 0.
    #[arg(value_name = "URL")]
    pub url: String,
    /// How many sessions.
    #[arg(long, default_value_t = 20)]
    pub sessions: usize,
    /// How many clients, each going from session to session.
    #[arg(short = 'c', long, default_value_t = 8)]
    pub clients: usize,
    /// How long.
    #[arg(long, default_value = "60s")]
    pub time: Span,
    /// Which share of the visits puts the session to sleep afterwards (needs --admin); without the
    /// admin API sessions sleep by their own idleness.
    #[arg(long, default_value_t = 0.3)]
    pub sleeps: f64,
    /// A pause of each client between two visits, on average.
    #[arg(long, default_value = "10ms")]
    pub pause: Span,
    /// This long at the beginning does not count for the slopes.
    #[arg(long, default_value = "0s")]
    pub settle: Span,
    /// Between two looks at the server.
    #[arg(long, default_value = "1s")]
    pub look_every: Span,
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

/// What all clients share.
struct Ground {
    args: Churn,
    target: Target,
    reset: crate::reset::Reset,
    /// The newest life of each session that has answered.
    lives: Vec<AtomicU64>,
    wakes: AtomicU64,
    sleeps: AtomicU64,
    end: Instant,
}

/// Does the work.
pub async fn run(args: &Churn, run: &Run) -> anyhow::Result<Found> {
    ensure!(0 < args.clients && 0 < args.sessions, "at least one client and session");
    ensure!((0.0..=1.0).contains(&args.sleeps), "--sleeps is a share, 0 to 1");
    ensure!(args.peers.compare.is_empty(), "churn looks at one server: no --compare");
    let targets = args.peers.targets(&args.url, &args.reach)?;
    let target = targets[0].clone();
    target.check().await?;
    let reset = args.reset.own(args.reach.i_own_this_target)?;
    reset.check().await?;
    let first = target.place(0)?;
    let answer = async {
        Connection::open(&target, &first, args.timeout.0).await?.get(&first, args.timeout.0).await
    };
    let answer = answer.await.map_err(|fault| Unmeasured(format!("no answer: {fault}")))?;
    if let Err(Fault::NoIdentity) = args.who.life(&answer.body, &first.host) {
        return Err(Unmeasured("the instance does not say who it is".into()).into());
    }

    run.bar.set_length(args.time.0.as_secs());
    let lives = (0..args.sessions).map(|_| AtomicU64::new(0)).collect();
    let watch = Watch::begin(target.pids.clone(), args.look_every.0, run.began);
    let end = Instant::now() + args.time.0;
    let (wakes, sleeps) = (AtomicU64::new(0), AtomicU64::new(0));
    let ground = Ground { args: args.clone(), target, reset, lives, wakes, sleeps, end };
    let ground = Arc::new(ground);
    let mut clients = JoinSet::new();
    for n in 0..args.clients {
        clients.spawn(Arc::clone(&ground).client(run.clone(), n as u64));
    }
    let began = Instant::now();
    let mut tally = Tally::default();
    while let Some(part) = clients.join_next().await {
        tally.merge(part.context("a client broke")?);
    }
    tally.value("rate", tally.answers as f64 / began.elapsed().as_secs_f64());
    tally.value("wakes", ground.wakes.load(Ordering::SeqCst) as f64);
    tally.value("sleeps", ground.sleeps.load(Ordering::SeqCst) as f64);
    let wrong = [Fault::WrongSession, Fault::OldLife, Fault::NoIdentity];
    let wrong = wrong.iter().filter_map(|fault| tally.faults.get(&fault.to_string()));
    tally.value("wrong-answers", wrong.sum::<u64>() as f64);
    let seen = watch.end().await;
    slopes(&mut tally, &seen, args.settle.0);
    let mut found = Found::of("ttfb", &targets, vec![vec![tally]]);
    found.servers[0].seen = seen;
    Ok(found)
}

/// How memory, descriptors and threads grew, once it had settled.
fn slopes(tally: &mut Tally, seen: &[Seen], settle: Duration) {
    if let (Some(first), Some(last)) = (seen.first(), seen.last())
        && first.at_s < last.at_s
    {
        tally.value("cpu", watch::cores(*first, *last, last.at_s - first.at_s));
    }
    let settled: Vec<_> =
        seen.iter().filter(|s| settle.as_secs_f64() <= s.at_s - seen[0].at_s).collect();
    let mut of = |name: &str, value: fn(&Seen) -> f64| {
        let points: Vec<_> = settled.iter().map(|s| (s.at_s / 3600.0, value(s))).collect();
        if let Some(slope) = slope(&points) {
            tally.value(&format!("{name}-slope"), slope);
        }
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            tally.value(&format!("{name}-growth"), last.1 - first.1);
        }
    };
    of("rss", |seen| seen.rss_bytes as f64);
    of("fds", |seen| seen.fds as f64);
    of("threads", |seen| seen.threads as f64);
}

impl Ground {
    async fn client(self: Arc<Self>, run: Run, n: u64) -> Tally {
        let mut tally = Tally::default();
        let mut random = StdRng::seed_from_u64(run.seed ^ n.rotate_left(32));
        while Instant::now() < self.end && run.goes_on() {
            let session = random.random_range(0..self.args.sessions);
            let sleeps = random.random_bool(self.args.sleeps);
            let pause = self.args.pause.0.mul_f64(2.0 * random.random::<f64>());
            let Some(visited) = run.unless_stopped(self.visit(session, &mut tally)).await else {
                break;
            };
            if let Err(fault) = visited {
                tally.fault(&fault);
            }
            if let (true, Some((admin, depth))) = (sleeps, self.reset.admin()) {
                let host = self.target.place(session).expect("checked before").host;
                match admin.order_sleep(&host, depth).await {
                    Ok(true) => drop(self.sleeps.fetch_add(1, Ordering::SeqCst)),
                    Ok(false) => {}
                    Err(fault) => tally.fault(&fault),
                }
            }
            if n == 0 {
                let left = self.end.saturating_duration_since(Instant::now());
                run.bar.set_position((self.args.time.0 - left.min(self.args.time.0)).as_secs());
            }
            run.nap(pause).await;
        }
        tally
    }

    async fn visit(&self, n: usize, tally: &mut Tally) -> Result<(), Fault> {
        let place = self.target.place(n).expect("checked before");
        // Whoever answers from now on must be at least this young.
        let known = self.lives[n].load(Ordering::SeqCst);
        let mut connection = Connection::open(&self.target, &place, self.args.timeout.0).await?;
        let answer = connection.get(&place, self.args.timeout.0).await?;
        let life = self.args.who.life(&answer.body, &place.host)?;
        if life < known {
            return Err(Fault::OldLife);
        }
        self.lives[n].fetch_max(life, Ordering::SeqCst);
        tally.many("ttfb", connection.dialled.total() + answer.wait);
        let timing = server_timing(&answer.headers);
        self.wakes.fetch_add(u64::from(!timing.is_empty()), Ordering::SeqCst);
        for (name, millis) in timing {
            let took = Duration::from_secs_f64(millis.clamp(0.0, 1e9) / 1e3);
            tally.many(&format!("server.{name}"), took);
        }
        tally.answers += 1;
        Ok(())
    }
}
