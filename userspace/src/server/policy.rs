//! Changes of the policy, as an administrator asks for them.
//!
//! Every change is made against all that came before it: it waits until this server's view has the last change, and
//! is only committed if nobody made another one meanwhile. So what is checked here holds, however many servers there are.

use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::confirmation::{put_defaults, put_service};
use super::feed::Feed;
use super::plaintext::objections;
use super::records::{CHANGES, DRAINED, RULES, SERVICES, put, read};
use super::registry::RegistryError;
use super::services::{check_service, unconfirmed, wanted_service};
use super::view::View;
use crate::api::v1;
use crate::identity::{NameError, NodeName, ServiceName, TrustDomain};
use crate::policy::{
    Component, Defaults, DestinationPattern, IdentityPattern, InvalidMessage, PatternError, Policy, Rule,
    RuleId, Service,
};
use crate::store::{Change, Condition, Outcome, Store, StoreError, Transaction};

/// Rules that a mesh may have unless the server is told otherwise.
pub const DEFAULT_MAX_RULES: usize = 10_000;

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
    /// No such host either.
    #[error("no host is called {0}; `murmesh members` shows those that there are")]
    NoSuchHost(NodeName),
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
    /// Clients would be refused that were let in a short time ago.
    #[error(
        "in the last hour clients were let in, in clear, that would be refused, or there may have been: {0}; have them \
         join the mesh, or let them in with --except, or go ahead with --force"
    )]
    LocksOut(String),
    /// There is no way back to be taken, or to be given up.
    #[error("{0} does not go back by itself: there is nothing to confirm")]
    NothingToConfirm(String),
    /// A way back that leads nowhere.
    #[error("a mode that is to be confirmed must be another one than before: say which, with --mode")]
    NothingToGoBackFrom,
    /// A way back that is never taken.
    #[error("a mode must be confirmed within 1 second to 7 days")]
    ConfirmTime,
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

/// What every change of the policy changes too.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct StoredChanges {
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
                existing: request.existing.unwrap_or(now.existing),
                unconfirmed: None,
            };
            let mut defaults = Defaults::try_from(wanted)?;
            let mode = |mode| Defaults::try_from(v1::Defaults { mode, ..v1::Defaults::default() });
            let asked = request.mode.map(|number| mode(number).map(|asked| Some(asked.mode))).transpose()?;
            let before = &view.policy.defaults;
            defaults.unconfirmed =
                unconfirmed(request.confirm_seconds, asked, Some(before.mode), before.unconfirmed)?;
            if !request.force {
                let mut after = view.policy.clone();
                after.defaults = defaults;
                lock_nobody_out(&after, view)?;
            }
            Ok((if defaults == *before { vec![] } else { vec![put_defaults(defaults)] }, defaults))
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
            if !request.force {
                let mut after = view.policy.clone();
                after.put_service(service.clone());
                lock_nobody_out(&after, view)?;
            }
            Ok((vec![put_service(&service)], service))
        })
        .await
    }

    /// Takes a service's name away, and answers what it was.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn remove_service(
        &self,
        request: &v1::RemoveServiceRequest,
    ) -> Result<Service, PolicyChangeError> {
        let name: ServiceName = request.name.parse()?;
        self.change(|view, _| {
            let service = view.policy.services().get(&name);
            let service = service.ok_or_else(|| PolicyChangeError::UnknownService(name.clone()))?;
            let naming = view.policy.rules().values().filter(|rule| speaks_of(rule, &name));
            let rules: Vec<_> = naming.map(|rule| rule.id.number()).collect();
            if !rules.is_empty() {
                return Err(PolicyChangeError::InUse { name: name.clone(), rules });
            }
            if !request.force {
                let mut after = view.policy.clone();
                after.remove_service(&name);
                lock_nobody_out(&after, view)?;
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
    pub(super) async fn change<T>(
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

/// Refuses what would lock out clients that were seen in clear a short time ago.
fn lock_nobody_out(after: &Policy, view: &View) -> Result<(), PolicyChangeError> {
    match objections(&view.policy, after, view, SystemTime::now()) {
        none if none.is_empty() => Ok(()),
        some => Err(PolicyChangeError::LocksOut(some.join("; "))),
    }
}

/// Refuses what goes beyond a limit.
pub(super) fn at_most(
    what: &'static str,
    count: usize,
    limit: usize,
    advice: &'static str,
) -> Result<(), PolicyChangeError> {
    if count <= limit { Ok(()) } else { Err(PolicyChangeError::TooMany { what, limit, advice }) }
}
