//! `cargo xtask lab`: hosts on this machine, to try things in.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Stdio, exit};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use murmesh_lab::{Host, Lab, Topology, existing_labs, on_interrupt, remove, share_seal_key};

use crate::shell::progress;
use crate::{build, setup};

/// What to do with the lab.
#[derive(Subcommand)]
pub enum Command {
    /// Makes the hosts, starts the server and joins the agents.
    Up(Up),
    /// Runs a command in a host, as root, with stdin, output, signals and exit code passed through.
    Exec(Exec),
    /// Lists the hosts and what runs in them.
    Status(Name),
    /// Ends everything that runs in the hosts, and removes them.
    Down(Name),
}

/// Which lab.
#[derive(Args)]
pub struct Name {
    /// The lab's name. Several labs can be up at once.
    #[arg(long, default_value = "lab")]
    name: String,
}

/// Options of `lab up`.
#[derive(Args)]
pub struct Up {
    /// Hosts for services: fcs00, fcs01, …
    #[arg(long, default_value_t = 1)]
    services: u8,
    /// Hosts for clients: fcc00, fcc01, …
    #[arg(long, default_value_t = 1)]
    clients: u8,
    /// Hosts for servers: murmesh00, murmesh01, murmesh02. Three have a member of an etcd cluster each.
    #[arg(long, default_value = "1", value_parser = ["1", "3"])]
    servers: String,
    /// Hosts only: start no server and no agent.
    #[arg(long)]
    bare: bool,
    #[command(flatten)]
    name: Name,
}

/// Options of `lab exec`.
#[derive(Args)]
pub struct Exec {
    #[command(flatten)]
    name: Name,
    /// The host, as `lab status` lists it.
    host: String,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs `cargo xtask lab …`.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(options) => up(&options),
        Command::Exec(options) => exec(&options),
        Command::Status(Name { name }) => status(&name),
        Command::Down(Name { name }) => down(&name),
    }
}

fn up(options: &Up) -> Result<()> {
    let servers = if options.servers == "3" { 3 } else { 1 };
    build::run()?;
    setup::for_running()?;

    let name = options.name.name.clone();
    if existing_labs()?.contains(&name) {
        bail!(
            "the lab {name:?} is up already. Look at it: cargo xtask lab status; remove it: cargo xtask lab down"
        );
    }
    let interrupted = name.clone();
    on_interrupt(move || {
        let _ = remove(&interrupted);
    })?;
    progress(&format!("making the hosts of the lab {name:?}"));
    let topology = Topology { servers, services: options.services, clients: options.clients };
    let lab = Lab::persistent(&name, topology)?;
    if !options.bare
        && let Err(error) = start(&lab)
    {
        remove(&name)?;
        return Err(error);
    }
    status(&name)?;
    progress("run something there: cargo xtask lab exec HOST -- COMMAND");
    Ok(())
}

fn start(lab: &Lab) -> Result<()> {
    let (servers, others): (Vec<&Host>, Vec<&Host>) =
        lab.hosts().iter().partition(|host| host.name().starts_with("murmesh"));
    if let [server] = servers[..] {
        progress("starting the server on murmesh00");
        server.detach(&mut server.server_command()?, "server.log")?;
    } else {
        start_servers(&servers)?;
    }
    let server = lab.host("murmesh00")?;
    for host in others {
        progress(&format!("joining {}", host.name()));
        host.detach(&mut host.agent_command(&server.create_token()?)?, "agent.log")?;
    }
    Ok(())
}

/// Each with a member of etcd beside it, and all with the same key for secrets.
fn start_servers(servers: &[&Host]) -> Result<()> {
    share_seal_key(servers)?;
    for host in servers {
        progress(&format!("starting etcd on {}", host.name()));
        host.detach_at_once(&mut host.etcd_command(servers)?, "etcd.log")?;
    }
    for host in servers {
        progress(&format!("starting the server on {}", host.name()));
        host.detach(&mut host.cluster_server_command(servers)?, "server.log")?;
    }
    Ok(())
}

fn exec(options: &Exec) -> Result<()> {
    let lab = Lab::open(&options.name.name)?;
    let (program, arguments) = options.command.split_first().context("there is no command after --")?;
    let mut command = lab.host(&options.host)?.command(program)?;
    command.args(arguments).stdin(Stdio::inherit());
    // We become the command, so that everything passes through by itself.
    let error = command.exec();
    eprintln!("error: {} cannot be run on {}: {error}", program.display(), options.host);
    // As shells do: 127 when it isn't there, 126 when it can't be run.
    exit(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
}

fn status(name: &str) -> Result<()> {
    let lab = Lab::open(name)?;
    println!("{:<12} {:<14} {:<12} RUNNING", "HOST", "IPV4", "IPV6");
    for host in lab.hosts() {
        let [ipv4, ipv6] = host.addresses().map(|address| address.to_string());
        println!("{:<12} {ipv4:<14} {ipv6:<12} {}", host.name(), running(host)?);
    }
    for host in lab.hosts() {
        for log in fs::read_dir(host.log_directory())?.flatten() {
            println!("{} writes to {}", host.name(), log.path().display());
        }
    }
    Ok(())
}

/// Names and ids of the processes in a host.
fn running(host: &Host) -> Result<String> {
    let path = host.cgroup().join("cgroup.procs");
    let processes = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let named = processes.lines().map(|process| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        format!("{}({process})", name.trim())
    });
    Ok(named.collect::<Vec<_>>().join(" "))
}

fn down(name: &str) -> Result<()> {
    let existed = existing_labs()?.iter().any(|lab| lab == name);
    remove(name)?;
    progress(&if existed {
        format!("the lab {name:?} is gone")
    } else {
        format!("there was no lab {name:?}")
    });
    Ok(())
}
