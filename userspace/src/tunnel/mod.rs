//! The tunnel between two agents: one stream at a time over mutual TLS 1.3. See `docs/tunnel.md`.

pub mod frame;

/// Name and version of the protocol, as negotiated by ALPN (RFC 7301). Any change of the frames changes it.
pub const PROTOCOL: &str = "murmesh/1";
