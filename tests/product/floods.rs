//! HTTP/2 connections that are cheap for the client and could be dear for the edge, frame by frame:
//! cut, or bounded in memory, while another client is served. How another client's latency fares is
//! for `scripts/conformance floods`.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Edge, PATIENCE, Setup, client, witnessed};

const HOST: &str = "alice.test";
/// More than one flood may add.
const GROWTH_MAX: u64 = 32 * 1024 * 1024;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET /whoami` of the host, without the dynamic table.
fn request() -> Vec<u8> {
    let text = |index: u8, text: &str| {
        [&[index, u8::try_from(text.len()).expect("short")], text.as_bytes()].concat()
    };
    // :method GET and :scheme http of the static table; :authority and :path by their names in it.
    [vec![0x82, 0x86], text(0x01, HOST), text(0x04, "/whoami")].concat()
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &request())
}

/// The odd numbers are the client's.
fn streams() -> impl Iterator<Item = u32> {
    (1_u32..).step_by(2)
}

/// An awake session, what the edge needs at rest, and a connection that has begun.
async fn begun() -> (Edge, u64, TcpStream) {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    assert_served(&edge).await;
    let mut stream = TcpStream::connect(edge.http).await.expect("a connection");
    let settings = frame(SETTINGS, 0, 0, &[]);
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat();
    stream.write_all(&begin).await.expect("sent");
    let memory = edge.memory();
    (edge, memory, stream)
}

async fn assert_served(edge: &Edge) {
    let answer = client().get(edge.url(HOST, "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

async fn assert_bounded(edge: &mut Edge, memory: u64) {
    assert_served(edge).await;
    let grown = edge.memory().saturating_sub(memory);
    assert!(grown < GROWTH_MAX, "it has grown by {grown} bytes");
    edge.assert_lives();
}

/// Sends until the edge has had enough, and reads all that comes. Whether it was told why.
async fn is_cut(stream: TcpStream, frames: impl Iterator<Item = Vec<u8>>) -> bool {
    let (mut reader, mut writer) = stream.into_split();
    let sends = async {
        for frame in frames {
            if writer.write_all(&frame).await.is_err() {
                return writer;
            }
        }
        writer
    };
    let mut came = Vec::new();
    // The writer is kept, so that the edge alone ends it.
    let reads = async {
        let _ = reader.read_to_end(&mut came).await;
    };
    let (_writer, ()) =
        timeout(PATIENCE, async { tokio::join!(sends, reads) }).await.expect("it is never cut");
    let mut rest = &came[..];
    while let [a, b, c, kind, ..] = *rest {
        if kind == GOAWAY {
            return true;
        }
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

const MANY: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset_is_cut() {
    let (mut edge, memory, stream) = begun().await;
    edge.announce("pending-accept streams reached limit");
    let resets = streams()
        .take(MANY)
        .map(|stream| [get(stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat());
    // Together, so that they come faster than they are begun with.
    let resets: Vec<_> = resets.collect();
    let cut = is_cut(stream, resets.chunks(100).map(<[_]>::concat)).await;
    assert!(cut, "it was not told why");
    assert_bounded(&mut edge, memory).await;
}

/// The client makes the edge reset its streams: a window that grows by nothing is an error of the
/// stream alone.
#[tokio::test(flavor = "multi_thread")]
async fn made_you_reset_is_cut() {
    let (mut edge, memory, stream) = begun().await;
    let errors = streams().take(MANY).map(|stream| {
        [get(stream), frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes())].concat()
    });
    assert!(is_cut(stream, errors).await, "it was not told why");
    assert_bounded(&mut edge, memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn continuations_without_end_are_cut() {
    for piece in [&b""[..], &[b'x'; 16_000]] {
        let (mut edge, memory, stream) = begun().await;
        let begin = std::iter::once(frame(HEADERS, END_STREAM, 1, &request()));
        // A literal that never ends, or nothing at all.
        let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, piece), MANY);
        is_cut(stream, begin.chain(more)).await;
        assert_bounded(&mut edge, memory).await;
    }
}

/// One header of 3.9 KB, kept in the table, and thousands of references to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_hpack_bomb_is_not_unpacked() {
    let (mut edge, memory, mut stream) = begun().await;
    let value = [b'x'; 3_900];
    // Literal with indexing, a new name; the length's rest in 7-bit digits, the lowest first.
    let rest = u8::try_from((value.len() - 127) >> 7).expect("two digits");
    let length = [0x80 | u8::try_from((value.len() - 127) & 127).expect("a digit"), rest];
    let keep = [&b"\x40\x01x\x7f"[..], &length, &value];
    let first = [request(), keep.concat()].concat();
    stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &first)).await.expect("sent");
    let bomb = [request(), vec![0x80 | 62; 16_000]].concat();
    let bombs = streams().skip(1).take(50);
    for bomb in bombs.map(|stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &bomb)) {
        // 62 MB each.
        if stream.write_all(&bomb).await.is_err() {
            break;
        }
    }
    assert_bounded(&mut edge, memory).await;
}

/// Each is answered, and the answers are not taken.
#[tokio::test(flavor = "multi_thread")]
async fn pings_and_settings_whose_answers_are_not_taken_are_bounded() {
    for ask in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])] {
        let (mut edge, memory, stream) = begun().await;
        let asks = ask.repeat(1_000);
        let mut sent = 0;
        // Until the kernel takes no more of them.
        while sent < 100_000_000 {
            match timeout(std::time::Duration::from_secs(1), stream.writable()).await {
                Ok(_) => match stream.try_write(&asks) {
                    Ok(n) => sent += n,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                },
                Err(_) => break,
            }
        }
        println!("{sent} bytes were taken");
        assert_bounded(&mut edge, memory).await;
    }
}
