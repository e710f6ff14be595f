//! The listener: whose the socket is, how many may come, and how long they may take.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dormouse::admin::{Listener, bind_unix};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    admin_bed::{At, Bed, DEADLINE},
    wire::{Stream, ask, connect},
};

/// As in `src/admin/listen.rs`.
const CONNECTIONS_MAX: usize = 64;
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

async fn exchange(stream: &mut Box<dyn Stream>) {
    stream.write_all(HEALTH).await.unwrap();
    answered(stream).await;
}

async fn answered(stream: &mut Box<dyn Stream>) {
    let mut text = Vec::new();
    while !text.ends_with(b"ok\n") {
        let read = stream.read_buf(&mut text);
        assert_ne!(tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_unix_socket_is_its_owners_alone_and_goes_with_the_edge() {
    let mut bed = Bed::with(At::Unix, None).await;
    assert_eq!(ask(&bed, "GET /healthz").await.status, 200);
    let path = bed.folder.path().join("admin.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let names = fs::read_dir(bed.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["admin.sock", "links.key", "routes"], "nothing half-made is left");
    bed.begin_stop();
    bed.stopped().await;
    assert!(!path.exists());
}

#[test]
fn a_dead_sockets_file_is_replaced_and_any_other_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the file of a process that was killed");
    drop(bind_unix(&path).unwrap());

    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let error = bind_unix(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("admin.sock"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    let nowhere = bind_unix(&folder.path().join("none/admin.sock")).unwrap_err();
    assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    let long = bind_unix(&folder.path().join("long".repeat(40))).unwrap_err();
    assert!(long.to_string().contains("SUN_LEN"), "{long}");
}

#[tokio::test]
async fn a_living_socket_is_left_alone_and_a_file_that_stays_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let living = bind_unix(&path).unwrap();
    let error = bind_unix(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("admin.sock"), "{error}");

    let stays = Arc::new(AtomicBool::new(false));
    let listener = Listener::unix(living, path.clone(), Arc::clone(&stays)).unwrap();
    stays.store(true, Ordering::Release);
    drop(listener);
    assert!(path.exists(), "another process listens there");
    let next = Listener::unix(bind_unix(&path).unwrap(), path.clone(), Arc::default()).unwrap();
    drop(next);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_full_house_lets_the_next_one_wait() {
    let bed = Bed::new().await;
    let mut inside = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = connect(&bed).await;
        exchange(&mut stream).await;
        inside.push(stream);
    }
    let mut next = connect(&bed).await;
    next.write_all(HEALTH).await.unwrap();
    // Those inside are served meanwhile …
    for stream in &mut inside {
        exchange(stream).await;
    }
    let mut byte = [0];
    let early = futures::FutureExt::now_or_never(next.read(&mut byte));
    assert!(early.is_none(), "… and the next one is not");
    drop(inside.pop());
    answered(&mut next).await;
}

/// 10 s in all, however busily the client trickles; a connection without a request likewise.
#[tokio::test]
async fn whoever_does_not_get_to_the_point_is_cut_off() {
    let bed = Bed::new().await;
    let (mut idle, mut trickling) = (connect(&bed).await, connect(&bed).await);
    exchange(&mut idle).await;
    trickling.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ").await.unwrap();
    let ended = async {
        let mut rest = Vec::new();
        let trickled = async {
            while trickling.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::join!(trickled, async { idle.read_to_end(&mut rest).await.unwrap() })
    };
    // Left to itself, hyper waits for 30 s.
    tokio::time::timeout(Duration::from_secs(25), ended).await.unwrap();
}

#[tokio::test]
async fn what_is_under_way_ends_before_the_api_does() {
    let mut bed = Bed::new().await;
    bed.engine.hang();
    let wake = async {
        let answer = ask(&bed, "POST /v1/sessions/alice.localhost/wake").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let end = async {
        bed.engine.asked("start alice.localhost").await;
        bed.begin_stop();
        // Nobody is let in any more; what is inside goes on.
        let closed = async {
            while tokio::net::TcpStream::connect(&bed.address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, closed).await.unwrap();
        bed.engine.release();
    };
    tokio::join!(wake, end);
    bed.stopped().await;
}
