//! `murmesh bugreport`: what somebody needs to know who is to help, in one archive, without keys and tokens.

mod redact;

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;
use tokio::time::timeout;

use super::{RunDirectory, daemon, output};
use crate::local::ANY_SOCKET;
use crate::metrics::{AGENT_ADDRESS, SERVER_ADDRESS};

/// How long one command, or one page, may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes at the end of each log.
const LOG_TAIL: usize = 1 << 20;

/// The longest page of figures.
const LONGEST_PAGE: u64 = 4 << 20;

/// Arguments of `murmesh bugreport`.
#[derive(Debug, Args)]
pub struct BugreportArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The archive, which must not be there yet [default: murmesh-bugreport-TIME.tar in the current directory].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Directory of what the daemons keep. Its files are listed, and logs in it are read; nothing else is.
    #[arg(long, default_value = "/var/lib/murmesh", value_name = "DIR")]
    data_dir: PathBuf,
    /// Directory of the pins of the kernel half.
    #[arg(long, default_value = "/sys/fs/bpf/murmesh", value_name = "DIR")]
    bpf_dir: PathBuf,
    /// Configuration file of the daemons.
    // Its name here is not that by which daemons have theirs read.
    #[arg(long = "config", default_value = "/etc/murmesh/murmesh.toml", value_name = "FILE")]
    config_file: PathBuf,
    /// A log to take the end of, beside those of the data directory and of systemd; may be given several times.
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
}

/// Writes the archive, and says what to do with it.
///
/// # Errors
/// When it cannot be written. What cannot be found out is said in it.
pub fn run(arguments: BugreportArgs) -> anyhow::Result<ExitCode> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "");
    let path = arguments.output.clone().unwrap_or_else(|| format!("murmesh-bugreport-{now}.tar").into());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file =
        file.with_context(|| format!("{}: cannot be made; name another file with --output", path.display()))?;
    let parts = daemon::block_on(async { Ok(gather(&arguments).await) })?;
    let mut archive = tar::Builder::new(file);
    for (name, text) in &parts {
        let text = redact::redacted(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        let name = format!("murmesh-bugreport-{now}/{name}");
        archive.append_data(&mut header, name, text.as_bytes()).context("the archive cannot be written")?;
    }
    archive.into_inner().and_then(|mut file| file.flush()).context("the archive cannot be written")?;
    let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
    output::print(&format!(
        "{}: {}\nIt has no key and no token, but names of hosts, services and programs, and addresses: look at it before \
         you give it to somebody.\n",
        path.display(),
        names.join(", ")
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn gather(arguments: &BugreportArgs) -> Vec<(String, String)> {
    let mut parts = vec![("system.txt".to_owned(), system(arguments).await)];
    let data_dir = arguments.data_dir.display().to_string();
    let bpf_dir = arguments.bpf_dir.display().to_string();
    let commands: [(&str, &[&str]); 9] = [
        ("status.txt", &["status"]),
        ("status.json", &["status", "-o", "json"]),
        ("check.txt", &["check", "--data-dir", &data_dir, "--bpf-dir", &bpf_dir]),
        ("members.json", &["members", "-o", "json"]),
        ("services.json", &["services", "-o", "json"]),
        ("policy.txt", &["policy", "list"]),
        ("named-services.txt", &["service", "list"]),
        ("ca.txt", &["ca", "status"]),
        ("observed.json", &["observe", "-o", "json"]),
    ];
    for (name, command) in commands {
        parts.push((name.to_owned(), own(&arguments.run_directory.run_dir, command).await));
    }
    for (name, address) in [("metrics-agent.txt", AGENT_ADDRESS), ("metrics-server.txt", SERVER_ADDRESS)] {
        let page = timeout(PATIENCE, page(address)).await;
        let page = page.map_or_else(
            |_| "no answer in time".to_owned(),
            |page| page.unwrap_or_else(|error| error.to_string()),
        );
        parts.push((name.to_owned(), page));
    }
    parts.push(("config.toml".to_owned(), read(&arguments.config_file)));
    parts.push(("pins.txt".to_owned(), listing(&arguments.bpf_dir)));
    parts.push(("data-directory.txt".to_owned(), listing(&arguments.data_dir)));
    let kept = ["agent.log", "server.log"].map(|name| arguments.data_dir.join(name));
    for path in kept.iter().filter(|path| path.exists()).chain(&arguments.log) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        parts.push((format!("log-{}-{name}", parts.len()), tail(path)));
    }
    if Path::new("/run/systemd/system").exists() {
        let units = ["--unit", "murmesh-agent", "--unit", "murmesh-server", "--lines", "5000", "--no-pager"];
        parts.push(("journal.txt".to_owned(), said_by(Command::new("journalctl").args(units)).await));
    }
    parts
}

/// Versions, the machine, and the daemons' command lines.
async fn system(arguments: &BugreportArgs) -> String {
    let mut text = format!("murmesh {}\n", env!("CARGO_PKG_VERSION"));
    text.push_str(&said_by(Command::new("uname").arg("-a")).await);
    for file in ["/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/self/cgroup"] {
        let _ = writeln!(text, "\n{file}\n{}", read(Path::new(file)));
    }
    let mounts = read(Path::new("/proc/self/mounts"));
    text.push_str("\nmounts of cgroups and BPF\n");
    for mount in mounts.lines().filter(|mount| mount.contains(" cgroup") || mount.contains(" bpf ")) {
        let _ = writeln!(text, "{mount}");
    }
    for socket in ANY_SOCKET {
        let path = arguments.run_directory.run_dir.join(socket);
        let Ok(stream) = UnixStream::connect(&path).await else { continue };
        let Some(pid) = stream.peer_cred().ok().and_then(|credentials| credentials.pid()) else { continue };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let _ = writeln!(text, "\n{} (pid {pid})\n{command}", path.display());
        text.push_str(&read(Path::new(&format!("/proc/{pid}/limits"))));
    }
    text
}

/// What one of our own commands says.
async fn own(run_dir: &Path, arguments: &[&str]) -> String {
    match std::env::current_exe() {
        Ok(program) => said_by(Command::new(program).args(arguments).arg("--run-dir").arg(run_dir)).await,
        Err(error) => format!("finding our own program: {error}\n"),
    }
}

/// What a command says, and its status where that is not 0.
async fn said_by(command: &mut Command) -> String {
    let output = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = match output {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return format!("it cannot be started: {error}\n"),
        Err(_) => return format!("it did not end within {PATIENCE:?}\n"),
    };
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let _ = writeln!(text, "{}", output.status);
    }
    text
}

/// The figures of a daemon.
async fn page(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut page = Vec::new();
    stream.take(LONGEST_PAGE).read_to_end(&mut page).await?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{}: {error}\n", path.display()))
}

/// The end of a log.
fn tail(path: &Path) -> String {
    match fs::read(path) {
        Ok(log) => {
            let end = &log[log.len().saturating_sub(LOG_TAIL)..];
            String::from_utf8_lossy(end).into_owned()
        }
        Err(error) => format!("{}: {error}\n", path.display()),
    }
}

/// Names, sizes, owners and modes of what is in a directory.
fn listing(directory: &Path) -> String {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return format!("{}: {error}\n", directory.display()),
    };
    let mut text = String::new();
    for entry in entries.filter_map(Result::ok) {
        let Ok(metadata) = entry.metadata() else { continue };
        let (mode, size) = (metadata.mode() & 0o7777, metadata.len());
        let (user, group) = (metadata.uid(), metadata.gid());
        let _ = writeln!(text, "{mode:04o} {user}:{group} {size:>10} {}", entry.path().display());
        if metadata.is_dir() {
            text.push_str(&listing(&entry.path()));
        }
    }
    text
}
