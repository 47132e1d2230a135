//! Where terraform runs: a host with a directory for its files and a key to log in on the others.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Machine, Process};

use crate::shell::{self, find_program, progress};

/// For one run of terraform over seven hosts, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(300);

/// The directory of a root module that uses ours, and the host to run terraform on.
pub struct Site<'a> {
    workstation: &'a Host,
    directory: PathBuf,
    shared: PathBuf,
    package: PathBuf,
    user: &'static str,
}

impl<'a> Site<'a> {
    /// Writes the root module, for `hosts` by their addresses, and makes the key. Where sudo is installed somebody logs in
    /// who needs it.
    pub fn new(workstation: &'a Host, package: &Path, hosts: &[Host]) -> Result<Self> {
        let directory = workstation.log_directory();
        let shared = directory.join("shared");
        fs::create_dir_all(directory.join(".ssh"))?;
        fs::create_dir_all(&shared)?;
        let user = if find_program("sudo").is_some() { "deployer" } else { "root" };
        progress(&format!("who logs in is {user}"));
        let site = Self { workstation, directory, shared, package: package.to_owned(), user };
        fs::write(site.directory.join("main.tf"), site.module(hosts)?)?;
        let mut keys = site.command("ssh-keygen")?;
        keys.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(site.key());
        Process::spawn(&mut keys)?.succeed(DEADLINE)?;
        fs::copy(site.key().with_extension("pub"), site.shared.join("authorized_keys"))?;
        Ok(site)
    }

    /// Lets terraform log in on `machine`.
    pub fn admit(&self, machine: &Machine) -> Result<()> {
        let script = "user=USER home=$(getent passwd USER | cut -d: -f6)
            install -d -m 700 -o $user $home/.ssh
            install -m 600 -o $user /mnt/authorized_keys $home/.ssh
            systemctl start ssh.service";
        let account = "useradd --create-home --shell /bin/bash --password '*' USER
            (umask 227 && echo 'USER ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/USER)
            systemctl start systemd-user-sessions.service\n";
        let account = if self.user == "root" { "" } else { account };
        let script = (account.to_owned() + script).replace("USER", self.user);
        self.play(machine, &script).context("starting sshd")
    }

    /// Has a machine with nothing but the package join by `line`, as somebody would who may log in on the first server.
    pub fn join_by_hand(&self, machine: &Machine, line: &str) -> Result<()> {
        fs::copy(self.key(), self.shared.join("key"))?;
        fs::copy(&self.package, self.shared.join("murmesh.deb"))?;
        let script = format!(
            "install -m 600 /mnt/key /root/.ssh/id_ed25519
            echo 'StrictHostKeyChecking accept-new' >/root/.ssh/config
            dpkg --install /mnt/murmesh.deb
            {line}
            murmesh status"
        );
        self.play(machine, &script)
    }

    /// Takes away what that has brought.
    pub fn leave(&self, machine: &Machine) -> Result<()> {
        self.play(machine, "murmesh down; dpkg --purge murmesh; rm /root/.ssh/id_ed25519 /root/.ssh/config /root/.ssh/known_hosts")
    }

    /// Where the kernel cannot encrypt a disk, that is said before anything is made.
    pub fn is_refused_a_volume(&self, machine: &Machine) -> Result<()> {
        if fs::read_to_string("/proc/misc")?.contains("device-mapper") {
            return Ok(());
        }
        let script = shell::repository().join("deploy/terraform/scripts/host.sh");
        let script = fs::read_to_string(script)?;
        let mut host = machine.command("sh")?;
        let refused = Process::spawn(host.args(["-euc", &script, "host", "/dev/vdz"]))?.output(DEADLINE)?;
        let why = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && why.contains("no device mapper"), "host.sh said {why}");
        self.play(machine, "! [ -e /etc/murmesh-volume.key ] && ! [ -e /etc/crypttab ]")
    }

    fn play(&self, machine: &Machine, script: &str) -> Result<()> {
        let played = Process::spawn(machine.command("sh")?.args(["-euc", script]))?.succeed(DEADLINE);
        played.with_context(|| format!("on {}", machine.host().name())).map(drop)
    }

    /// Makes the hosts what is described, with this many hosts for services.
    pub fn apply(&self, services: u8) -> Result<()> {
        let count = format!("-var=service_count={services}");
        self.terraform(&["apply", "-auto-approve", &count]).map(drop)
    }

    /// Fails when there is something to change.
    pub fn is_settled(&self, services: u8) -> Result<()> {
        let count = format!("-var=service_count={services}");
        // It ends with 2 when there is.
        let said = self.terraform(&["plan", "-detailed-exitcode", &count])?;
        ensure!(said.contains("No changes"), "{said}");
        Ok(())
    }

    /// Takes everything away.
    pub fn destroy(&self) -> Result<()> {
        self.terraform(&["destroy", "-auto-approve", "-var=service_count=2"]).map(drop)
    }

    /// An output of the module.
    pub fn output(&self, name: &str) -> Result<String> {
        self.terraform(&["output", "-raw", name])
    }

    /// Runs terraform, and returns what it said.
    pub fn terraform(&self, arguments: &[&str]) -> Result<String> {
        let mut terraform = self.command("terraform")?;
        terraform.args(arguments).args(["-no-color"]);
        let output = Process::spawn(&mut terraform)?.output(DEADLINE)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "terraform {}: {said}\n{errors}", arguments.join(" "));
        Ok(said)
    }

    /// What every machine sees as /mnt.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.workstation.command(program)?;
        command.current_dir(&self.directory).env("HOME", &self.directory);
        // It asks nobody, looks for no newer version, and reads no configuration of this machine's user.
        command.env("TF_INPUT", "0").env("CHECKPOINT_DISABLE", "1").env_remove("TF_CLI_CONFIG_FILE");
        Ok(command)
    }

    fn key(&self) -> PathBuf {
        self.directory.join(".ssh/key")
    }

    /// The key of the first server is stated; who the others are is learnt when they are first seen.
    fn module(&self, hosts: &[Host]) -> Result<String> {
        let key =
            fs::read_to_string("/etc/ssh/ssh_host_ecdsa_key.pub").context("openssh-server is installed")?;
        let key: Vec<&str> = key.split_whitespace().take(2).collect();
        let mut text = String::from("variable \"service_count\" {}\n\nmodule \"mesh\" {\n");
        let source = shell::repository().join("deploy/terraform");
        writeln!(text, "  source = {source:?}\n  package = {:?}", self.package)?;
        writeln!(text, "  server_count = 3\n  service_count = var.service_count\n  consumer_count = 1")?;
        for (kind, prefix) in [("server", "murmesh"), ("service", "fcs"), ("consumer", "fcc")] {
            let of_kind = hosts.iter().filter(|host| host.name().starts_with(prefix));
            let addresses: Vec<_> = of_kind.map(|host| host.ipv4().to_string()).collect();
            writeln!(text, "  {kind}_addresses = {addresses:?}")?;
        }
        writeln!(text, "  ssh_user = {:?}\n  ssh_private_key_file = {:?}", self.user, self.key())?;
        writeln!(text, "  ssh_host_keys = {{ murmesh00 = {:?} }}\n}}", key.join(" "))?;
        text.push_str("\noutput \"join_line\" { value = module.mesh.join_line }\n");
        Ok(text)
    }
}
