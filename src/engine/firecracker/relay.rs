//! From a unix socket of ours to a port of a guest's vsock.
//!
//! Firecracker wants a line on each connection before the stream begins; a relay speaks it, so that to
//! all others the instance is a unix socket like any. It lives in the edge: the next edge lays its own
//! when it finds the machine.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// Connections to one guest at once; the next one waits in the listener's queue.
const CONNECTIONS_MAX: usize = 1024;
/// Firecracker's word, `OK 1073741824\n`, is no longer.
const WORD_MAX: usize = 32;
/// It comes at once, or the guest does not listen.
const WORD_WAIT: Duration = Duration::from_secs(5);

/// Serves until dropped; what is open then is cut.
pub(super) async fn serve(listener: UnixListener, vsock: PathBuf, port: u16) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    let mut fails = false;
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Once, not 20 times a second until there are descriptors again.
                if !std::mem::replace(&mut fails, true) {
                    tracing::warn!(%error, "a relay to a guest cannot accept");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        fails = false;
        let vsock = vsock.clone();
        open.spawn(async move {
            let _place = place;
            // Whichever end breaks off, the other is closed: its owner knows what that means.
            let _ = pass(client, vsock, port).await;
        });
        while open.try_join_next().is_some() {}
    }
}

async fn pass(mut client: UnixStream, vsock: PathBuf, port: u16) -> io::Result<()> {
    let mut guest = timeout(WORD_WAIT, connect(vsock, port)).await??;
    copy_bidirectional(&mut client, &mut guest).await.map(drop)
}

/// Byte by byte: what follows the word is the guest's.
async fn connect(vsock: PathBuf, port: u16) -> io::Result<UnixStream> {
    let mut guest = UnixStream::connect(vsock).await?;
    guest.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut word = Vec::with_capacity(WORD_MAX);
    while word.last() != Some(&b'\n') {
        if WORD_MAX <= word.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        word.push(guest.read_u8().await?);
    }
    if word.starts_with(b"OK ") { Ok(guest) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}
