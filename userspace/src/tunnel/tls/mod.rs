//! TLS 1.3 on the tunnel: rustls does the handshake and the key schedule, the records are sealed and opened in the
//! tunnel's own buffers, in place. See `docs/decisions/0005-records-in-place.md`.

mod handshake;
mod key;
mod record;

pub use handshake::{Agreed, Established, KEY_UPDATE_MESSAGE, Session, accept, connect};
pub use record::{
    ContentType, HEADER, MAX_PLAINTEXT, MAX_RECORD, OVERHEAD, Opener, RecordError, Sealer, record_length,
};
