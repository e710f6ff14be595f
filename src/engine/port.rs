//! Free ports of the loopback device for instances that do not listen yet.
//!
//! A port is free for everybody until its instance listens. So ports are taken from below those that
//! the kernel gives to whoever connects or does not care: there a stranger rarely takes one. Another
//! of our own starts must never be given the same, so all engines share one register.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

/// How many times the kernel may offer a port that is given away already.
const OFFERS_MAX: usize = 1000;

/// How many ports below the kernel's are ours to try, and how many of them are tried.
const QUIET: u16 = 12_000;
const QUIET_TRIES: usize = 100;

/// Ports given to instances, and to how many: an adopted one may be counted twice for a moment.
static GIVEN: Mutex<BTreeMap<u16, usize>> = Mutex::new(BTreeMap::new());

/// A port that no other instance is given while this lives.
#[derive(Debug)]
pub(super) struct Port(u16);

impl Port {
    /// One that is free now.
    pub(super) fn free() -> io::Result<Self> {
        let mut quiet = quiet_ports().take(QUIET_TRIES);
        Self::first_ungiven(|| match quiet.find(|port| bind(*port).is_ok()) {
            Some(port) => Ok(port),
            None => Ok(bind(0)?.local_addr()?.port()),
        })
    }

    fn first_ungiven(mut offer: impl FnMut() -> io::Result<u16>) -> io::Result<Self> {
        for _ in 0..OFFERS_MAX {
            let port = offer()?;
            if let Entry::Vacant(vacant) = given().entry(port) {
                vacant.insert(1);
                return Ok(Self(port));
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "every free port is given to an instance"))
    }

    /// The one that an instance has already.
    pub(super) fn of_instance(port: u16) -> Self {
        *given().entry(port).or_default() += 1;
        Self(port)
    }

    pub(super) fn number(&self) -> u16 {
        self.0
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut given = given();
        if let Some(count) = given.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                given.remove(&self.0);
            }
        }
    }
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// Ports below `net.ipv4.ip_local_port_range`, at random, without end.
fn quiet_ports() -> impl Iterator<Item = u16> {
    const UNPRIVILEGED: u16 = 1024;
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let kernels = range.split_whitespace().next().and_then(|lowest| lowest.parse().ok());
    let end: u16 = kernels.unwrap_or(32_768).max(UNPRIVILEGED + 1);
    let start = end.saturating_sub(QUIET).max(UNPRIVILEGED);
    std::iter::repeat_with(move || {
        let drawn = Uuid::new_v4().as_u64_pair().0 % u64::from(end - start);
        start + u16::try_from(drawn).expect("less than a port")
    })
}

fn given() -> MutexGuard<'static, BTreeMap<u16, usize>> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_until_it_is_given_back() {
        let first = Port::free().unwrap();
        let mut offers = [first.number(), first.number(), 1].into_iter();
        let second = Port::first_ungiven(|| Ok(offers.next().unwrap())).unwrap();
        assert_eq!(second.number(), 1, "the kernel offered a given port and it was taken");

        let number = first.number();
        let adopted = Port::of_instance(number);
        drop(first);
        assert!(given().contains_key(&number), "its adopter has it still");
        drop(adopted);
        assert!(!given().contains_key(&number));
    }

    #[test]
    fn ports_come_from_below_those_that_the_kernel_gives_to_anybody() {
        let kernels = bind(0).unwrap().local_addr().unwrap().port();
        for _ in 0..1000 {
            let port = Port::free().unwrap().number();
            assert!(1024 <= port && port < kernels, "{port}, {kernels}");
        }
    }

    #[test]
    fn when_all_are_given_it_says_so() {
        let _one = Port::of_instance(2);
        assert!(Port::first_ungiven(|| Ok(2)).is_err());
    }
}
