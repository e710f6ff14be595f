//! Whether the client of an HTTP/2 connection is still there, told by PING: also where a proxy of
//! connections stands between, whose kernel answers for it.

use std::{
    future::{pending, poll_fn},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

use super::{super::listen::Traffic, streams::Streams};

/// Of a PING's frame.
const PING_LENGTH: u64 = 17;

/// Returns when the client is gone: while requests were open it has sent nothing and taken nothing
/// for `within`, and has not answered when it was asked.
pub(super) async fn gone(
    pings: Option<PingPong>,
    traffic: &Traffic,
    streams: &Streams,
    within: Duration,
) {
    let Some(mut pings) = pings else { return pending().await };
    // Silence is seen in the second turn at the latest, and an answer has the third.
    let turn = within / 3;
    loop {
        let before = traffic.moved();
        sleep(turn).await;
        if streams.is_none() || traffic.moved() != before {
            continue;
        }
        if asked(&mut pings, traffic, turn).await {
            return;
        }
    }
}

/// Asks, and says whether the client is gone. An answer to come may be behind what the client takes
/// slowly, or sends slowly: that is no silence.
async fn asked(pings: &mut PingPong, traffic: &Traffic, turn: Duration) -> bool {
    let (mut read, mut written) = traffic.moved();
    if pings.send_ping(Ping::opaque()).is_err() {
        // The connection has ended, which its own loop sees.
        return pending().await;
    }
    loop {
        match timeout(turn, poll_fn(|cx| pings.poll_pong(cx))).await {
            Ok(Ok(_)) => return false,
            Ok(Err(_)) => return pending().await,
            Err(_) => {}
        }
        let now = traffic.moved();
        if now.0 == read && now.1 <= written + PING_LENGTH {
            return true;
        }
        (read, written) = now;
    }
}
