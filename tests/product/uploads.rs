//! Uploads by HTTP/2: each has a window that a long way does not make slow, and none that waits
//! keeps another of its connection waiting.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    h2::{body, connect},
    hold::{gated, open_gate},
    support::{Edge, Setup},
};

const MIB: usize = 1024 * 1024;
/// Nothing that has room waits this long for it.
const FULL: Duration = Duration::from_secs(3);

fn edge(config: &str) -> Edge {
    Setup::new().config(config).route("demo", &gated("")).start()
}

async fn post(sender: &mut SendRequest<Bytes>, host: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let request = http::Request::post(format!("http://{host}/upload"));
    let request = request.body(()).expect("a request");
    *sender = sender.clone().ready().await.expect("it is ready");
    sender.send_request(request, false).expect("sent")
}

async fn room(stream: &mut SendStream<Bytes>, wanted: usize) -> Option<usize> {
    stream.reserve_capacity(wanted);
    let room = timeout(FULL, poll_fn(|cx| stream.poll_capacity(cx))).await.ok()?;
    Some(room.expect("the stream is open").expect("the connection is open"))
}

/// Sends until the window is full: how much that was.
async fn fill(stream: &mut SendStream<Bytes>) -> usize {
    let mut sent = 0;
    while let Some(room) = room(stream, 16 * 1024).await {
        stream.send_data(vec![b'x'; room].into(), false).expect("sent");
        sent += room;
    }
    sent
}

/// How many bytes the instance says it got.
async fn counted(answer: ResponseFuture) -> Value {
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let said: Value = serde_json::from_slice(&body(answer.into_body()).await).expect("JSON");
    said["bytes"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_wait_keep_no_other_of_their_connection_waiting() {
    let mut edge = edge("");
    open_gate(&edge, "other.test");
    let mut sender = connect(edge.http).await;
    let mut waiting = Vec::new();
    for _ in 0..40 {
        waiting.push(post(&mut sender, "alice.test").await);
    }
    edge.wait_until("all of them are held", |edge| edge.session("alice.test")["leases"] == 40);
    let filled = join_all(waiting.iter_mut().map(|(_, stream)| fill(stream))).await;
    assert!(filled.iter().all(|filled| *filled == MIB), "{filled:?}");
    assert_eq!(edge.state("alice.test"), "waking");

    let (answer, mut stream) = post(&mut sender, "other.test").await;
    let mut left = 3 * MIB;
    while 0 < left {
        let room = room(&mut stream, left).await.expect("it waits for the others").min(left);
        left -= room;
        stream.send_data(vec![b'y'; room].into(), left == 0).expect("sent");
    }
    assert_eq!(counted(answer).await, 3 * MIB);

    open_gate(&edge, "alice.test");
    for (answer, mut stream) in waiting {
        stream.send_data(Bytes::new(), true).expect("sent");
        assert_eq!(counted(answer).await, MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_uploads_may_fill_in_all_is_bounded() {
    let mut edge = edge("[http2]\nshared_window = \"2MiB\"\n");
    let mut senders = [connect(edge.http).await, connect(edge.http).await];
    let mut waiting = Vec::new();
    for sender in &mut senders {
        for _ in 0..4 {
            waiting.push(post(sender, "alice.test").await);
        }
    }
    let filled = join_all(waiting.iter_mut().map(|(_, stream)| fill(stream))).await;
    // Each connection has its own window, and one of them, or both, what they share.
    assert_eq!(filled.iter().sum::<usize>(), 4 * MIB, "{filled:?}");
    // What one has filled comes back with its end, for the next.
    drop((waiting, senders));
    edge.wait_until("both have ended", |edge| edge.metric(&["dormouse_connections "]) == 0.0);
    let mut sender = connect(edge.http).await;
    let mut next = [post(&mut sender, "alice.test").await, post(&mut sender, "alice.test").await];
    let filled = join_all(next.iter_mut().map(|(_, stream)| fill(stream))).await;
    assert_eq!(filled, [MIB, MIB]);
}
