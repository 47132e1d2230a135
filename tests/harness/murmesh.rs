//! Murmesh's own programs in a lab.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::host::Host;
use crate::patience::deadline;
use crate::process::Process;

/// Where agents accept tunnels.
pub const TUNNEL_PORT: u16 = 9191;

/// What a daemon logs once it serves, with what separates it from the module's name, lest "already" is taken for it.
pub(crate) const READY: &str = ": ready";

/// How long a daemon may take to say so.
const READY_DEADLINE: Duration = Duration::from_secs(20);

const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

impl Host {
    /// Starts `murmesh server` here and waits until it serves.
    pub fn start_server(&self) -> Result<Process> {
        self.start(&mut self.server_command()?)
    }

    /// Starts `murmesh agent` here and waits until it serves. A host that has joined ignores the token.
    pub fn start_agent(&self, token: &str) -> Result<Process> {
        self.start(&mut self.agent_command(token)?)
    }

    /// Starts `murmesh sidecar` here, with more `arguments`, and waits until it serves.
    pub fn start_sidecar(&self, token: &str, arguments: &[&str]) -> Result<Process> {
        let mut sidecar = self.daemon_command("sidecar")?;
        sidecar.args(["--join", token, "--node", self.name()]).args(arguments);
        self.start(&mut sidecar)
    }

    /// A one-time join token of the server that runs here.
    pub fn create_token(&self) -> Result<String> {
        Ok(self.murmesh(["token", "create"])?.trim().to_owned())
    }

    /// Runs `murmesh` here with these arguments and returns what it prints, or an error when it fails.
    pub fn murmesh<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Result<String> {
        let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        let output = self.run("murmesh", &arguments, b"", COMMAND_DEADLINE)?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            let arguments = arguments.join(OsStr::new(" "));
            bail!("murmesh {} on {}: {}: {}", arguments.display(), self.name(), output.status, reason.trim());
        }
        String::from_utf8(output.stdout).context("murmesh printed something that is not text")
    }

    /// Waits until `murmesh services` here lists TCP `port` of the host called `node` as part of the mesh.
    pub fn wait_for_service(&self, node: &str, port: u16, within: Duration) -> Result<()> {
        let deadline = deadline(within);
        loop {
            let listed = self.murmesh(["services", "-o", "json"])?;
            let services: Value =
                serde_json::from_str(&listed).context("reading `murmesh services -o json`")?;
            if has_service(&services, node, port) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} does not know TCP port {port} of {node} after {within:?}. It lists: {listed}",
                    self.name()
                );
            }
            // The command line offers no watch.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts `murmesh-probe` here, with an open and silent stdin.
    pub fn probe<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Result<Process> {
        Process::spawn(self.command("murmesh-probe")?.args(arguments).stdin(Stdio::piped()))
    }

    /// The command line of the server here.
    pub fn server_command(&self) -> Result<Command> {
        self.daemon_command("server")
    }

    /// The command line of the agent here.
    pub fn agent_command(&self, token: &str) -> Result<Command> {
        let mut agent = self.daemon_command("agent")?;
        agent.args(["--join", token, "--node", self.name()]);
        agent.arg("--checks-dir").arg(self.checks_directory());
        agent.arg("--bpf-dir").arg(self.bpf_directory()).arg("--cgroup").arg(self.cgroup());
        Ok(agent)
    }

    /// Starts a daemon that outlives this process, writing to a log file, and waits until it serves.
    pub fn detach(&self, command: &mut Command, log_name: &str) -> Result<()> {
        let path = self.log_directory().join(log_name);
        let mut child = self.detach_at_once(command, log_name)?;
        let deadline = deadline(READY_DEADLINE);
        loop {
            let said = fs::read_to_string(&path).unwrap_or_default();
            if said.contains(READY) {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("{log_name} on {}: murmesh ended with {status}. It said:\n{said}", self.name());
            }
            if Instant::now() >= deadline {
                bail!(
                    "{log_name} on {}: murmesh is not ready after {READY_DEADLINE:?}. It said:\n{said}",
                    self.name()
                );
            }
            // A file gives no signal to wait for that a pipe, which would end with us, does.
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same, without waiting.
    pub fn detach_at_once(&self, command: &mut Command, log_name: &str) -> Result<Child> {
        let path = self.log_directory().join(log_name);
        let log = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        command.process_group(0).stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        command.spawn().with_context(|| format!("starting {}", command.get_program().display()))
    }

    pub(crate) fn start(&self, command: &mut Command) -> Result<Process> {
        let process = Process::spawn(command)?;
        process.wait_for_line(READY, READY_DEADLINE).with_context(|| format!("on {}", self.name()))?;
        Ok(process)
    }

    fn daemon_command(&self, name: &str) -> Result<Command> {
        let mut command = self.command("murmesh")?;
        command
            .arg(name)
            .arg("--data-dir")
            .arg(self.data_directory())
            .arg("--run-dir")
            .arg(self.run_directory());
        Ok(command)
    }
}

fn has_service(services: &Value, node: &str, port: u16) -> bool {
    services.as_array().is_some_and(|services| {
        services
            .iter()
            .any(|service| service["host"] == node && service["port"] == port && service["reachable"] == true)
    })
}

/// The `murmesh` that hosts run: `MURMESH_BIN`, or the one built beside this program. Hosts find it in their `PATH`,
/// so it has no other name.
pub fn murmesh_binary() -> Result<PathBuf> {
    if let Some(binary) = env::var_os("MURMESH_BIN").map(PathBuf::from) {
        ensure!(
            binary.ends_with("murmesh"),
            "MURMESH_BIN={}: the file must be called murmesh",
            binary.display()
        );
        return Ok(binary);
    }
    Ok(program_directory()?.join("murmesh"))
}

/// Where cargo puts the programs it builds beside this one.
pub(crate) fn program_directory() -> Result<PathBuf> {
    let program = env::current_exe().context("finding our own program")?;
    let directory = program.parent().context("our own program has no directory")?;
    // Cargo puts programs into target/PROFILE and tests into target/PROFILE/deps.
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_owned())
}
