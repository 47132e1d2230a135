//! What an eavesdropper can tell from a recording.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{TUNNEL_PORT, TlsRecord, Trace, tls_records};

/// Content type of TLS application data.
const APPLICATION_DATA: u8 = 23;

/// Ports whose traffic Murmesh leaves on the wire: tunnels, and the server's API.
const ENCRYPTED_PORTS: [u16; 2] = [TUNNEL_PORT, 9190];

/// Shorter pieces of a text may be found in random bytes by chance.
const TELLING_LENGTH: usize = 6;

/// What was found on the wire.
pub struct Seen {
    kinds: BTreeMap<u8, usize>,
    /// The last application data, in hexadecimal.
    pub sample: String,
}

impl Seen {
    /// How many TLS records there were.
    pub fn records(&self) -> usize {
        self.kinds.values().sum()
    }

    /// How many of each kind.
    pub fn kinds(&self) -> String {
        let name = |content_type| match content_type {
            20 => "change cipher spec",
            21 => "alert",
            22 => "handshake",
            APPLICATION_DATA => "application data",
            _ => "unknown",
        };
        let counts =
            self.kinds.iter().map(|(content_type, count)| format!("{count} {}", name(*content_type)));
        counts.collect::<Vec<_>>().join(", ")
    }
}

/// All that was sent from `port`, as text.
pub fn sent_from(trace: &Trace, port: u16) -> String {
    let streams = trace.streams().into_iter().filter(|stream| stream.source.port() == port);
    streams.map(|stream| String::from_utf8_lossy(&stream.bytes).into_owned()).collect()
}

/// Makes sure that `trace` has nothing but TLS on Murmesh's ports, and no telling piece of `secret`.
pub fn examine(trace: &Trace, secret: &str) -> Result<Seen> {
    for packet in trace.packets() {
        let encrypted = ENCRYPTED_PORTS.iter().any(|port| packet.uses_port(*port));
        ensure!(
            encrypted,
            "a packet passed outside tunnels, from {} to {}",
            packet.source,
            packet.destination
        );
    }
    for line in secret.lines().map(str::trim).filter(|line| line.len() >= TELLING_LENGTH) {
        ensure!(!trace.contains(line.as_bytes()), "the wire shows a line of the fortune in clear: {line:?}");
    }

    let (mut kinds, mut sample) = (BTreeMap::new(), String::new());
    for stream in trace.streams() {
        let records = tls_records(&stream.bytes)
            .with_context(|| format!("from {} to {}: not only TLS", stream.source, stream.destination))?;
        if ![stream.source.port(), stream.destination.port()].contains(&TUNNEL_PORT) {
            continue;
        }
        for TlsRecord { content_type, .. } in &records {
            *kinds.entry(*content_type).or_default() += 1;
        }
        if stream.source.port() == TUNNEL_PORT && kinds.contains_key(&APPLICATION_DATA) {
            sample = hexadecimal(&stream.bytes[stream.bytes.len().saturating_sub(48)..]);
        }
    }
    if !kinds.contains_key(&APPLICATION_DATA) {
        bail!("no TLS application data passed on port {TUNNEL_PORT}: the fortune took another way");
    }
    Ok(Seen { kinds, sample })
}

fn hexadecimal(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}
