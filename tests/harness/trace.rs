//! Reading recordings.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::capture::MARKER_PORT;

/// Length of the file header and of a packet header (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;

/// In the byte order of the machine that recorded, which is ours. Times are in microseconds.
const MAGIC: u32 = 0xa1b2_c3d4;

/// The packets of a recording.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    raw: Vec<u8>,
    packets: Vec<Packet>,
}

/// A TCP or UDP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Who sent it.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Number of the first byte it carries or would carry in its TCP stream; none in a UDP packet.
    pub sequence: Option<u32>,
    /// Whether it opens a TCP connection: SYN without ACK.
    pub opens: bool,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who sent it.
    pub source: SocketAddr,
    /// Who received it.
    pub destination: SocketAddr,
    /// What was sent.
    pub bytes: Vec<u8>,
}

/// The header of a TLS record (RFC 8446, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsRecord {
    /// 20 change cipher spec, 21 alert, 22 handshake, 23 application data.
    pub content_type: u8,
    /// Length of what follows the header, in bytes.
    pub length: u16,
}

impl Trace {
    /// Reads what tcpdump wrote. A packet at the end that isn't complete is left out.
    pub(crate) fn parse(pcap: &[u8]) -> Result<Self> {
        if word(pcap, 0) != Some(MAGIC) {
            bail!("this is no recording: it doesn't begin with the magic number of pcap files");
        }
        let mut packets = Vec::new();
        let mut raw = Vec::new();
        let mut offset = FILE_HEADER;
        while let Some(length) = word(pcap, offset + 8) {
            let start = offset + PACKET_HEADER;
            offset = start + length as usize;
            let Some(frame) = pcap.get(start..offset) else { break };
            raw.extend_from_slice(frame);
            packets.extend(Packet::parse(frame)?.filter(|packet| !packet.is_marker()));
        }
        Ok(Self { raw, packets })
    }

    /// TCP and UDP packets in the order they passed.
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// Whether `bytes` are anywhere in what passed, be it in one packet or across the packets of a connection.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        contains(&self.raw, bytes) || self.streams().iter().any(|stream| contains(&stream.bytes, bytes))
    }

    /// Each direction of each TCP connection, put together in the order of its sequence numbers.
    ///
    /// Connections that use the same ports one after the other are told apart by their SYN.
    pub fn streams(&self) -> Vec<Stream> {
        let mut opened: HashMap<[SocketAddr; 2], (u32, usize)> = HashMap::new();
        let mut directions: BTreeMap<_, Vec<(u32, &[u8])>> = BTreeMap::new();
        for packet in &self.packets {
            let Some(sequence) = packet.sequence else { continue };
            let ends = [packet.source.min(packet.destination), packet.source.max(packet.destination)];
            let (syn, count) = opened.entry(ends).or_insert((sequence, 0));
            if packet.opens && *syn != sequence {
                (*syn, *count) = (sequence, *count + 1);
            }
            let segments = directions.entry((packet.source, packet.destination, *count)).or_default();
            segments.push((sequence, &packet.payload));
        }
        let stream = |((source, destination, _), segments): (_, Vec<_>)| Stream {
            source,
            destination,
            bytes: reassemble(&segments),
        };
        directions.into_iter().map(stream).collect()
    }
}

impl Packet {
    fn parse(frame: &[u8]) -> Result<Option<Self>> {
        let sliced = SlicedPacket::from_ethernet(frame).context("reading a recorded packet")?;
        let (source, destination): (IpAddr, IpAddr) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(NetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            _ => return Ok(None),
        };
        let packet = |source_port, destination_port, payload: &[u8]| Self {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, destination_port),
            sequence: None,
            opens: false,
            payload: payload.to_vec(),
        };
        Ok(match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => Some(Self {
                // A SYN takes a sequence number of its own before the first byte.
                sequence: Some(tcp.sequence_number().wrapping_add(tcp.syn().into())),
                opens: tcp.syn() && !tcp.ack(),
                ..packet(tcp.source_port(), tcp.destination_port(), tcp.payload())
            }),
            Some(TransportSlice::Udp(udp)) => {
                Some(packet(udp.source_port(), udp.destination_port(), udp.payload()))
            }
            _ => None,
        })
    }

    /// Whether either port is `port`.
    pub fn uses_port(&self, port: u16) -> bool {
        self.source.port() == port || self.destination.port() == port
    }

    fn is_marker(&self) -> bool {
        self.sequence.is_none() && self.destination.port() == MARKER_PORT
    }
}

/// Puts segments in order and drops what was sent twice. Bytes that were not recorded leave no gap.
fn reassemble(segments: &[(u32, &[u8])]) -> Vec<u8> {
    let mut filled: Vec<(u32, &[u8])> =
        segments.iter().filter(|(_, payload)| !payload.is_empty()).copied().collect();
    let Some(&(first, _)) = segments.first() else { return Vec::new() };
    filled.sort_by_key(|(sequence, _)| sequence.wrapping_sub(first));
    let mut stream = Vec::new();
    let mut next = 0;
    for (sequence, payload) in filled {
        let start = sequence.wrapping_sub(first) as usize;
        let repeated = usize::min(next - usize::min(start, next), payload.len());
        stream.extend_from_slice(&payload[repeated..]);
        next = usize::max(next, start + payload.len());
    }
    stream
}

/// Reads `stream` as TLS records from its first byte on. Fails where it is anything else; a record that the
/// recording cuts off is left out.
pub fn tls_records(stream: &[u8]) -> Result<Vec<TlsRecord>> {
    let mut records = Vec::new();
    let mut rest = stream;
    while let Some(&[content_type, major, minor, high, low]) = rest.first_chunk::<5>() {
        let length = u16::from_be_bytes([high, low]);
        if !(20..=23).contains(&content_type) || major != 3 || length > 16384 + 256 {
            let offset = stream.len() - rest.len();
            bail!("no TLS record at byte {offset}: {:02x?}", [content_type, major, minor, high, low]);
        }
        let Some(after) = rest.get(5 + usize::from(length)..) else { break };
        records.push(TlsRecord { content_type, length });
        rest = after;
    }
    Ok(records)
}

/// Whether `needle` occurs in `haystack`.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::{TlsRecord, reassemble, tls_records};

    #[test]
    fn segments_are_put_in_order_once() {
        let last = u32::MAX;
        let segments: [(u32, &[u8]); 4] = [(last, b""), (1, b"cde"), (last, b"ab"), (1, b"cd")];
        assert_eq!(reassemble(&segments), b"abcde");
    }

    #[test]
    fn plain_text_is_no_tls_record() -> anyhow::Result<()> {
        let record = TlsRecord { content_type: 23, length: 2 };
        assert_eq!(tls_records(&[23, 3, 3, 0, 2, 1, 2, 23, 3, 3, 0, 9, 1])?, [record]);
        assert!(tls_records(b"You will be surprised.").is_err());
        Ok(())
    }
}
