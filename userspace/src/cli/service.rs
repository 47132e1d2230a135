//! `murmesh service`. JSON of `list`: a list of `{name, hosts, port, mode, exceptions, balance, check, drained}`,
//! where `mode` is null for the default of the mesh, `check` null if there is none, and `drained` lists hosts.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Format};
use super::{ReadOptions, RunDirectory, daemon, members};
use crate::api::v1;
use crate::cli::status::local_error;
use crate::identity::{NodeName, ServiceName};
use crate::local::connect_to_server;
use crate::policy::{Balance, Mode, Network, Probe, Service};

/// The commands on named services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Name a service, or change one. What is not given stays as it is.
    Set(SetArgs),
    /// Take a service's name away. What listens goes on as an unnamed service.
    Remove(RemoveArgs),
    /// Stop new connections to the instance on a host; those that are open go on until they end.
    Drain(DrainArgs),
    /// Let connections go to the instance on a host again.
    Undrain(DrainArgs),
    /// List the named services.
    List(ListArgs),
}

/// Arguments of `murmesh service set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The name.
    name: ServiceName,
    /// Hosts that may serve it, instead of those before; separated by commas, or given several times.
    #[arg(long = "host", value_delimiter = ',', value_name = "NODE")]
    hosts: Vec<NodeName>,
    /// Its port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// What happens to connections from outside the mesh: observe, permissive, strict, or default.
    #[arg(long, value_parser = mode, value_name = "MODE")]
    mode: Option<v1::Mode>,
    /// Networks that are let in from outside the mesh, in clear, instead of those before; "none" for no network.
    #[arg(long = "except", value_delimiter = ',', value_name = "NETWORK")]
    exceptions: Vec<String>,
    /// Which healthy instance a connection gets: pinned (the one that it dials, another only while that is not
    /// healthy), round-robin, or least-connections (of the client's agent).
    #[arg(long, value_name = "HOW")]
    balance: Option<Balance>,
    #[command(flatten)]
    check: CheckArgs,
}

/// How hosts find out whether the service is well.
#[derive(Debug, Args)]
struct CheckArgs {
    /// tcp, http:/PATH (a status of 200 to 399 is well), command:NAME (a program in the directory of checks of each
    /// host, which exits with 0), or none: then it is enough that somebody listens.
    #[arg(long = "check", value_parser = probe, value_name = "CHECK")]
    probe: Option<String>,
    /// From one check to the next [default of a new one: 5s].
    #[arg(long = "check-interval", value_parser = humantime::parse_duration, value_name = "DURATION")]
    interval: Option<Duration>,
    /// After which a check has failed [default of a new one: 2s].
    #[arg(long = "check-timeout", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Checks that fail in a row until the instance gets no new connections [default of a new one: 2].
    #[arg(long = "check-failures", value_name = "NUMBER")]
    failures: Option<u32>,
    /// Checks that succeed in a row until it gets them again [default of a new one: 2].
    #[arg(long = "check-successes", value_name = "NUMBER")]
    successes: Option<u32>,
}

impl CheckArgs {
    /// `None` if nothing is given, which leaves it as it is.
    fn wanted(self) -> Option<v1::Check> {
        let milliseconds = |duration: Option<Duration>| {
            duration.map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
        };
        let check = v1::Check {
            probe: self.probe.unwrap_or_default(),
            interval_ms: milliseconds(self.interval),
            timeout_ms: milliseconds(self.timeout),
            failures: self.failures.unwrap_or_default(),
            successes: self.successes.unwrap_or_default(),
        };
        (check != v1::Check::default()).then_some(check)
    }
}

/// Arguments of `murmesh service drain` and `undrain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The name of the service.
    name: ServiceName,
    /// The host of the instance.
    host: NodeName,
}

/// Arguments of `murmesh service remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The name.
    name: ServiceName,
}

/// Arguments of `murmesh service list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    hosts: Vec<String>,
    port: u16,
    mode: Option<String>,
    exceptions: Vec<String>,
    balance: String,
    check: Option<String>,
    drained: Vec<String>,
}

/// Runs one of the commands.
///
/// # Errors
/// When no daemon answers or it refuses.
pub fn run(command: ServiceCommand) -> anyhow::Result<ExitCode> {
    match command {
        ServiceCommand::Set(arguments) => set(arguments),
        ServiceCommand::Remove(arguments) => remove(&arguments),
        ServiceCommand::Drain(arguments) => drain(&arguments, true),
        ServiceCommand::Undrain(arguments) => drain(&arguments, false),
        ServiceCommand::List(arguments) => list(&arguments),
    }
}

fn set(arguments: SetArgs) -> anyhow::Result<ExitCode> {
    let request = v1::SetServiceRequest {
        name: arguments.name.to_string(),
        hosts: arguments.hosts.iter().map(ToString::to_string).collect(),
        port: arguments.port.map(u32::from),
        mode: arguments.mode.map(i32::from),
        exceptions: exceptions(arguments.exceptions)?,
        balance: arguments.balance.map(|balance| v1::Balance::from(balance).into()),
        check: arguments.check.wanted(),
    };
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let service = server.set_service(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("service {}\n", Service::try_from(service)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn remove(arguments: &RemoveArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::RemoveServiceRequest { name: arguments.name.to_string() };
        let service = server.remove_service(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("removed service {}\n", Service::try_from(service)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn drain(arguments: &DrainArgs, drained: bool) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let (name, node) = (arguments.name.to_string(), arguments.host.to_string());
        let request = v1::DrainServiceRequest { name, node, drained };
        let service = server.drain_service(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("service {}\n", Service::try_from(service)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn list(arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let policy = members::fetch(&arguments.read)?.policy;
    let services = policy.services().values();
    match arguments.read.output {
        Format::Json => {
            output::print_json(&services.map(|service| Listed::from(service.as_ref())).collect::<Vec<_>>())?;
        }
        Format::Table => {
            let rows: Vec<_> = services.map(|service| row(service)).collect();
            output::print(&output::table(
                ["SERVICE", "HOSTS", "PORT", "MODE", "EXCEPT", "BALANCE", "CHECK"],
                &rows,
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// "default" is no mode of its own.
fn mode(text: &str) -> Result<v1::Mode, String> {
    match text {
        "default" => Ok(v1::Mode::Unspecified),
        text => text.parse::<Mode>().map(v1::Mode::from).map_err(|error| format!("{error}, or default")),
    }
}

/// "none" is no check any more.
fn probe(text: &str) -> Result<String, String> {
    match text {
        "none" => Ok(text.to_owned()),
        text => text.parse().map(|probe: Probe| probe.to_string()).map_err(|error| error.to_string()),
    }
}

/// `None` leaves them as they are.
fn exceptions(texts: Vec<String>) -> anyhow::Result<Option<v1::Exceptions>> {
    match texts.as_slice() {
        [] => Ok(None),
        [none] if none == "none" => Ok(Some(v1::Exceptions::default())),
        _ => {
            let networks = texts.iter().map(|text| text.parse::<Network>());
            let networks = networks.map(|network| network.map(|network| network.to_string()));
            Ok(Some(v1::Exceptions { networks: networks.collect::<Result<_, _>>()? }))
        }
    }
}

fn row(service: &Service) -> [String; 7] {
    let joined = |texts: Vec<String>| texts.join(" ");
    [
        service.name.to_string(),
        joined(service.hosts.iter().map(ToString::to_string).collect()),
        service.port.to_string(),
        service.mode.map_or("default".to_owned(), |mode| mode.to_string()),
        joined(service.exceptions.iter().map(ToString::to_string).collect()),
        service.balance.to_string(),
        service.check.as_ref().map_or("-".to_owned(), |check| check.probe.to_string()),
    ]
}

impl From<&Service> for Listed {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            hosts: service.hosts.iter().map(ToString::to_string).collect(),
            port: service.port,
            mode: service.mode.map(|mode| mode.to_string()),
            exceptions: service.exceptions.iter().map(ToString::to_string).collect(),
            balance: service.balance.to_string(),
            check: service.check.as_ref().map(|check| check.probe.to_string()),
            drained: service.drained.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_kept_replaced_or_cleared() {
        let given = |texts: &[&str]| exceptions(texts.iter().map(ToString::to_string).collect());
        assert_eq!(given(&[]).unwrap(), None);
        assert_eq!(given(&["none"]).unwrap(), Some(v1::Exceptions::default()));
        assert_eq!(
            given(&["192.0.2.1", "10.0.0.0/8"]).unwrap().unwrap().networks,
            ["192.0.2.1/32", "10.0.0.0/8"]
        );
        assert!(given(&["none", "10.0.0.0/8"]).is_err());
    }
}
