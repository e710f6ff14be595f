//! A warm request through Dormouse against the same through a bare Pingora proxy, built with the
//! same settings, both in front of one instance: A B A B in one run.
//!
//! `cargo bench --bench warm`; ROUNDS and SECONDS change how long it takes.

mod bed;

use std::{env, net::SocketAddr, thread, time::Duration};

use async_trait::async_trait;
use bed::{Part, closed_loop, median};
use pingora::{
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};

/// The same settings as Dormouse's own binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CONNECTIONS: usize = 32;

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["instance", listen] => bed::instance(listen),
        ["bare", listen, upstream] => bare(listen, upstream.parse().expect("an address")),
        _ => compare(),
    }
}

fn compare() {
    let number =
        |name, default| env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (rounds, seconds) = (number("ROUNDS", 7), number("SECONDS", 4));
    let time = Duration::from_secs(seconds);
    let this = env::current_exe().expect("a path");
    let route = format!(
        "host = \"warm.test\"\n[instance]\ncommand = [{this:?}, \"instance\", \"{{address}}\"]\n"
    );
    let edge = bed::edge("", &route);
    bed::get(edge.http, "warm.test", "/").expect("it wakes");
    let session = bed::get(edge.admin, "localhost", "/v1/sessions/warm.test").expect("a session");
    let address = session.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let address = address.expect("an address");
    let listen = bed::free_port();
    let bare = bed::part(&["bare", &listen.to_string(), address]);
    bed::wait_for(listen, "/");

    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    println!("{CONNECTIONS} keep-alive connections, {seconds} s a run, {rounds} rounds");
    println!("round  dormouse req/s  bare req/s  ratio   dormouse µs CPU  bare µs CPU  ratio");
    for round in 0..rounds {
        let pair = [(edge.http, &edge.process), (listen, &bare)]
            .map(|(at, process)| move || run(at, process, time));
        let (ours, theirs) = if round % 2 == 0 {
            let ours = pair[0]();
            (ours, pair[1]())
        } else {
            let theirs = pair[1]();
            (pair[0](), theirs)
        };
        let (rate, cost) = (ours.0 / theirs.0, theirs.1 / ours.1);
        println!(
            "{round:>5}  {:>14.0}  {:>10.0}  {rate:>5.3}  {:>15.1}  {:>11.1}  {cost:>5.3}",
            ours.0, theirs.0, ours.1, theirs.1
        );
        rates.push(rate);
        costs.push(cost);
    }
    println!("median: {:.3} of bare Pingora's requests per second,", median(&rates));
    println!("        {:.3} of bare Pingora's requests per CPU second", median(&costs));
    drop(edge.process);
    bed::end_instance("warm.test");
}

/// Requests a second, and microseconds of the proxy's CPU time a request.
fn run(at: SocketAddr, process: &Part, time: Duration) -> (f64, f64) {
    let before = process.cpu();
    let (rate, count) = closed_loop(at, "warm.test", CONNECTIONS, time);
    (rate, (process.cpu() - before).as_secs_f64() * 1e6 / count as f64)
}

/// The part of the peer: what Pingora costs without us.
fn bare(listen: &str, upstream: SocketAddr) {
    struct Bare(SocketAddr);

    #[async_trait]
    impl ProxyHttp for Bare {
        type CTX = ();

        fn new_ctx(&self) {}

        async fn upstream_peer(
            &self,
            _: &mut Session,
            (): &mut (),
        ) -> pingora::Result<Box<HttpPeer>> {
            let mut peer = HttpPeer::new(self.0, false, String::new());
            // What Dormouse's defaults are: a proxy without timeouts would be no peer.
            peer.options.connection_timeout = Some(Duration::from_secs(1));
            peer.options.total_connection_timeout = Some(Duration::from_secs(1));
            peer.options.idle_timeout = Some(Duration::from_secs(4));
            peer.options.read_timeout = Some(Duration::from_secs(120));
            Ok(Box::new(peer))
        }
    }

    let conf = ServerConf {
        threads: thread::available_parallelism().map_or(1, usize::from),
        upstream_keepalive_pool_size: 4096,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(upstream));
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}
