//! What a daemon tells the service manager that started it, as sd_notify(3) describes. Nothing happens where none
//! asked to be told.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// The daemon does what it is for.
pub fn ready() {
    tell("READY=1");
}

/// The daemon was asked to stop, and does.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Another process is the daemon from now on.
pub fn followed_by(process: i32) {
    tell(&format!("MAINPID={process}"));
}

/// Tells the manager's watchdog, if it has one, that this runtime still does its work; never ends. What runs on threads
/// of its own is looked after by itself.
pub async fn keep_alive() {
    let Some(patience) =
        watchdog(env::var_os("WATCHDOG_USEC").as_deref(), env::var_os("WATCHDOG_PID").as_deref())
    else {
        return;
    };
    let mut ticks = interval(patience / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell("WATCHDOG=1");
    }
}

fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        warn!(socket = %socket.display(), %error, "the service manager cannot be told {state}");
    }
}

/// A name that begins with `@` is in the abstract namespace, where there are no files (unix(7)).
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// For how long the manager waits to be told, if it means this process.
fn watchdog(microseconds: Option<&OsStr>, process: Option<&OsStr>) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    let is_ours = process.is_none_or(|process| number(process) == Some(std::process::id().into()));
    number(microseconds?).filter(|microseconds| *microseconds > 1 && is_ours).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(manager: &UnixDatagram) -> String {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_is_told_at_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn a_manager_is_told_at_its_abstract_name() {
        let name = format!("murmesh-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn only_the_process_that_is_watched_is_asked() {
        let own = std::process::id().to_string();
        let asked = |microseconds: &str, process: Option<&str>| {
            watchdog(Some(OsStr::new(microseconds)), process.map(OsStr::new))
        };
        assert_eq!(asked("30000000", Some(&own)), Some(Duration::from_secs(30)));
        assert_eq!(asked("30000000", None), Some(Duration::from_secs(30)));
        assert_eq!(asked("30000000", Some("1")), None);
        assert_eq!(asked("0", None), None);
        assert_eq!(asked("soon", None), None);
        assert_eq!(watchdog(None, None), None);
    }
}
