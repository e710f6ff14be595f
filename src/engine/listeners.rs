//! What processes listen on, read from /proc: why an instance that runs does not get ready.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use crate::session::Address;

/// A sentence with more of them would not be read.
const SHOWN_MAX: usize = 5;
/// As /proc/net/tcp writes LISTEN.
const LISTEN: &str = "0A";
/// As /proc/net/unix writes a socket that accepts.
const ACCEPTS: &str = "00010000";

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Listener {
    Tcp(SocketAddr),
    Unix(String),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Listener {
    fn serves(&self, wanted: &Address) -> bool {
        match (self, wanted) {
            (Self::Tcp(has), Address::Tcp(wanted)) => {
                let (is, wants) = (has.ip().to_canonical(), wanted.ip().to_canonical());
                // `::` takes IPv4 too, unless its owner says no; that cannot be seen from outside.
                let any = is.is_unspecified() && (is.is_ipv6() || wants.is_ipv4());
                has.port() == wanted.port() && (is == wants || any)
            }
            (Self::Unix(path), Address::Unix(wanted)) => **path == **wanted,
            _ => false,
        }
    }
}

/// All that some processes listen on.
#[derive(Debug)]
pub(super) struct Listeners(BTreeSet<Listener>);

impl Listeners {
    /// The listening sockets that these processes have open; one that is gone has none.
    pub(super) fn of(pids: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        // Each network namespace has tables of its own; any process in it shows them.
        let mut namespaces: HashMap<PathBuf, (i32, HashSet<u64>)> = HashMap::new();
        for pid in pids {
            let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
            let (_, sockets) = namespaces.entry(namespace).or_insert((pid, HashSet::new()));
            sockets.extend(sockets_of(pid));
        }
        let mut all = BTreeSet::new();
        for (pid, sockets) in namespaces.into_values() {
            read(pid, Some(&sockets), &mut all)?;
        }
        Ok(Self(all))
    }

    /// All that listens in the network namespace of this process.
    pub(super) fn in_namespace_of(pid: i32) -> io::Result<Self> {
        let mut all = BTreeSet::new();
        read(pid, None, &mut all)?;
        Ok(Self(all))
    }

    /// Whether nothing listens.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why `wanted` does not answer, for the operator; `None` where something listens there.
    pub(super) fn instead_of(&self, wanted: &Address) -> Option<String> {
        if self.0.iter().any(|listener| listener.serves(wanted)) {
            return None;
        }
        if self.0.is_empty() {
            return Some(format!("it listens nowhere yet, and not on {wanted}"));
        }
        let shown: Vec<_> = self.0.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
        let more = match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("it listens on {}{more} only, not on {wanted}", shown.join(", ")))
    }
}

/// The inodes of a process's open sockets.
fn sockets_of(pid: i32) -> HashSet<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return HashSet::new() };
    let inode = |file: io::Result<fs::DirEntry>| {
        let target = fs::read_link(file.ok()?.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    files.filter_map(inode).collect()
}

/// What listens in the network namespace of `pid`, of these sockets or of all.
fn read(pid: i32, of: Option<&HashSet<u64>>, into: &mut BTreeSet<Listener>) -> io::Result<()> {
    let is_ours = |inode: &str| {
        of.is_none_or(|sockets| inode.parse().is_ok_and(|inode| sockets.contains(&inode)))
    };
    let table = |name: &str| Path::new("/proc").join(pid.to_string()).join("net").join(name);
    for name in ["tcp", "tcp6"] {
        each_line(&table(name), |line| {
            let fields: Vec<_> = line.split_whitespace().take(10).collect();
            let &[_, local, _, state, .., inode] = fields.as_slice() else { return };
            if state == LISTEN && is_ours(inode) {
                into.extend(address(local).map(Listener::Tcp));
            }
        })?;
    }
    each_line(&table("unix"), |line| {
        // The path is the rest of the line, whatever is in it.
        let fields: Vec<_> = line.splitn(7, char::is_whitespace).collect();
        let &[_, _, _, flags, _, _, rest] = fields.as_slice() else { return };
        let Some((inode, path)) = rest.trim_start().split_once(' ') else { return };
        if flags == ACCEPTS && is_ours(inode) {
            into.insert(Listener::Unix(path.to_owned()));
        }
    })
}

/// A kernel without IPv6 has no table of it.
fn each_line(path: &Path, mut look: impl FnMut(&str)) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    while 0 < file.read_until(b'\n', &mut line)? {
        look(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(())
}

/// `0100007F:1F90`: words of the machine's own byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at * 8)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use super::*;

    fn ours() -> Listeners {
        Listeners::of([std::process::id().cast_signed()]).unwrap()
    }

    #[test]
    fn sockets_of_a_process_are_found_with_their_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a socket");
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let _unix = UnixListener::bind(&path).unwrap();
        let found = ours();
        for address in [four.local_addr().unwrap(), six.local_addr().unwrap()] {
            assert!(found.0.contains(&Listener::Tcp(address)), "{address} is not in {found:?}");
            assert_eq!(found.instead_of(&Address::Tcp(address)), None);
        }
        let path = path.to_str().unwrap();
        assert!(found.0.contains(&Listener::Unix(path.to_owned())), "{path:?} not in {found:?}");
        let port = six.local_addr().unwrap().port();
        let other: SocketAddr = ([127, 0, 0, 1], port).into();
        if !found.0.contains(&Listener::Tcp(other)) {
            let hint = found.instead_of(&Address::Tcp(other)).unwrap();
            assert!(hint.ends_with(&format!("not on 127.0.0.1:{port}")), "{hint}");
        }
    }

    fn listening(on: &[&str]) -> Listeners {
        Listeners(on.iter().map(|on| Listener::Tcp(on.parse().unwrap())).collect())
    }

    #[test]
    fn what_is_said_names_what_listens_and_what_should() {
        let wanted = Address::Tcp("127.0.0.1:8080".parse().unwrap());
        let says = |on: &[&str]| listening(on).instead_of(&wanted);
        for on in ["127.0.0.1:8080", "0.0.0.0:8080", "[::]:8080", "[::ffff:127.0.0.1]:8080"] {
            assert_eq!(says(&["127.0.0.1:1", on]), None, "{on}");
        }
        let six = "it listens on [::1]:8080 only, not on 127.0.0.1:8080";
        assert_eq!(says(&["[::1]:8080"]).unwrap(), six);
        let nothing = "it listens nowhere yet, and not on 127.0.0.1:8080";
        assert_eq!(says(&[]).unwrap(), nothing);
        let many: Vec<_> = (1..=7).map(|port| format!("127.0.0.1:{port}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(says(&many).unwrap().contains("127.0.0.1:5 and 2 more only"), "{:?}", says(&many));
    }

    #[test]
    fn addresses_of_the_tables_are_read() {
        if cfg!(target_endian = "little") {
            assert_eq!(address("0100007F:1F90"), "127.0.0.1:8080".parse().ok());
            let six = "00000000000000000000000001000000:0050";
            assert_eq!(address(six), "[::1]:80".parse().ok());
        }
        for wrong in ["", ":", "0100007F", "01:1", "0100007F:10000", "zz00007F:1", "é100007F:1"] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
