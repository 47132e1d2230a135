//! Addresses outside the mesh: networks in CIDR form (RFC 4632, RFC 4291 section 2.3) and protocols.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::PatternError;

/// Bits before the IPv4 address in an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
const MAPPED: u8 = 96;

/// What a program speaks to a destination outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, and MPTCP.
    Tcp,
    /// UDP, connected or not.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The addresses that begin with the same bits. One of IPv4 holds no address of IPv6 and the other way round; IPv4-mapped
/// IPv6 addresses are IPv4 addresses here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    /// The network of one address alone.
    pub fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, length: width(address) }
    }

    /// The network of `length` bits in which `address` is; `None` when it has no address of that many bits.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        let address = address.to_canonical();
        let host_bits = width(address).checked_sub(length)?;
        let address = match address {
            IpAddr::V4(v4) => Ipv4Addr::from(cleared(v4.to_bits().into(), host_bits) as u32).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(cleared(v6.to_bits(), host_bits)).into(),
        };
        Some(Self { address, length })
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits all its addresses have in common.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether every address of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.address.is_ipv4() == other.address.is_ipv4()
            && self.length <= other.length
            && Self::around(other.address, self.length).as_ref() == Some(self)
    }
}

impl FromStr for Network {
    type Err = PatternError;

    /// `ADDRESS/LENGTH`, or `ADDRESS` for one address.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let error = || PatternError::Network(crate::identity::excerpt(text));
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| error())?)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| error())?;
        let length = length.unwrap_or_else(|| width(written));
        let length =
            if written.to_canonical() == written { Some(length) } else { length.checked_sub(MAPPED) };
        let network = length.and_then(|length| Self::around(written, length)).ok_or_else(error)?;
        if network.address == written.to_canonical() {
            Ok(network)
        } else {
            Err(PatternError::HostBits { written: text.to_owned(), network })
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn cleared(bits: u128, host_bits: u8) -> u128 {
    let host_bits = u32::from(host_bits);
    bits.checked_shr(host_bits).and_then(|bits| bits.checked_shl(host_bits)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_in_one_form_only() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/32", "::/0", "::1/128"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.1"), network("192.0.2.1/32"));
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
        for wrong in ["10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "::ffff:0:0/95", "x"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        let error = "10.1.2.3/8".parse::<Network>().unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8"), "{error}");
    }

    #[test]
    fn the_network_of_everything_does_not_hold_the_other_family() {
        assert!(network("0.0.0.0/0").covers(&network("255.255.255.255")));
        assert!(!network("::/0").covers(&network("10.0.0.1")));
        assert!(!network("0.0.0.0/0").covers(&network("::1")));
        assert!(network("10.0.0.0/8").covers(&Network::of("::ffff:10.1.1.1".parse().unwrap())));
    }

    proptest! {
        #[test]
        fn a_network_covers_what_shares_its_leading_bits(one: u32, other: u32, length in 0u8..=32) {
            let around = Network::around(Ipv4Addr::from(one).into(), length).unwrap();
            let shares = (one ^ other).leading_zeros() >= u32::from(length);
            prop_assert_eq!(around.covers(&Network::of(Ipv4Addr::from(other).into())), shares);
        }
    }
}
