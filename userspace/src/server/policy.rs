//! Changes of the policy, as an administrator asks for them.
//!
//! Every change is made against all that came before it: it waits until this server's view has the last change, and
//! is only committed if nobody made another one meanwhile. So what is checked here holds, however many servers there are.

use std::sync::Arc;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::feed::Feed;
use super::records::{CHANGES, DEFAULTS, DRAINED, RULES, SERVICES, put, read};
use super::registry::RegistryError;
use super::view::View;
use crate::api::v1;
use crate::identity::{NameError, NodeName, ServiceName, TrustDomain};
use crate::policy::{
    Component, Defaults, DestinationPattern, IdentityPattern, InvalidMessage, PatternError, Rule, RuleId,
    Service,
};
use crate::store::{Change, Condition, Outcome, Store, StoreError, Transaction};

/// Rules that a mesh may have unless the server is told otherwise.
pub const DEFAULT_MAX_RULES: usize = 10_000;

const MAX_SERVICES: usize = 4096;
const MAX_SERVICE_HOSTS: usize = 1024;
const MAX_EXCEPTIONS: usize = 64;
/// In place of a probe: no check any more.
const NO_CHECK: &str = "none";

/// Why a change of the policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyChangeError {
    /// A pattern is not one.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A name is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Another part of the request is not understood.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    /// More of something than is allowed.
    #[error("a mesh has at most {limit} {what} here; {advice}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// What to do.
        advice: &'static str,
    },
    /// No such rule.
    #[error("there is no rule {0}; `murmesh policy list` shows those that there are")]
    UnknownRule(u32),
    /// No such service.
    #[error("no service is called {0}; `murmesh service list` shows those that are")]
    UnknownService(ServiceName),
    /// No such host.
    #[error("no host is called {0}; it must have joined before it can serve under a name")]
    UnknownHost(NodeName),
    /// Not enough for a new service.
    #[error("service {0} is new: say where it is, with --host and --port")]
    Incomplete(ServiceName),
    /// The host is none of the service's.
    #[error("{node} is no host of service {name}; `murmesh service list` shows those that are")]
    NotItsHost {
        /// The service.
        name: ServiceName,
        /// The host.
        node: NodeName,
    },
    /// Times and numbers of a check that there is not.
    #[error("service {0} has no check yet: say which, with --check")]
    NoCheck(ServiceName),
    /// A port of a host has a name already.
    #[error(
        "port {port} of {node} is service {other} already; `murmesh service remove {other}` takes the name away"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// The host.
        node: NodeName,
        /// The service that has it.
        other: ServiceName,
    },
    /// Rules would lose their meaning.
    #[error("rules name service {name}: {rules:?}; delete them first with `murmesh policy delete`")]
    InUse {
        /// The service.
        name: ServiceName,
        /// The rules.
        rules: Vec<u32>,
    },
    /// All numbers of rules are used up.
    #[error("all numbers of rules are used up")]
    NoNumber,
    /// The view does not follow the store.
    #[error("this server is behind its database; try again, and see its log if that does not help")]
    Behind,
    /// The database fails.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for PolicyChangeError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

#[derive(Default, Serialize, Deserialize)]
struct StoredChanges {
    last_rule: u32,
}

/// Makes changes of the policy in a store.
pub struct PolicyRecords {
    pub store: Arc<dyn Store>,
    pub feed: Arc<Feed>,
    pub trust_domain: TrustDomain,
    pub max_rules: usize,
}

impl PolicyRecords {
    /// Adds a rule. One that says the same is answered instead, if there is one.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn add_rule(&self, request: &v1::AddRuleRequest) -> Result<Rule, PolicyChangeError> {
        self.change(|view, stored| {
            let names = view.names(&self.trust_domain);
            let message = v1::Rule {
                id: stored.last_rule.checked_add(1).ok_or(PolicyChangeError::NoNumber)?,
                action: request.action,
                source: IdentityPattern::parse_source(&request.source, &names)?.to_string(),
                destination: DestinationPattern::parse(&request.destination, &names)?.to_string(),
                dry_run: request.dry_run,
            };
            let rule = Rule::try_from(message.clone())?;
            if let Some(known) = view.policy.rules().values().find(|known| says_the_same(known, &rule)) {
                return Ok((vec![], Rule::clone(known)));
            }
            let advice = "delete some, or start the server with a higher --max-rules";
            at_most("rules", view.policy.rules().len() + 1, self.max_rules, advice)?;
            stored.last_rule = message.id;
            Ok((vec![Change::Put(format!("{RULES}{}", rule.id), message.encode_to_vec())], rule))
        })
        .await
    }

    /// Deletes a rule, and answers what it was.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn delete_rule(&self, number: u32) -> Result<Rule, PolicyChangeError> {
        self.change(|view, _| {
            let rule = RuleId::new(number).and_then(|id| view.policy.rules().get(&id));
            let rule = rule.ok_or(PolicyChangeError::UnknownRule(number))?;
            Ok((vec![Change::Delete(format!("{RULES}{number}"))], Rule::clone(rule)))
        })
        .await
    }

    /// Changes what holds where no rule speaks.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn set_defaults(
        &self,
        request: &v1::SetDefaultsRequest,
    ) -> Result<Defaults, PolicyChangeError> {
        self.change(|view, _| {
            let now = v1::Defaults::from(view.policy.defaults);
            let wanted = v1::Defaults {
                mesh: request.mesh.unwrap_or(now.mesh),
                egress: request.egress.unwrap_or(now.egress),
                mode: request.mode.unwrap_or(now.mode),
            };
            let defaults = Defaults::try_from(wanted)?;
            let change = Change::Put(DEFAULTS.to_owned(), v1::Defaults::from(defaults).encode_to_vec());
            Ok((if defaults == view.policy.defaults { vec![] } else { vec![change] }, defaults))
        })
        .await
    }

    /// Names a service, or changes one.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn set_service(&self, request: &v1::SetServiceRequest) -> Result<Service, PolicyChangeError> {
        self.change(|view, _| {
            let service = wanted_service(request, view)?;
            if view.policy.services().get(&service.name).is_some_and(|known| **known == service) {
                return Ok((vec![], service));
            }
            check_service(&service, view)?;
            let key = format!("{SERVICES}{}", service.name);
            Ok((vec![Change::Put(key, v1::Service::from(&service).encode_to_vec())], service))
        })
        .await
    }

    /// Takes a service's name away, and answers what it was.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn remove_service(&self, name: &str) -> Result<Service, PolicyChangeError> {
        let name: ServiceName = name.parse()?;
        self.change(|view, _| {
            let service = view.policy.services().get(&name);
            let service = service.ok_or_else(|| PolicyChangeError::UnknownService(name.clone()))?;
            let naming = view.policy.rules().values().filter(|rule| speaks_of(rule, &name));
            let rules: Vec<_> = naming.map(|rule| rule.id.number()).collect();
            if !rules.is_empty() {
                return Err(PolicyChangeError::InUse { name: name.clone(), rules });
            }
            Ok((vec![Change::Delete(format!("{SERVICES}{name}"))], Service::clone(service)))
        })
        .await
    }

    /// Stops new connections to a service's instance, or lets them go there again.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn drain_service(
        &self,
        request: &v1::DrainServiceRequest,
    ) -> Result<Service, PolicyChangeError> {
        let (name, node): (ServiceName, NodeName) = (request.name.parse()?, request.node.parse()?);
        self.change(|view, _| {
            let known = view.policy.services().get(&name);
            let mut service = Service::clone(known.ok_or(PolicyChangeError::UnknownService(name.clone()))?);
            if !service.hosts.contains(&node) {
                return Err(PolicyChangeError::NotItsHost { name: name.clone(), node: node.clone() });
            }
            if request.drained {
                service.drained.insert(node.clone())
            } else {
                service.drained.remove(&node)
            };
            if known.is_some_and(|known| **known == service) {
                return Ok((vec![], service));
            }
            let key = format!("{SERVICES}{name}");
            Ok((vec![Change::Put(key, v1::Service::from(&service).encode_to_vec())], service))
        })
        .await
    }

    /// Stops new connections to all that a host serves, or lets them go there again. Answers which hosts are drained.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn drain_host(&self, request: &v1::DrainHostRequest) -> Result<v1::Drained, PolicyChangeError> {
        let node: NodeName = request.node.parse()?;
        self.change(|view, _| {
            let mut drained = view.policy.drained.as_ref().clone();
            if request.drained && !view.hosts.contains_key(node.as_str()) {
                return Err(PolicyChangeError::UnknownHost(node.clone()));
            }
            let changed = if request.drained { drained.insert(node.clone()) } else { drained.remove(&node) };
            let answer = v1::Drained { hosts: drained.iter().map(ToString::to_string).collect() };
            let change = changed.then(|| Change::Put(DRAINED.to_owned(), answer.encode_to_vec()));
            Ok((change.into_iter().collect(), answer))
        })
        .await
    }

    /// Makes the changes that `decide` wants, and returns its answer when all watchers have been told.
    async fn change<T>(
        &self,
        decide: impl Fn(&View, &mut StoredChanges) -> Result<(Vec<Change>, T), PolicyChangeError>,
    ) -> Result<T, PolicyChangeError> {
        loop {
            let (condition, revision, mut stored) = match read(&*self.store, CHANGES).await? {
                Some((entry, stored)) => {
                    (Condition::Unchanged(entry.key, entry.revision), entry.revision, stored)
                }
                None => (Condition::Absent(CHANGES.to_owned()), 0, StoredChanges::default()),
            };
            self.told(revision).await?;
            let (mut changes, answer) = self.feed.read(|view| decide(view, &mut stored))?;
            if changes.is_empty() {
                return Ok(answer);
            }
            changes.push(put(CHANGES, &stored)?);
            let transaction = Transaction { conditions: vec![condition], changes };
            if let Outcome::Applied(revision) = self.store.commit(transaction).await? {
                self.told(revision).await?;
                return Ok(answer);
            }
        }
    }

    async fn told(&self, revision: u64) -> Result<(), PolicyChangeError> {
        if self.feed.reached(revision).await { Ok(()) } else { Err(PolicyChangeError::Behind) }
    }
}

fn says_the_same(one: &Rule, other: &Rule) -> bool {
    Rule { id: other.id, ..one.clone() } == *other
}

fn speaks_of(rule: &Rule, name: &ServiceName) -> bool {
    let is_it = |identity: &IdentityPattern| match identity {
        IdentityPattern::Service(Component::Exactly(other)) => other == name,
        _ => false,
    };
    let of_destination = match &rule.destination {
        DestinationPattern::Mesh { identity, .. } => is_it(identity),
        DestinationPattern::Outside(_) => false,
    };
    of_destination || is_it(&rule.source)
}

/// What the request makes of the service as it is.
fn wanted_service(request: &v1::SetServiceRequest, view: &View) -> Result<Service, PolicyChangeError> {
    let name: ServiceName = request.name.parse()?;
    let known = view.policy.services().get(&name).map(|service| v1::Service::from(service.as_ref()));
    if known.is_none() && (request.hosts.is_empty() || request.port.is_none()) {
        return Err(PolicyChangeError::Incomplete(name));
    }
    let known = known.unwrap_or_else(|| v1::Service {
        workload: listening(view, &request.hosts, request.port).unwrap_or_default(),
        ..v1::Service::default()
    });
    let check = wanted_check(request.check.as_ref(), known.check);
    if request.check.is_some() && check.as_ref().is_some_and(|check| check.probe.is_empty()) {
        return Err(PolicyChangeError::NoCheck(name));
    }
    let exceptions = request.exceptions.as_ref().map(|exceptions| exceptions.networks.clone());
    let hosts = if request.hosts.is_empty() { known.hosts } else { request.hosts.clone() };
    Ok(Service::try_from(v1::Service {
        name: request.name.clone(),
        drained: known.drained.into_iter().filter(|node| hosts.contains(node)).collect(),
        hosts,
        port: request.port.unwrap_or(known.port),
        mode: request.mode.unwrap_or(known.mode),
        exceptions: exceptions.unwrap_or(known.exceptions),
        balance: request.balance.unwrap_or(known.balance),
        check,
        workload: request.workload.clone().unwrap_or(known.workload),
    })?)
}

/// What is not given stays as it is; "none" is no check.
fn wanted_check(request: Option<&v1::Check>, known: Option<v1::Check>) -> Option<v1::Check> {
    let Some(request) = request else { return known };
    if request.probe == NO_CHECK {
        return None;
    }
    let known = known.unwrap_or_default();
    let given = |wanted, known| if wanted == 0 { known } else { wanted };
    let number = |wanted, known| if wanted == 0 { known } else { wanted };
    Some(v1::Check {
        probe: if request.probe.is_empty() { known.probe } else { request.probe.clone() },
        interval_ms: given(request.interval_ms, known.interval_ms),
        timeout_ms: given(request.timeout_ms, known.timeout_ms),
        failures: number(request.failures, known.failures),
        successes: number(request.successes, known.successes),
    })
}

/// The one workload that listens on `port` of `hosts`, if there is just one. A scope is none to be kept to: the next one
/// has another name.
fn listening(view: &View, hosts: &[String], port: Option<u32>) -> Option<String> {
    let reports = hosts.iter().filter_map(|node| view.hosts.get(node)?.report.as_ref());
    let listeners =
        reports.flat_map(|report| &report.listeners).filter(|listener| Some(listener.port) == port);
    let mut workloads = listeners.map(|listener| &listener.workload);
    let workload = workloads.next().filter(|workload| !workload.ends_with(".scope"))?;
    workloads.all(|other| other == workload).then(|| workload.clone())
}

fn check_service(service: &Service, view: &View) -> Result<(), PolicyChangeError> {
    let services = view.policy.services();
    let more = usize::from(!services.contains_key(&service.name));
    at_most("named services", services.len() + more, MAX_SERVICES, "remove some")?;
    at_most("hosts for one service", service.hosts.len(), MAX_SERVICE_HOSTS, "name fewer")?;
    at_most("exceptions for one service", service.exceptions.len(), MAX_EXCEPTIONS, "name larger networks")?;
    if let Some(node) = service.hosts.iter().find(|node| !view.hosts.contains_key(node.as_str())) {
        return Err(PolicyChangeError::UnknownHost(node.clone()));
    }
    for node in &service.hosts {
        match view.policy.service_at(node, service.port) {
            Some(other) if other.name != service.name => {
                let (node, other) = (node.clone(), other.name.clone());
                return Err(PolicyChangeError::PortTaken { port: service.port, node, other });
            }
            _ => {}
        }
    }
    Ok(())
}

fn at_most(
    what: &'static str,
    count: usize,
    limit: usize,
    advice: &'static str,
) -> Result<(), PolicyChangeError> {
    if count <= limit { Ok(()) } else { Err(PolicyChangeError::TooMany { what, limit, advice }) }
}
