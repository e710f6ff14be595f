//! An instrument for servers whose sessions sleep: cold starts, herds, warm requests, sockets and
//! churn, against any such system.
//!
//! The path of a run: `cli` reads the options, or `scenario` a file of them; `bed` may start the
//! servers; a command (`cold`, `herd`, `warm`, `sockets`, `churn`) does its rounds (`run`) with
//! clients (`client`, `wake`) on a schedule (`pace`) and fills tallies (`tally`); `report` says what
//! they mean (`stats`), and `threshold` whether that is good enough.

pub mod admin;
pub mod bed;
pub mod churn;
pub mod cli;
pub mod client;
pub mod cold;
pub mod conditions;
pub mod floor;
pub mod found;
pub mod herd;
pub mod identity;
pub mod metrics;
pub mod pace;
pub mod report;
pub mod reset;
pub mod run;
pub mod scenario;
pub mod sockets;
pub mod stats;
pub mod tally;
pub mod target;
pub mod text;
pub mod threshold;
pub mod tls;
pub mod wake;
pub mod warm;
pub mod watch;
