//! The command line: one module per command, each with its arguments and a `run`.

pub mod agent;
pub mod bench;
pub mod bugreport;
pub mod ca;
pub mod check;
pub(crate) mod config;
pub mod daemon;
pub mod daemons;
pub mod down;
mod encryption;
mod going_strict;
pub mod host;
pub mod init;
mod markdown;
pub mod members;
pub mod observe;
pub mod output;
mod overview;
pub mod package_files;
pub mod ping;
pub mod policy;
pub mod rule;
pub mod server;
pub mod service;
pub mod services;
pub mod sidecar;
pub mod status;
pub mod token;
pub mod top;
pub mod ui;
pub mod uninstall;
pub mod up;
pub mod whois;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use config::with_config_file;

/// Encrypts the TCP connections between Linux hosts without changing any program.
///
/// One host begins, and prints the line to run on another, which then joins:
///
///   murmesh init
///   murmesh up --join TOKEN
#[derive(Debug, Parser)]
#[command(name = "murmesh", version, verbatim_doc_comment, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Begin a mesh: make this host its first server and a member, and print the line by which another host joins.
    Init(init::InitArgs),
    /// Join a mesh if need be, and protect this host, also after its next boot where systemd runs.
    Up(up::UpArgs),
    /// Stop the agent of this host, which lets connections end first, and keep it stopped.
    Down(down::DownArgs),
    /// Run the server of a mesh: certificates, catalog, join tokens.
    Server(Box<server::ServerArgs>),
    /// Run the agent of this host: intercept connections and carry them encrypted.
    Agent(agent::AgentArgs),
    /// Run the same tunnel without eBPF: programs dial 127.0.0.1 by hand.
    Sidecar(sidecar::SidecarArgs),
    /// Make tokens by which hosts join (on the server's host).
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Tell how the daemon on this host is doing; exit 1 if anything is wrong.
    Status(status::StatusArgs),
    /// List the hosts and the servers of the mesh.
    Members(members::MembersArgs),
    /// List every listener of every host and every instance of a named service, with its state and why.
    Services(services::ServicesArgs),
    /// Let a source connect to a destination (on the server's host).
    Allow(rule::RuleArgs),
    /// Forbid a source to connect to a destination (on the server's host).
    Deny(rule::RuleArgs),
    /// List, delete and try out rules, and set what holds where there is none.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Name services and set their mode (on the server's host).
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Show and replace the root of the mesh's certificates (on the server's host).
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Drain hosts for a while, or take them out of the mesh (on the server's host).
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Show what became of this host's connections: refused, in clear, failed; with -f also those that go well.
    Observe(observe::ObserveArgs),
    /// Show who connects to whom, from this host and to it, as it changes.
    Top(top::TopArgs),
    /// Tell what becomes of a connection from this host: which way it takes, who is at its ends, and how long that takes.
    Ping(ping::PingArgs),
    /// Tell who a process of this host is, or who is at an address, and which rules speak of it.
    Whois(whois::WhoisArgs),
    /// Find out whether this host can run an agent, and whether a running one works.
    Check(check::CheckArgs),
    /// Gather what somebody needs to know who is to help into an archive, without keys and tokens.
    Bugreport(bugreport::BugreportArgs),
    /// Print a link to the page that shows the mesh in a browser (on the server's host).
    Ui(ui::UiArgs),
    /// Measure what connections cost: plain TCP, the mesh, and other ways, side by side.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Remove everything of Murmesh from this host: hooks, maps, keys, certificates, units.
    Uninstall(uninstall::UninstallArgs),
    /// Run a daemon, and run it again when it fails.
    #[command(hide = true)]
    Supervise(daemons::supervisor::SuperviseArgs),
    /// Write what a package holds beside the program: manual pages, completions, the default configuration.
    #[command(hide = true)]
    PackageFiles(package_files::PackageFilesArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Where the command line finds its daemon.
#[derive(Debug, Clone, Args)]
pub struct RunDirectory {
    /// Directory of the daemon's Unix socket.
    #[arg(long, env = "MURMESH_RUN_DIR", default_value = "/run/murmesh", value_name = "DIR")]
    pub run_dir: PathBuf,
}

/// Options of every command that only reads.
#[derive(Debug, Clone, Args)]
pub struct ReadOptions {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: output::Format,
}

/// Parses the command line, with the values of `--config` where a flag was not given.
/// Usage errors and `--help` end the process, with status 2 and 0.
///
/// # Errors
/// When the configuration file is unreadable or has an unknown key.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Cli> {
    Ok(Cli::parse_from(with_config_file(arguments.into_iter().collect())?))
}
