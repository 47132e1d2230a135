//! `murmesh service`. JSON of `list`: a list of `{name, hosts, port, mode, exceptions, existing, unconfirmed}`, where
//! `mode` is null for the default of the mesh, and `unconfirmed` null or `{mode, until}`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::going_strict::{GoingStrict, ListedUnconfirmed, way_back};
use super::output::{self, Format};
use super::{ReadOptions, RunDirectory, daemon, members};
use crate::api::v1;
use crate::cli::status::local_error;
use crate::identity::{NodeName, ServiceName};
use crate::local::connect_to_server;
use crate::policy::{Mode, Network, Service};

/// The commands on named services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Name a service, or change one. What is not given stays as it is.
    Set(SetArgs),
    /// Keep a mode that was set with --confirm.
    Confirm(ConfirmArgs),
    /// Take a service's name away. What listens goes on as an unnamed service.
    Remove(RemoveArgs),
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
    #[command(flatten)]
    going_strict: GoingStrict,
}

/// Arguments of `murmesh service confirm`.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The name.
    name: ServiceName,
}

/// Arguments of `murmesh service remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The name.
    name: ServiceName,
    /// Also when what listens becomes strict by default, and refuses clients that were let in, in clear, before.
    #[arg(long)]
    force: bool,
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
    existing: String,
    unconfirmed: Option<ListedUnconfirmed>,
}

/// Runs one of the commands.
///
/// # Errors
/// When no daemon answers or it refuses.
pub fn run(command: ServiceCommand) -> anyhow::Result<ExitCode> {
    match command {
        ServiceCommand::Set(arguments) => set(arguments),
        ServiceCommand::Confirm(arguments) => confirm(&arguments),
        ServiceCommand::Remove(arguments) => remove(&arguments),
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
        existing: arguments.going_strict.existing(),
        confirm_seconds: arguments.going_strict.confirm_seconds(),
        force: arguments.going_strict.force,
    };
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let service = server.set_service(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("service {}\n", Service::try_from(service)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn confirm(arguments: &ConfirmArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::ConfirmServiceRequest { name: arguments.name.to_string() };
        let service = server.confirm_service(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("service {}\n", Service::try_from(service)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn remove(arguments: &RemoveArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::RemoveServiceRequest { name: arguments.name.to_string(), force: arguments.force };
        let service = server.remove_service(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("removed service {}\n", Service::try_from(service)?))?;
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
            output::print(&output::table(["SERVICE", "HOSTS", "PORT", "MODE", "EXCEPT"], &rows))?;
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

fn row(service: &Service) -> [String; 5] {
    let joined = |texts: Vec<String>| texts.join(" ");
    [
        service.name.to_string(),
        joined(service.hosts.iter().map(ToString::to_string).collect()),
        service.port.to_string(),
        service.mode.map_or("default".to_owned(), |mode| mode.to_string()) + &way_back(service.unconfirmed),
        joined(service.exceptions.iter().map(ToString::to_string).collect()),
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
            existing: service.existing.to_string(),
            unconfirmed: service.unconfirmed.map(Into::into),
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
