//! Where wakes come from: what is limited, and shared fairly, by client.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A client as limits see it: an IPv4 address, or the /64 of an IPv6 address, which is what one
/// household or machine is given whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        // `::ffff:192.0.2.1` is 192.0.2.1, not one of a network that all of IPv4 shares.
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                Self(Ipv6Addr::from_bits(network).into())
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        address.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn all_of_a_64_is_one_client_and_its_neighbour_is_another() {
        let one = origin("2001:db8:1:2::1");
        assert_eq!(one, origin("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(one, origin("2001:db8:1:3::1"));
        assert_eq!(one.to_string(), "2001:db8:1:2::/64");
    }

    #[test]
    fn every_ipv4_address_is_a_client_of_its_own_also_when_it_comes_as_ipv6() {
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("::ffff:192.0.2.1"), origin("::ffff:192.0.2.2"));
    }
}
