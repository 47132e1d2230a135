//! The Unix socket in `--run-dir` through which the command line talks to the daemon on its host.
//!
//! The socket is made with mode 0600 before anybody can connect to it, and every caller's user is checked
//! again when it connects: root or the daemon's own.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream;
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::UdsConnectInfo;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tracing::warn;

use crate::api::MAX_RESPONSE_BYTES;
use crate::api::v1::administration_client::AdministrationClient;
use crate::api::v1::local_client::LocalClient;

/// Socket of a server in its run directory.
pub const SERVER_SOCKET: &str = "server.sock";
/// Socket of an agent in its run directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Socket of a plain sidecar in its run directory.
pub const SIDECAR_SOCKET: &str = "sidecar.sock";
/// Every daemon's socket, in the order in which the reading commands try them.
pub const ANY_SOCKET: &[&str] = &[AGENT_SOCKET, SIDECAR_SOCKET, SERVER_SOCKET];

/// How long nobody is accepted after that failed, for instance when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Why a daemon's socket cannot be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A daemon of the same kind answers there.
    #[error("{0} is in use by a running daemon; stop it, or choose another --run-dir")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("{path}: {reason}; choose another directory with --run-dir")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// Serving failed.
    #[error("serving the command line failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// There is no daemon to ask.
    #[error(
        "no {what} answers in {run_dir}; start one, or name its directory with --run-dir or MURMESH_RUN_DIR"
    )]
    NoDaemon {
        /// Which kind of daemon was looked for.
        what: &'static str,
        /// Where.
        run_dir: PathBuf,
    },
    /// There is one, and this user may not ask it.
    #[error("{0}: permission denied; run this as root or as the daemon's user")]
    Denied(PathBuf),
}

/// A daemon's socket, which is removed when this is dropped.
pub struct LocalSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl LocalSocket {
    /// Makes the socket `name` in `run_dir`, which is created if need be. One that a daemon left behind when
    /// it was killed is replaced.
    ///
    /// # Errors
    /// When a daemon answers there already, or the socket cannot be made.
    pub fn bind(run_dir: &Path, name: &str) -> Result<Self, LocalError> {
        let path = run_dir.join(name);
        if net::UnixStream::connect(&path).is_ok() {
            return Err(LocalError::InUse(path));
        }
        let bound = bind_private(run_dir, &path);
        let listener =
            bound.map_err(|error| LocalError::Bind { path: path.clone(), reason: error.to_string() })?;
        Ok(Self { listener, file: SocketFile { path, ownership: Ownership::ours() } })
    }

    /// The socket `name` in `run_dir` of a process that is taken over.
    ///
    /// # Errors
    /// It cannot be polled. Needs a tokio runtime.
    pub fn inherited(listener: net::UnixListener, run_dir: &Path, name: &str) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let file = SocketFile { path: run_dir.join(name), ownership: Ownership::of_another() };
        Ok(Self { listener: UnixListener::from_std(listener)?, file })
    }

    /// Whose the file is.
    pub fn ownership(&self) -> Ownership {
        self.file.ownership.clone()
    }

    /// A copy, for a process that takes over from this one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn copy(&self) -> io::Result<net::UnixListener> {
        Ok(self.listener.as_fd().try_clone_to_owned()?.into())
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(self, routes: Routes, shutdown: CancellationToken) -> Result<(), LocalError> {
        let Self { listener, file: _file } = self;
        let callers = stream::unfold(listener, |listener| async move {
            let caller = next_caller(&listener).await;
            Some((Ok::<_, io::Error>(caller), listener))
        });
        Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(callers, shutdown.cancelled_owned())
            .await?;
        Ok(())
    }
}

/// Who makes a call, for the log.
pub fn caller<T>(request: &tonic::Request<T>) -> String {
    match request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred) {
        Some(credentials) => match credentials.pid() {
            Some(pid) => format!("uid {} (pid {pid})", credentials.uid()),
            None => format!("uid {}", credentials.uid()),
        },
        None => "unknown".to_owned(),
    }
}

/// Connects to the first of `sockets` in `run_dir` that answers.
///
/// # Errors
/// [`LocalError::NoDaemon`], naming `what` was looked for, or [`LocalError::Denied`].
pub async fn connect(
    run_dir: &Path,
    sockets: &[&str],
    what: &'static str,
) -> Result<LocalClient<Channel>, LocalError> {
    let channel = channel(run_dir, sockets, what).await?;
    Ok(LocalClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES))
}

/// Connects to the server in `run_dir`, to change what only a server may.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to_server(run_dir: &Path) -> Result<AdministrationClient<Channel>, LocalError> {
    Ok(AdministrationClient::new(channel(run_dir, &[SERVER_SOCKET], "murmesh server").await?))
}

async fn channel(run_dir: &Path, sockets: &[&str], what: &'static str) -> Result<Channel, LocalError> {
    for socket in sockets {
        let path = run_dir.join(socket);
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                let mut stream = Some(TokioIo::new(stream));
                let connector = tower::service_fn(move |_: Uri| {
                    let stream = stream.take();
                    async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
                });
                let endpoint = Endpoint::from_static("http://local.murmesh");
                return Ok(endpoint.connect_with_connector(connector).await?);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(LocalError::Denied(path));
            }
            Err(_) => {}
        }
    }
    Err(LocalError::NoDaemon { what, run_dir: run_dir.to_owned() })
}

/// Which of two processes removes the file of a socket that both have.
#[derive(Debug, Clone)]
pub struct Ownership(Arc<AtomicBool>);

impl Ownership {
    fn ours() -> Self {
        Self(Arc::new(true.into()))
    }

    fn of_another() -> Self {
        Self(Arc::new(false.into()))
    }

    /// From now on it is this process.
    pub fn take(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// From now on it is another one.
    pub fn give_up(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A socket's file, which is removed when this is dropped.
pub struct SocketFile {
    path: PathBuf,
    ownership: Ownership,
}

impl SocketFile {
    /// At `path`.
    pub fn new(path: PathBuf, ownership: Ownership) -> Self {
        Self { path, ownership }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.ownership.0.load(Ordering::Relaxed) {
            // It may be gone already, with the whole directory.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds under another name first, so that the socket never has its final name with a wider mode.
fn bind_private(run_dir: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir)?;
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

async fn next_caller(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((caller, _)) if is_allowed(&caller) => return caller,
            Ok(_) => {}
            Err(error) => {
                warn!("the command line is not answered, trying again: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_allowed(caller: &UnixStream) -> bool {
    match caller.peer_cred() {
        Ok(credentials) if credentials.uid() == 0 || credentials.uid() == geteuid().as_raw() => true,
        Ok(credentials) => {
            warn!(
                uid = credentials.uid(),
                "refused a caller on the local socket: only root and the daemon's user may"
            );
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_replaces_one_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        let socket = LocalSocket::bind(&run_dir, AGENT_SOCKET).unwrap();
        let path = run_dir.join(AGENT_SOCKET);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(LocalSocket::bind(&run_dir, AGENT_SOCKET), Err(LocalError::InUse(_))));
        // As after a kill: the file stays, nobody listens.
        let LocalSocket { listener, file } = socket;
        drop(listener);
        std::mem::forget(file);
        drop(LocalSocket::bind(&run_dir, AGENT_SOCKET).unwrap());
        assert!(!path.exists(), "a clean stop removes it");
    }

    #[tokio::test]
    async fn the_error_without_a_daemon_names_the_directory_and_the_flag() {
        let directory = tempfile::tempdir().unwrap();
        let error = connect(directory.path(), ANY_SOCKET, "murmesh daemon").await.err().unwrap().to_string();
        assert!(error.contains(directory.path().to_str().unwrap()) && error.contains("--run-dir"), "{error}");
    }
}
