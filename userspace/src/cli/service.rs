//! `murmesh service`. JSON of `list`: a list of `{name, hosts, port, mode, exceptions, existing, unconfirmed, workload,
//! strangers, balance, check, drained}`, where `mode` is null for the default of the mesh, `unconfirmed` null or
//! `{mode, until}`, `workload` null for whoever listens, and `check` if there is none; `strangers` are
//! `{host, address, workload}`, and `drained` lists hosts.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::going_strict::{GoingStrict, ListedUnconfirmed, way_back};
use super::output::{self, Format};
use super::{ReadOptions, RunDirectory, daemon, members};
use crate::api::v1;
use crate::catalog::{Catalog, Listener};
use crate::cli::status::local_error;
use crate::identity::{NameError, NodeName, ServiceName, WorkloadName};
use crate::local::{SERVER_SOCKET, connect_to_server};
use crate::policy::{Balance, Mode, Network, Probe, Service};

/// The commands on named services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Name a service, or change one. What is not given stays as it is.
    Set(SetArgs),
    /// Keep a mode that was set with --confirm.
    Confirm(ConfirmArgs),
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
    /// Who must be listening to go by the name, such as web.service or user-web; "any" for whoever listens [default of a
    /// new service: the workload that listens now].
    #[arg(long, value_parser = served_by, value_name = "WORKLOAD")]
    workload: Option<ServedBy>,
    /// Which healthy instance a connection gets: pinned (the one that it dials, another only while that is not
    /// healthy), round-robin, or least-connections (of the client's agent).
    #[arg(long, value_name = "HOW")]
    balance: Option<Balance>,
    #[command(flatten)]
    check: CheckArgs,
    #[command(flatten)]
    going_strict: GoingStrict,
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

/// Arguments of `murmesh service confirm`.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The name.
    name: ServiceName,
}

/// `None` for whoever listens.
#[derive(Debug, Clone)]
struct ServedBy(Option<WorkloadName>);

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
    workload: Option<String>,
    strangers: Vec<Stranger>,
    balance: String,
    check: Option<String>,
    drained: Vec<String>,
}

/// A listener on the port of a service that does not go by its name, because it is another workload than the service has.
#[derive(Serialize)]
struct Stranger {
    host: String,
    address: String,
    workload: Option<String>,
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
        existing: arguments.going_strict.existing(),
        confirm_seconds: arguments.going_strict.confirm_seconds(),
        force: arguments.going_strict.force,
        workload: arguments.workload.map(|ServedBy(workload)| text(workload.as_ref())),
        balance: arguments.balance.map(|balance| v1::Balance::from(balance).into()),
        check: arguments.check.wanted(),
    };
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let service = server.set_service(request).await.map_err(local_error)?.into_inner();
        let service = Service::try_from(service)?;
        output::print(&format!("service {service}\n"))?;
        let catalog = members::catalog(&arguments.run_directory, &[SERVER_SOCKET]).await?;
        warnings(&service, &catalog).iter().for_each(|warning| eprintln!("WARNING: {warning}"));
        Ok(ExitCode::SUCCESS)
    })
}

/// What is not as strict as it sounds.
fn warnings(service: &Service, catalog: &Catalog) -> Vec<String> {
    let is_unheld =
        |node: &&NodeName| catalog.unheld_services(node).any(|unheld| unheld.name == service.name);
    let warning = |node| {
        format!(
            "nothing on {node} itself listens on port {}: if it is published from a container there, it is forwarded \
             past the kernel half and reached in clear",
            service.port
        )
    };
    service.hosts.iter().filter(is_unheld).map(warning).collect()
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
    let catalog = members::fetch(&arguments.read)?;
    let services = catalog.policy.services().values();
    match arguments.read.output {
        Format::Json => {
            output::print_json(&services.map(|service| listed(service, &catalog)).collect::<Vec<_>>())?;
        }
        Format::Table => {
            let rows: Vec<_> = services.clone().map(|service| row(service)).collect();
            let header = ["SERVICE", "HOSTS", "PORT", "MODE", "SERVED BY", "EXCEPT", "BALANCE", "CHECK"];
            output::print(&output::table(header, &rows))?;
            let complaints = services.flat_map(|service| complaints(service, &catalog));
            output::print(&complaints.collect::<String>())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn strangers(service: &Service, catalog: &Catalog) -> Vec<Stranger> {
    let hosts = service.hosts.iter().filter_map(|node| catalog.hosts.get(node));
    let listeners =
        hosts.flat_map(|host| host.report.listeners.iter().map(|listener| (&host.node, listener)));
    let on_port = listeners.filter(|(_, listener)| listener.address.port() == service.port);
    let others = on_port.filter(|(_, listener)| !service.is_served_by(listener.workload.as_ref()));
    let stranger = |(node, listener): (&NodeName, &Listener)| Stranger {
        host: node.to_string(),
        address: listener.address.to_string(),
        workload: listener.workload.as_ref().map(ToString::to_string),
    };
    others.map(stranger).collect()
}

fn complaints(service: &Service, catalog: &Catalog) -> Vec<String> {
    let complaint = |Stranger { host, address, workload }| {
        let listens = workload.unwrap_or_else(|| "a workload that its host cannot tell".to_owned());
        format!(
            "{}: {listens} listens on {address} of {host} and does not go by the name: it is not {}; name it with `murmesh service set {} --workload` if it should\n",
            service.name,
            text(service.workload.as_ref()),
            service.name
        )
    };
    strangers(service, catalog).into_iter().map(complaint).collect()
}

/// "any" is no workload.
fn served_by(text: &str) -> Result<ServedBy, NameError> {
    if text == "any" { Ok(ServedBy(None)) } else { Ok(ServedBy(Some(text.parse()?))) }
}

/// "" for none.
fn text(workload: Option<&WorkloadName>) -> String {
    workload.map(ToString::to_string).unwrap_or_default()
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

fn row(service: &Service) -> [String; 8] {
    let joined = |texts: Vec<String>| texts.join(" ");
    [
        service.name.to_string(),
        joined(service.hosts.iter().map(ToString::to_string).collect()),
        service.port.to_string(),
        service.mode.map_or("default".to_owned(), |mode| mode.to_string()) + &way_back(service.unconfirmed),
        service.workload.as_ref().map_or("any".to_owned(), ToString::to_string),
        joined(service.exceptions.iter().map(ToString::to_string).collect()),
        service.balance.to_string(),
        service.check.as_ref().map_or("-".to_owned(), |check| check.probe.to_string()),
    ]
}

fn listed(service: &Service, catalog: &Catalog) -> Listed {
    Listed {
        name: service.name.to_string(),
        hosts: service.hosts.iter().map(ToString::to_string).collect(),
        port: service.port,
        mode: service.mode.map(|mode| mode.to_string()),
        exceptions: service.exceptions.iter().map(ToString::to_string).collect(),
        existing: service.existing.to_string(),
        unconfirmed: service.unconfirmed.map(Into::into),
        workload: service.workload.as_ref().map(ToString::to_string),
        strangers: strangers(service, catalog),
        balance: service.balance.to_string(),
        check: service.check.as_ref().map(|check| check.probe.to_string()),
        drained: service.drained.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::{Host, Listener, Report};

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

    #[test]
    fn a_strict_service_that_nothing_listens_for_on_its_host_is_warned_of() {
        let listener =
            |port| Listener { address: ([0, 0, 0, 0], port).into(), ipv6_only: false, workload: None };
        let report = Report { listeners: vec![listener(80)], ..Report::default() };
        let node: NodeName = "fcs00".parse().unwrap();
        let host = Host { node: node.clone(), report, last_seen: None, connected: true, lost: false };
        let mut catalog = Catalog { hosts: [(node.clone(), host.into())].into(), ..Catalog::default() };
        let service = |port, mode| Service {
            mode: Some(mode),
            ..Service::new("web".parse().unwrap(), [node.clone()], port)
        };
        let mut warned = |service: Service| {
            Arc::make_mut(&mut catalog.policy).put_service(service.clone());
            !warnings(&service, &catalog).is_empty()
        };
        assert!(warned(service(8080, Mode::Strict)));
        assert!(!warned(service(8080, Mode::Permissive)) && !warned(service(80, Mode::Strict)));
    }
}
