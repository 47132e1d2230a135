//! The payload of OPEN: two socket addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::FrameError;

/// Length of an address in bytes: family, four or sixteen bytes of address, port.
const V4_LENGTH: usize = 1 + 4 + 2;
const V6_LENGTH: usize = 1 + 16 + 2;

/// Possible lengths of the payload: both addresses are of one family, as the two ends of a connection are. A client
/// of another family would be shown to the service in a form that it cannot have.
pub(super) const PAYLOAD_LENGTHS: [usize; 2] = [2 * V4_LENGTH, 2 * V6_LENGTH];
pub(super) const MAX_PAYLOAD: usize = 2 * V6_LENGTH;

/// What the opener asks for.
///
/// On the wire an address has one form: IPv4-mapped IPv6 addresses are sent as IPv4 and refused otherwise, so
/// that nothing behind this can be told two names for one endpoint. Flow information and scope are not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The address and port that the client dialled: the original destination.
    pub destination: SocketAddr,
    /// The address and port that the client dialled from.
    pub client: SocketAddr,
}

impl Open {
    /// Writes the payload and returns its length in bytes.
    pub(super) fn encode(&self, payload: &mut [u8]) -> usize {
        let destination = encode_address(self.destination, payload);
        destination + encode_address(self.client, &mut payload[destination..])
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut rest = payload;
        let mut next = || decode_address(&mut rest)?.ok_or(FrameError::AddressLength(payload.len()));
        let (destination, client) = (next()?, next()?);
        if rest.is_empty() {
            Ok(Self { destination, client })
        } else {
            Err(FrameError::AddressLength(payload.len()))
        }
    }
}

fn encode_address(address: SocketAddr, buffer: &mut [u8]) -> usize {
    let length = match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            buffer[0] = 4;
            buffer[1..5].copy_from_slice(&ip.octets());
            V4_LENGTH
        }
        IpAddr::V6(ip) => {
            buffer[0] = 6;
            buffer[1..17].copy_from_slice(&ip.octets());
            V6_LENGTH
        }
    };
    buffer[length - 2..length].copy_from_slice(&address.port().to_be_bytes());
    length
}

/// Takes one address off the front of `rest`; `None` when there are not enough bytes.
fn decode_address(rest: &mut &[u8]) -> Result<Option<SocketAddr>, FrameError> {
    let Some((&family, after)) = rest.split_first() else { return Ok(None) };
    *rest = after;
    let ip = match family {
        4 => take(rest).map(|octets: [u8; 4]| IpAddr::V4(Ipv4Addr::from(octets))),
        6 => take(rest).map(|octets: [u8; 16]| IpAddr::V6(Ipv6Addr::from(octets))),
        unknown => return Err(FrameError::AddressFamily(unknown)),
    };
    if ip.is_some_and(|ip| ip != ip.to_canonical()) {
        return Err(FrameError::MappedAddress);
    }
    let port = take(rest).map(u16::from_be_bytes);
    Ok(ip.zip(port).map(SocketAddr::from))
}

fn take<const LENGTH: usize>(rest: &mut &[u8]) -> Option<[u8; LENGTH]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}
