//! All metric names and labels, in one place. Labels come from closed sets, never from clients.

use std::sync::LazyLock;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

/// Every metric of the process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The metrics by name.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests by how they ended, in the order of `CLASSES`.
    requests: [IntCounter; CLASSES.len()],
    /// Requests that were refused, by reason.
    pub refused: IntCounterVec,
    /// Requests that wait for a session right now.
    pub held: IntGauge,
    /// Requests answered without a session, by step of the pipeline.
    pub local_answers: IntCounterVec,
    /// How long requests were held, in seconds.
    pub hold_seconds: Histogram,
    /// Connections that are open right now.
    pub connections: IntGauge,
    /// Connections closed at once because `limits.connections` was reached.
    pub connections_refused: IntCounter,
    /// Connections closed at once because `limits.connections_per_client` was reached.
    pub client_connections_refused: IntCounter,
    /// Clients whose wakes are counted together with those of others.
    pub clients_crowded: IntCounter,
    /// Instances that are awake, waking or stopping, by engine, counted when asked.
    pub running: IntGaugeVec,
    /// Whether an engine answers, 1 or 0.
    pub engine_up: IntGaugeVec,
    /// Instances made ahead that nobody has yet, by route.
    pub spares: IntGaugeVec,
    /// The most memory that spares may hold, in bytes, by route.
    pub spares_memory: IntGaugeVec,
    /// Spares that new sessions took, by route.
    pub spares_taken: IntCounterVec,
    /// Idle instances that were put to sleep for others, by engine.
    pub evictions: IntCounterVec,
    /// Lines that the access log lost: it could not be written, or not as fast as they came.
    pub access_log_dropped: IntCounter,
    /// Clients that came to an address with TLS or the PROXY protocol, by how that went.
    pub handshakes: IntCounterVec,
    /// Leases taken at a ClientHello, before there was a request.
    pub leases_at_sni: IntCounter,
    /// Requests sent to HTTPS.
    pub redirected: IntCounter,
    /// Wakes by engine and result.
    pub wakes: IntCounterVec,
    /// How long wakes took, by engine and part (`queued`, `engine`, `ready`), in seconds.
    pub wake_seconds: HistogramVec,
    /// Sleeps by engine, depth and result.
    pub sleeps: IntCounterVec,
    /// Sessions by state, counted when asked.
    pub sessions: IntGaugeVec,
    /// Reloads of the routes, by result.
    pub reloads: IntCounterVec,
    /// Errors in the route files as they are on disk now.
    pub route_errors: IntGauge,
    /// Routes that are live.
    pub routes: IntGauge,
    /// Certificates that are served.
    pub certificates: IntGauge,
    /// Errors in the files of certificates as they are on disk now.
    pub certificate_errors: IntGauge,
    /// Days until the first certificate ends; negative once one has.
    pub certificate_days: IntGauge,
    /// ACME orders that came to an end, by result.
    pub acme_orders: IntCounterVec,
    /// Hosts that clients asked for and that no certificate was ordered for, by reason.
    pub acme_refused: IntCounterVec,
    /// Names whose last order has failed.
    pub acme_failing: IntGauge,
    /// When the process started, in seconds since 1970.
    pub start_time: Gauge,
}

/// The classes of answers; `gone` when the client left before there was one.
const CLASSES: [&str; 6] = ["gone", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Upper bounds in seconds: from a resumed process to a machine that boots.
const BUCKETS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(format!("dormouse_{name}"), help);
        let times = |name: &str, help: &str| {
            HistogramOpts::new(format!("dormouse_{name}"), help).buckets(BUCKETS.to_vec())
        };
        let counter = |name, help| register(&registry, IntCounter::with_opts(opts(name, help)));
        let gauge = |name, help| register(&registry, IntGauge::with_opts(opts(name, help)));
        let counters = |name, help, labels: &[&str]| {
            register(&registry, IntCounterVec::new(opts(name, help), labels))
        };
        let start_time = register(
            &registry,
            Gauge::with_opts(opts("start_time_seconds", "When the process started.")),
        );
        start_time.set(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64(),
        );
        let requests = counters("requests_total", "Requests by class of answer.", &["class"]);
        Self {
            requests: CLASSES.map(|class| requests.with_label_values(&[class])),
            refused: counters("refused_total", "Requests refused, by reason.", &["reason"]),
            held: gauge("held_requests", "Requests that wait for a session."),
            hold_seconds: register(
                &registry,
                Histogram::with_opts(times("hold_seconds", "How long requests were held.")),
            ),
            connections: gauge("connections", "Client connections that are open."),
            connections_refused: counter(
                "connections_refused_total",
                "Connections closed because limits.connections was reached.",
            ),
            local_answers: counters(
                "local_answers_total",
                "Requests answered without a session, by step.",
                &["step"],
            ),
            client_connections_refused: counter(
                "client_connections_refused_total",
                "Connections closed because limits.connections_per_client was reached.",
            ),
            clients_crowded: counter(
                "wake_clients_crowded_total",
                "Wakes counted together with other clients' because limits.clients was reached.",
            ),
            running: register(
                &registry,
                IntGaugeVec::new(
                    opts("running_instances", "Instances that are awake, waking or stopping."),
                    &["engine"],
                ),
            ),
            engine_up: register(
                &registry,
                IntGaugeVec::new(
                    opts("engine_up", "Whether the engine answers, 1 or 0."),
                    &["engine"],
                ),
            ),
            spares: register(
                &registry,
                IntGaugeVec::new(
                    opts("spares", "Instances made ahead that are nobody's yet."),
                    &["route"],
                ),
            ),
            spares_memory: register(
                &registry,
                IntGaugeVec::new(
                    opts("spares_memory_bytes", "The most memory that spares may hold."),
                    &["route"],
                ),
            ),
            spares_taken: counters(
                "spares_taken_total",
                "Spares that became the instance of a new session.",
                &["route"],
            ),
            evictions: counters(
                "evictions_total",
                "Idle instances put to sleep to make room for others.",
                &["engine"],
            ),
            access_log_dropped: counter(
                "access_log_dropped_total",
                "Lines that the access log lost.",
            ),
            handshakes: counters(
                "handshakes_total",
                "TLS handshakes and PROXY headers by result.",
                &["result"],
            ),
            leases_at_sni: counter("leases_at_sni_total", "Leases taken at a ClientHello."),
            redirected: counter("redirected_total", "Requests redirected to HTTPS."),
            wakes: counters("wakes_total", "Wakes by result.", &["engine", "result"]),
            wake_seconds: register(
                &registry,
                HistogramVec::new(
                    times("wake_seconds", "How long the parts of a wake took."),
                    &["engine", "part"],
                ),
            ),
            sleeps: counters("sleeps_total", "Sleeps by result.", &["engine", "to", "result"]),
            sessions: register(
                &registry,
                IntGaugeVec::new(opts("sessions", "Sessions by state."), &["state"]),
            ),
            reloads: counters("reloads_total", "Reloads of the routes.", &["result"]),
            route_errors: gauge("route_errors", "Errors in the route files on disk."),
            routes: gauge("routes", "Routes that are live."),
            certificates: gauge("certificates", "Certificates that are served."),
            certificate_errors: gauge("certificate_errors", "Errors in the certificates on disk."),
            certificate_days: gauge(
                "certificate_expiry_days",
                "Days until the first certificate ends; 0 without one.",
            ),
            acme_orders: counters("acme_orders_total", "ACME orders by result.", &["result"]),
            acme_refused: counters(
                "acme_on_demand_refused_total",
                "Certificates not ordered on demand, by reason.",
                &["reason"],
            ),
            acme_failing: gauge("acme_failing", "Names whose last ACME order has failed."),
            start_time,
            registry,
        }
    }

    /// Counts a request by the status it was answered with; 0 for none.
    pub fn count_request(&self, status: u16) {
        let class = usize::from(status / 100);
        self.requests[if class < CLASSES.len() { class } else { 0 }].inc();
    }

    /// Everything in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "cannot render the metrics");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("the names above are valid");
    registry.register(Box::new(metric.clone())).expect("the names above are distinct");
    metric
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    const SOURCE: &str = include_str!("metrics.rs");
    const PAGE: &str = include_str!("../docs/operations.md");

    /// What stands behind each `before` in `text`, as far as it can be a metric's name.
    fn names(text: &str, before: &str) -> BTreeSet<String> {
        let name = |rest: &str| {
            let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
            rest.chars().take_while(|c| is_name(*c)).collect::<String>()
        };
        text.split(before).skip(1).map(name).filter(|name| !name.is_empty()).collect()
    }

    /// The table has every metric, and neither it nor an alert names one that does not exist.
    #[test]
    fn the_page_for_operators_knows_the_metrics() {
        let source: String =
            SOURCE.split("#[cfg(test)]").next().expect("code").split_whitespace().collect();
        let made: BTreeSet<_> =
            ["counter(\"", "counters(\"", "gauge(\"", "gauges(\"", "opts(\"", "times(\""]
                .iter()
                .flat_map(|call| names(&source, call))
                .collect();
        let told: BTreeSet<_> = names(PAGE, "dormouse_")
            .into_iter()
            .map(|name| name.trim_end_matches("_bucket").to_owned())
            .collect();
        assert!(30 < made.len(), "{made:?}");
        assert_eq!(
            made.difference(&told).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "undocumented"
        );
        assert_eq!(told.difference(&made).collect::<Vec<_>>(), Vec::<&String>::new(), "unknown");
    }
}
