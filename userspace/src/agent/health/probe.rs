//! One check of an instance on this host.
//!
//! Threats: which check is made comes from the server. A command is one program in one directory of this host, where
//! nobody but root may write; it gets no arguments, and its whole process group is killed when its time is over. An
//! answer over HTTP is read no further than its first line. Of the agent's capabilities a program gets none.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::{policy::Probe, sandbox, socket};

/// Bytes of an answer within which its status must be.
const MAX_STATUS_LINE: usize = 256;

/// Write permission for others than the owner.
const OTHERS_WRITE: u32 = 0o022;

/// What is probed, and how.
#[derive(Debug, Clone)]
pub struct Prober {
    /// Where the service is dialled.
    pub address: SocketAddr,
    /// `SO_MARK` of the agent's own sockets.
    pub mark: Option<u32>,
    /// Where the programs for checks are.
    pub directory: PathBuf,
}

impl Prober {
    /// Whether the service is well; if not, why, in the same words each time.
    pub async fn probe(&self, probe: &Probe, limit: Duration) -> Result<(), String> {
        let outcome = match probe {
            Probe::Tcp => timeout(limit, async { self.connect().await.map(|_| ()) }).await,
            Probe::Http(path) => timeout(limit, self.http(path)).await,
            Probe::Command(name) => Ok(self.command(name, limit).await),
        };
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        outcome.map_err(|reason| format!("{probe}: {reason}"))
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let socket = socket::outgoing(self.address, self.mark).map_err(|error| error.to_string())?;
        socket.connect(self.address).await.map_err(|error| error.to_string())
    }

    async fn http(&self, path: &str) -> Result<(), String> {
        let mut stream = self.connect().await?;
        let host = self.address;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: murmesh-check\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let line = status_line(&mut stream).await.map_err(|error| error.to_string())?;
        match status(&line) {
            Some(200..=399) => Ok(()),
            Some(status) => Err(format!("status {status}")),
            None => Err("the answer is not HTTP/1".to_owned()),
        }
    }

    async fn command(&self, name: &str, limit: Duration) -> Result<(), String> {
        let program = self.directory.join(name);
        for path in [self.directory.as_path(), &program] {
            only_we_may_write(path)?;
        }
        let mut command = Command::new(&program);
        command.current_dir("/").env("MURMESH_ADDRESS", self.address.to_string()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        // SAFETY: between fork and exec, one system call, and no memory is taken.
        unsafe { command.pre_exec(sandbox::drop_all) };
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let _group = Group(group);
        match timeout(limit, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(status.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("not done within {limit:?}")),
        }
    }
}

/// Whatever a command has started ends with it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Fails where nobody is left.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn only_we_may_write(path: &Path) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let owned = found.uid() == 0 || found.uid() == geteuid().as_raw();
    if owned && found.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(format!("{}: others than root may write it (chown root, chmod go-w)", path.display()))
}

async fn status_line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < MAX_STATUS_LINE {
        let mut piece = [0; MAX_STATUS_LINE];
        let length = stream.read(&mut piece).await?;
        if length == 0 {
            break;
        }
        line.extend_from_slice(&piece[..length]);
    }
    Ok(line)
}

/// RFC 9112, section 4.
fn status(line: &[u8]) -> Option<u16> {
    let digits = line.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn prober(address: SocketAddr, directory: &Path) -> Prober {
        Prober { address, mark: None, directory: directory.to_owned() }
    }

    /// What a check says of a service that answers like this.
    async fn http(answer: &'static [u8]) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let prober = prober(listener.local_addr().expect("an address"), Path::new("/nowhere"));
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 16];
            stream.read_exact(&mut request).await.expect("a request");
            assert!(request.starts_with(b"GET /health HTTP"));
            stream.write_all(answer).await.expect("it listens");
        };
        let probe = Probe::Http("/health".to_owned());
        tokio::join!(prober.probe(&probe, LIMIT), serve).0
    }

    #[tokio::test]
    async fn a_status_of_200_to_399_is_well() {
        assert_eq!(http(b"HTTP/1.1 200 OK\r\n\r\n").await, Ok(()));
        assert_eq!(http(b"HTTP/1.0 302 Found\r\n\r\n").await, Ok(()));
        assert_eq!(http(b"HTTP/1.1 503 No\r\n\r\n").await, Err("http:/health: status 503".to_owned()));
        assert!(http(b"SSH-2.0-OpenSSH\r\n").await.is_err());
        assert!(http(b"").await.is_err());
    }

    #[tokio::test]
    async fn nobody_listening_is_not_well() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let prober = prober(listener.local_addr().expect("an address"), Path::new("/nowhere"));
        assert_eq!(prober.probe(&Probe::Tcp, LIMIT).await, Ok(()));
        drop(listener);
        assert!(prober.probe(&Probe::Tcp, LIMIT).await.is_err());
    }

    #[tokio::test]
    async fn a_command_is_judged_by_its_status_in_bounded_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, script: &str, mode| {
            let path = directory.path().join(name);
            fs::write(&path, script).expect("written");
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
        };
        write("well", "#!/bin/sh\nexit 0\n", 0o755);
        write("ill", "#!/bin/sh\nexit 3\n", 0o755);
        write("slow", "#!/bin/sh\nsleep 1000 & wait\n", 0o755);
        write("open", "#!/bin/sh\nexit 0\n", 0o777);
        let prober = prober("127.0.0.1:1".parse().expect("an address"), directory.path());
        let run = async |name: &str, limit| prober.probe(&Probe::Command(name.to_owned()), limit).await;
        assert_eq!(run("well", LIMIT).await, Ok(()));
        assert!(run("ill", LIMIT).await.is_err_and(|reason| reason.contains("exit status: 3")));
        assert!(
            run("slow", Duration::from_millis(50)).await.is_err_and(|reason| reason.contains("not done"))
        );
        assert!(run("open", LIMIT).await.is_err_and(|reason| reason.contains("may write")));
        assert!(run("missing", LIMIT).await.is_err());
    }
}
