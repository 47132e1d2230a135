//! What a daemon tells systemd about itself (sd_notify(3)). Without systemd it tells nobody.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use tracing::warn;

/// Where systemd listens.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Tells systemd `state`, such as `MAINPID=42`, if it wants to know.
pub fn notify(state: &str) {
    let Some(path) = env::var_os(NOTIFY_SOCKET) else { return };
    if let Err(error) = send(path.as_bytes(), state) {
        warn!("systemd cannot be told {state}: {error}");
    }
}

/// A path, or, with `@` in front, a name that is in no file system.
fn send(path: &[u8], state: &str) -> io::Result<()> {
    let address = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
