//! Free ports of the loopback device for instances that do not listen yet.
//!
//! A port is free for everybody until its instance listens. The kernel gives ports out at random
//! and keeps those for `bind` apart from those for `connect`, so a stranger rarely takes one; but
//! another of our own starts must never be given the same, so all engines share one register.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many times the kernel may offer a port that is given away already.
const OFFERS_MAX: usize = 1000;

/// Ports given to instances, and to how many: an adopted one may be counted twice for a moment.
static GIVEN: Mutex<BTreeMap<u16, usize>> = Mutex::new(BTreeMap::new());

/// A port that no other instance is given while this lives.
#[derive(Debug)]
pub(super) struct Port(u16);

impl Port {
    /// One that is free now.
    pub(super) fn free() -> io::Result<Self> {
        Self::first_ungiven(|| {
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
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
    fn when_all_are_given_it_says_so() {
        let _one = Port::of_instance(2);
        assert!(Port::first_ungiven(|| Ok(2)).is_err());
    }
}
