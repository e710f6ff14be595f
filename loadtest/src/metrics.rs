//! The names of all figures, what they mean and in which unit they are. Reports, `--fail-if` and
//! the README have them from here.

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Bytes.
    Bytes,
    /// Bytes an hour.
    BytesPerHour,
    /// An hour.
    PerHour,
    /// A second.
    PerSecond,
    /// Cores.
    Cores,
    /// Things.
    Count,
    /// A share of one, or a ratio.
    Share,
}

impl Unit {
    /// As reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::Micros => "us",
            Self::Bytes => "B",
            Self::BytesPerHour => "B/h",
            Self::PerHour => "/h",
            Self::PerSecond => "/s",
            Self::Cores => "cores",
            Self::Count | Self::Share => "",
        }
    }
}

/// One name: its unit, which commands have it, and what it is.
type Metric = (&'static str, Unit, &'static str, &'static str);

/// Distributions; with a dot and one of the figures (`ttfb.p95`) they are metrics.
pub const SERIES: &[Metric] = &[
    (
        "ttfb",
        Unit::Millis,
        "cold herd churn",
        "time to the first byte: of the answer's head, or the 101; cold and churn: from before the name is resolved, herd: from the request; the floor: until the first accepted connection",
    ),
    ("total", Unit::Millis, "cold herd", "the same until the last byte, or the first echo"),
    ("dns", Unit::Millis, "cold", "resolving the name"),
    ("connect", Unit::Millis, "cold", "the TCP handshake"),
    ("tls", Unit::Millis, "cold", "the TLS handshake"),
    ("wait", Unit::Millis, "cold", "from the request until the head of the answer"),
    ("overhead", Unit::Millis, "cold", "ttfb less the server's own `engine` of Server-Timing"),
    ("latency", Unit::Millis, "warm", "a whole answer; open loop: since the request was due"),
    ("service", Unit::Millis, "warm", "a whole answer, since the request was sent"),
    (
        "lateness",
        Unit::Millis,
        "warm cold",
        "open loop: how long after it was due a request was sent; of it the instrument's own part shows when the server is fast",
    ),
    ("echo", Unit::Millis, "sockets", "a message and back; open loop: since it was due"),
    ("open", Unit::Millis, "sockets", "opening a WebSocket"),
    (
        "spread",
        Unit::Millis,
        "herd",
        "from the first whole answer to the last, of one session in one round",
    ),
    (
        "starts",
        Unit::Count,
        "herd",
        "different lives that answered one session's clients in one round",
    ),
];

/// What the distributions of any `Server-Timing` entry begin with.
pub const SERVER: &str = "server.";

/// Single figures: of each round, reported as the median of the rounds.
pub const VALUES: &[Metric] = &[
    ("answers", Unit::Count, "all", "good answers, of all rounds together"),
    ("errors", Unit::Count, "all", "requests without a good answer, of all rounds together"),
    ("error-rate", Unit::Share, "all", "errors / (answers + errors)"),
    ("rate", Unit::PerSecond, "warm sockets churn", "answers a second"),
    (
        "cpu-per-answer",
        Unit::Micros,
        "warm sockets",
        "the server's CPU time for one answer (--pid)",
    ),
    (
        "client-cpu",
        Unit::Cores,
        "warm",
        "what the load tester itself used: near --threads it is the client that is measured",
    ),
    (
        "memory-per-socket",
        Unit::Bytes,
        "sockets",
        "resident memory that one open WebSocket added (--pid)",
    ),
    ("fds-per-socket", Unit::Count, "sockets", "descriptors that it added (--pid)"),
    ("opened-per-second", Unit::PerSecond, "sockets", "how fast sockets were opened"),
    (
        "memory-per-held",
        Unit::Bytes,
        "herd",
        "resident memory that one held request added at the peak, its connection not counted (--pid)",
    ),
    ("wakes", Unit::Count, "churn", "answers that had waited for a wake: they carry Server-Timing"),
    ("sleeps", Unit::Count, "churn", "orders to sleep that were taken"),
    (
        "wrong-answers",
        Unit::Count,
        "churn",
        "answers of another session, of an ended life, or of nobody known",
    ),
    (
        "rss-slope",
        Unit::BytesPerHour,
        "churn",
        "growth of resident memory after --settle, least squares (--pid)",
    ),
    ("rss-growth", Unit::Bytes, "churn", "last less first resident memory after --settle (--pid)"),
    ("fds-slope", Unit::PerHour, "churn", "the same of open descriptors"),
    ("fds-growth", Unit::Count, "churn", "the same"),
    ("threads-slope", Unit::PerHour, "churn", "the same of threads"),
    ("threads-growth", Unit::Count, "churn", "the same"),
    (
        "cpu",
        Unit::Cores,
        "sockets churn",
        "cores that the server used on average; sockets: while they are idle (--pid)",
    ),
    ("rss-peak", Unit::Bytes, "herd sockets churn", "most resident memory (--pid)"),
];

/// The unit of a distribution.
pub fn unit_of_series(name: &str) -> Option<Unit> {
    if let Some(part) = name.strip_prefix(SERVER) {
        return (!part.is_empty()).then_some(Unit::Millis);
    }
    SERIES.iter().find(|metric| metric.0 == name).map(|metric| metric.1)
}

/// The unit of a single figure.
pub fn unit_of_value(name: &str) -> Option<Unit> {
    VALUES.iter().find(|metric| metric.0 == name).map(|metric| metric.1)
}

/// The table of the README and of `loadtest metrics`.
pub fn table() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("| metric | unit | of | what it is |\n|---|---|---|---|\n");
    let rows = SERIES.iter().map(|metric| (".STAT", metric));
    for (stat, (name, unit, of, says)) in rows.chain(VALUES.iter().map(|metric| ("", metric))) {
        let unit = unit.as_str();
        writeln!(text, "| `{name}{stat}` | {unit} | {of} | {says} |").expect("a String takes all");
    }
    text
}
