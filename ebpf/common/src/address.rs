use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP address and a TCP port as the hooks see them.
///
/// IPv4 is held in its IPv4-mapped IPv6 form (RFC 4291 section 2.5.5.2), so that a destination has one form
/// whichever of `connect4` and `connect6` it arrives through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    /// Network byte order, in the kernel's four words.
    pub ip: [u32; 4],
    /// Network byte order.
    pub port: u16,
    /// Always zero: the type is a map key, and every byte of a key counts.
    pub padding: u16,
}

const _: () = assert!(size_of::<SocketAddress>() == 20);

/// Third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl SocketAddress {
    /// From an IPv4 address and port in network byte order, as in `bpf_sock_addr.user_ip4` and `user_port`.
    #[inline(always)]
    pub const fn from_v4(ip: u32, port: u16) -> Self {
        Self { ip: [0, 0, MAPPED, ip], port, padding: 0 }
    }

    /// From an IPv6 address and port in network byte order.
    #[inline(always)]
    pub const fn from_v6(ip: [u32; 4], port: u16) -> Self {
        Self { ip, port, padding: 0 }
    }

    /// 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.as_v4() {
            Some(v4) => v4.to_ne_bytes()[0] == 127,
            None => self.ip[0] == 0 && self.ip[1] == 0 && self.ip[2] == 0 && self.ip[3] == 1_u32.to_be(),
        }
    }

    /// 0.0.0.0 or ::.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.ip[0] == 0 && self.ip[1] == 0 && self.ip[3] == 0 && (self.ip[2] == 0 || self.ip[2] == MAPPED)
    }

    /// Whether both have the same IP address.
    #[inline(always)]
    pub const fn ip_equals(&self, other: &Self) -> bool {
        self.ip[0] == other.ip[0]
            && self.ip[1] == other.ip[1]
            && self.ip[2] == other.ip[2]
            && self.ip[3] == other.ip[3]
    }

    /// 169.254.0.0/16 or fe80::/10: known on one link only.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        match self.as_v4() {
            Some(v4) => {
                let bytes = v4.to_ne_bytes();
                bytes[0] == 169 && bytes[1] == 254
            }
            None => u32::from_be(self.ip[0]) >> 22 == 0xfe80 >> 6,
        }
    }

    /// Where no other host can be: loopback, and the unspecified address, which `connect` takes for it.
    #[inline(always)]
    pub const fn is_on_this_host(&self) -> bool {
        self.is_loopback() || self.is_unspecified()
    }

    /// 127.0.0.1 or ::1, whichever is of the family, with the same port.
    #[inline(always)]
    pub const fn canonical_loopback(&self) -> Self {
        match self.as_v4() {
            Some(_) => Self::from_v4(u32::from_ne_bytes([127, 0, 0, 1]), self.port),
            None => Self::from_v6([0, 0, 0, 1_u32.to_be()], self.port),
        }
    }

    /// The IPv4 address in network byte order, if this is one.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<u32> {
        if self.ip[0] == 0 && self.ip[1] == 0 && self.ip[2] == MAPPED { Some(self.ip[3]) } else { None }
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        let v6 = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let bytes = v6.octets();
        let mut ip = [0; 4];
        for (word, chunk) in ip.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Self { ip, port: address.port().to_be(), padding: 0 }
    }
}

impl From<SocketAddress> for SocketAddr {
    /// IPv4-mapped addresses come out as IPv4.
    fn from(address: SocketAddress) -> Self {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(address.ip) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        let ip = match address.as_v4() {
            Some(v4) => IpAddr::V4(Ipv4Addr::from(v4.to_ne_bytes())),
            None => IpAddr::V6(Ipv6Addr::from(bytes)),
        };
        Self::new(ip, u16::from_be(address.port))
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, no implicit padding (asserted by its size), every bit pattern is a value.
unsafe impl aya::Pod for SocketAddress {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn v4_survives_the_mapped_form(ip in any::<[u8; 4]>(), port in any::<u16>()) {
            let address = SocketAddr::new(Ipv4Addr::from(ip).into(), port);
            prop_assert_eq!(SocketAddr::from(SocketAddress::from(address)), address);
        }

        #[test]
        fn v6_survives(ip in any::<[u8; 16]>(), port in any::<u16>()) {
            let address = SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port);
            prop_assert_eq!(SocketAddr::from(SocketAddress::from(address)), address);
        }
    }

    #[test]
    fn any_address_of_either_family_is_unspecified() {
        let is =
            |text: &str| SocketAddress::from(text.parse::<SocketAddr>().expect("literal")).is_unspecified();
        assert!(is("0.0.0.0:1") && is("[::]:1"));
        assert!(!is("0.0.0.1:0") && !is("[::1]:0") && !is("[1::]:0") && !is("10.0.0.0:0"));
    }

    #[test]
    fn an_address_of_one_link_is_link_local() {
        let is =
            |text: &str| SocketAddress::from(text.parse::<SocketAddr>().expect("literal")).is_link_local();
        assert!(
            is("169.254.0.1:1") && is("[fe80::1]:1") && is("[febf::1]:1") && is("[::ffff:169.254.9.9]:1")
        );
        assert!(!is("169.253.0.1:1") && !is("[fec0::1]:1") && !is("[fe7f::1]:1") && !is("10.0.0.1:1"));
    }

    #[test]
    fn mapped_and_plain_v4_are_one_key() {
        let plain: SocketAddr = "10.99.0.2:8181".parse().expect("literal");
        let mapped: SocketAddr = "[::ffff:10.99.0.2]:8181".parse().expect("literal");
        assert_eq!(SocketAddress::from(plain), SocketAddress::from(mapped));
        assert_eq!(
            SocketAddress::from_v4(u32::from_ne_bytes([10, 99, 0, 2]), 8181_u16.to_be()),
            SocketAddress::from(plain)
        );
    }
}
