//! Who a process of this host is, and who is at an address, as the agent knows it now.

use std::net::SocketAddr;

use tokio::runtime::Handle;
use tonic::Status;

use super::process::ProcessStatus;
use crate::{
    api::v1::{self, whois_request::Subject as Asked},
    catalog::Catalog,
    identity::{NodeName, SpiffeId, Subject, WorkloadName},
    policy::{Destination, DestinationPattern, Party, Rule},
    proxy::Shared,
    workload::Credentials,
};

/// Everybody that the question may mean. `holders` are processes with a socket that has the address asked for: the
/// agent may not look into the processes of others, and whoever asks may. Blocks.
///
/// # Errors
/// There is nobody, or the question is none.
pub fn answer(
    asked: Option<Asked>,
    holders: Vec<u32>,
    shared: &Shared,
    catalog: &Catalog,
) -> Result<Vec<v1::Known>, Status> {
    let known = Knowledge { shared, catalog, node: shared.node.as_ref().clone() };
    match asked {
        Some(Asked::Pid(pid)) => match known.process(pid) {
            Some(process) => Ok(vec![process]),
            None => Err(Status::not_found(format!("there is no process {pid} on this host"))),
        },
        Some(Asked::Address(text)) => {
            let address = text.parse();
            let address = address.map_err(|_| Status::invalid_argument(format!("{text:?} is no IP:PORT")))?;
            known.address(address, holders)
        }
        None => Err(Status::invalid_argument("neither a process nor an address is asked for")),
    }
}

/// Whom the process `pid` of this host is known as; `None` for one outside of the cgroup that the hooks are attached to,
/// or one that is gone. Blocks.
pub fn identity_of(pid: u32, shared: &Shared, catalog: &Catalog) -> Option<SpiffeId> {
    let known = Knowledge { shared, catalog, node: shared.node.as_ref().clone() };
    let workload = known.workload(&ProcessStatus::of(pid)?)?;
    let trust_domain = shared.identities.host().id.trust_domain.clone();
    Some(SpiffeId { trust_domain, subject: Subject::Workload(known.node, workload) })
}

struct Knowledge<'a> {
    shared: &'a Shared,
    catalog: &'a Catalog,
    node: NodeName,
}

impl Knowledge<'_> {
    fn process(&self, pid: u32) -> Option<v1::Known> {
        let process = ProcessStatus::of(pid)?;
        let workload = self.workload(&process);
        let party = self.party(workload.clone());
        let identity = workload.map(|workload| self.id(Subject::Workload(self.node.clone(), workload)));
        let rules = self.catalog.policy.rules_in_order();
        Some(v1::Known {
            identity: identity.unwrap_or_default(),
            process: Some(v1::Process { pid, uid: process.uid, name: process.name }),
            cgroup: process.cgroup.display().to_string(),
            rules: rules.into_iter().filter(|rule| rule.source.covers(&party)).map(v1::Rule::from).collect(),
            ..v1::Known::default()
        })
    }

    /// `None` for one outside of the cgroup that the hooks are attached to.
    fn workload(&self, process: &ProcessStatus) -> Option<WorkloadName> {
        let finder = self.shared.workloads.get()?;
        let ProcessStatus { pid, uid, gid, cgroup_id: cgroup, .. } = *process;
        let credentials = Credentials { cgroup, uid, gid: Some(gid) };
        finder.by_program(pid).or_else(|| Handle::current().block_on(finder.find(credentials)))
    }

    /// By the names of the services that it listens for, too.
    fn party(&self, workload: Option<WorkloadName>) -> Party {
        let services = self.shared.services.load();
        let own = services.listeners.iter().filter(|listener| listener.workload == workload);
        let ports = own.filter(|_| workload.is_some()).map(|listener| listener.address.port());
        self.catalog.policy.source(&self.node, workload.clone(), ports)
    }

    fn address(&self, address: SocketAddr, holders: Vec<u32>) -> Result<Vec<v1::Known>, Status> {
        let owner = self.owner(address);
        let service = owner.as_ref().and_then(|node| self.service(node, address));
        let is_here = address.ip().is_loopback() || owner.as_ref() == Some(&self.node);
        let pids = if is_here { holders } else { Vec::new() };
        let processes = pids.into_iter().filter_map(|pid| self.process(pid));
        let known: Vec<_> = service.into_iter().chain(processes).collect();
        match owner {
            _ if !known.is_empty() => Ok(known),
            Some(node) if !is_here => Err(Status::not_found(format!(
                "{address} is an address of {node}, where nothing listens on that port; ask there"
            ))),
            _ if is_here => Err(Status::not_found(format!("nothing on this host has the address {address}"))),
            _ => Err(Status::not_found(format!("no host of the mesh has the address {}", address.ip()))),
        }
    }

    fn owner(&self, address: SocketAddr) -> Option<NodeName> {
        if self.shared.services.load().addresses.contains(&address.ip()) {
            return Some(self.node.clone());
        }
        let mut hosts = self.catalog.hosts.values();
        hosts.find(|host| host.report.addresses.contains(&address.ip())).map(|host| host.node.clone())
    }

    fn service(&self, node: &NodeName, address: SocketAddr) -> Option<v1::Known> {
        let (policy, port) = (&self.catalog.policy, address.port());
        let services = self.shared.services.load();
        let listener = match self.catalog.hosts.get(node) {
            _ if *node == self.node => services.listener(address),
            host => host?.report.listener(address),
        };
        let destination = policy.destination(node, listener?.workload.clone(), port);
        let Destination::Mesh { party, .. } = &destination else { return None };
        let speaks = |rule: &&Rule| match &rule.destination {
            DestinationPattern::Mesh { identity, port: of } => {
                identity.covers(party) && of.is_none_or(|of| of == port)
            }
            DestinationPattern::Outside(_) => false,
        };
        Some(v1::Known {
            identity: self.id(party.subject()),
            destination: format!("{node}:{port}"),
            service: party.services.first().map(ToString::to_string).unwrap_or_default(),
            mode: v1::Mode::from(policy.mode_at(node, port)).into(),
            rules: policy.rules_in_order().into_iter().filter(speaks).map(v1::Rule::from).collect(),
            ..v1::Known::default()
        })
    }

    fn id(&self, subject: Subject) -> String {
        let trust_domain = self.shared.identities.host().id.trust_domain.clone();
        SpiffeId { trust_domain, subject }.to_string()
    }
}
