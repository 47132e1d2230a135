//! Between the policy's types and what travels in the API and lies in the store. Everything is validated here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Action, Balance, Check, CheckError, Defaults, Existing, Mode, Network, PatternError, Policy, Rule,
    RuleId, Service, Unconfirmed,
};
use crate::api::v1::catalog_event::Event;
use crate::api::{time_from_unix, unix_seconds, v1};
use crate::identity::{NameError, NodeName};

/// What was wrong with a message of the policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A pattern or network that is not one.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A rule without a number.
    #[error("a rule has no number")]
    RuleId,
    /// Neither allow nor deny.
    #[error("{0} is no action that this version knows; the server may be newer")]
    Action(i32),
    /// Not a mode.
    #[error("{0} is no mode that this version knows; the server may be newer")]
    Mode(i32),
    /// Neither keep nor reset.
    #[error("{0} is nothing that this version knows to become of connections; the server may be newer")]
    Existing(i32),
    /// A way back without a time.
    #[error("{0} is not a time at which a mode goes back")]
    Time(u64),
    /// Not a port number.
    #[error("{0} is not a port number")]
    Port(u32),
    /// Not a way to balance.
    #[error("{0} is no way to balance that this version knows; the server may be newer")]
    Balance(i32),
    /// Not a check.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl Policy {
    /// Takes one change of the server's watch stream. Events about hosts and servers change nothing.
    ///
    /// # Errors
    /// When any part of it is invalid; the policy is then unchanged.
    pub fn apply(&mut self, event: Event) -> Result<(), InvalidMessage> {
        match event {
            Event::Defaults(defaults) => self.defaults = defaults.try_into()?,
            Event::Rule(rule) => self.put_rule(rule.try_into()?),
            Event::RuleRemoved(number) => {
                self.remove_rule(RuleId::new(number).ok_or(InvalidMessage::RuleId)?);
            }
            Event::Service(service) => self.put_service(service.try_into()?),
            Event::ServiceRemoved(name) => self.remove_service(&name.parse()?),
            Event::Drained(drained) => self.drained = Arc::new(nodes(&drained.hosts)?),
            Event::Snapshot(_)
            | Event::Host(_)
            | Event::HostRemoved(_)
            | Event::HostRefused(_)
            | Event::Presences(_)
            | Event::Servers(_)
            | Event::Trust(_) => {}
        }
        Ok(())
    }
}

impl From<&Policy> for v1::Policy {
    fn from(policy: &Policy) -> Self {
        Self {
            defaults: Some(policy.defaults.into()),
            rules: policy.rules().values().map(|rule| rule.as_ref().into()).collect(),
            services: policy.services().values().map(|service| service.as_ref().into()).collect(),
            drained: Some(v1::Drained { hosts: policy.drained.iter().map(ToString::to_string).collect() }),
        }
    }
}

impl TryFrom<v1::Policy> for Policy {
    type Error = InvalidMessage;

    fn try_from(message: v1::Policy) -> Result<Self, InvalidMessage> {
        let mut policy = Self::default();
        let defaults = message.defaults.map(Event::Defaults).into_iter();
        let rules = message.rules.into_iter().map(Event::Rule);
        let services = message.services.into_iter().map(Event::Service);
        let drained = message.drained.map(Event::Drained);
        defaults.chain(rules).chain(services).chain(drained).try_for_each(|event| policy.apply(event))?;
        Ok(policy)
    }
}

impl From<Defaults> for v1::Defaults {
    fn from(defaults: Defaults) -> Self {
        Self {
            mesh: v1::Action::from(defaults.mesh).into(),
            egress: v1::Action::from(defaults.egress).into(),
            mode: v1::Mode::from(defaults.mode).into(),
            existing: v1::Existing::from(defaults.existing).into(),
            unconfirmed: defaults.unconfirmed.map(Into::into),
        }
    }
}

impl TryFrom<v1::Defaults> for Defaults {
    type Error = InvalidMessage;

    fn try_from(message: v1::Defaults) -> Result<Self, InvalidMessage> {
        Ok(Self {
            mesh: action(message.mesh)?.unwrap_or_default(),
            egress: action(message.egress)?.unwrap_or_default(),
            mode: mode(message.mode)?.unwrap_or_default(),
            existing: existing(message.existing)?,
            unconfirmed: message.unconfirmed.map(Unconfirmed::try_from).transpose()?,
        })
    }
}

impl From<&Rule> for v1::Rule {
    fn from(rule: &Rule) -> Self {
        Self {
            id: rule.id.number(),
            action: v1::Action::from(rule.action).into(),
            source: rule.source.to_string(),
            destination: rule.destination.to_string(),
            dry_run: rule.dry_run,
        }
    }
}

impl TryFrom<v1::Rule> for Rule {
    type Error = InvalidMessage;

    fn try_from(message: v1::Rule) -> Result<Self, InvalidMessage> {
        Ok(Self {
            id: RuleId::new(message.id).ok_or(InvalidMessage::RuleId)?,
            action: action(message.action)?.ok_or(InvalidMessage::Action(message.action))?,
            source: message.source.parse()?,
            destination: message.destination.parse()?,
            dry_run: message.dry_run,
        })
    }
}

impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            hosts: service.hosts.iter().map(ToString::to_string).collect(),
            port: service.port.into(),
            mode: service.mode.map_or(v1::Mode::Unspecified, v1::Mode::from).into(),
            exceptions: service.exceptions.iter().map(Network::to_string).collect(),
            balance: v1::Balance::from(service.balance).into(),
            check: service.check.as_ref().map(Into::into),
            drained: service.drained.iter().map(ToString::to_string).collect(),
            existing: v1::Existing::from(service.existing).into(),
            unconfirmed: service.unconfirmed.map(Into::into),
            workload: service.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Service> for Service {
    type Error = InvalidMessage;

    fn try_from(message: v1::Service) -> Result<Self, InvalidMessage> {
        let port = u16::try_from(message.port).ok().filter(|port| *port != 0);
        Ok(Self {
            name: message.name.parse()?,
            hosts: nodes(&message.hosts)?,
            port: port.ok_or(InvalidMessage::Port(message.port))?,
            mode: mode(message.mode)?,
            exceptions: message.exceptions.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            balance: balance(message.balance)?.unwrap_or_default(),
            check: message.check.filter(|check| !check.probe.is_empty()).map(Check::try_from).transpose()?,
            drained: nodes(&message.drained)?,
            existing: existing(message.existing)?,
            unconfirmed: message.unconfirmed.map(Unconfirmed::try_from).transpose()?,
            workload: match message.workload.as_str() {
                "" => None,
                workload => Some(workload.parse()?),
            },
        })
    }
}

impl From<&Check> for v1::Check {
    fn from(check: &Check) -> Self {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            probe: check.probe.to_string(),
            interval_ms: milliseconds(check.interval),
            timeout_ms: milliseconds(check.timeout),
            failures: check.failures,
            successes: check.successes,
        }
    }
}

impl TryFrom<v1::Check> for Check {
    type Error = CheckError;

    /// What is 0 has the default.
    fn try_from(message: v1::Check) -> Result<Self, CheckError> {
        let default = Self::from(message.probe.parse::<super::Probe>()?);
        let given = |milliseconds| (milliseconds > 0).then(|| Duration::from_millis(milliseconds));
        let number = |number: u32| (number > 0).then_some(number);
        let interval = given(message.interval_ms).unwrap_or(default.interval);
        Self {
            interval,
            timeout: given(message.timeout_ms).unwrap_or(default.timeout.min(interval)),
            failures: number(message.failures).unwrap_or(default.failures),
            successes: number(message.successes).unwrap_or(default.successes),
            probe: default.probe,
        }
        .bounded()
    }
}

impl From<Balance> for v1::Balance {
    fn from(balance: Balance) -> Self {
        match balance {
            Balance::Pinned => Self::Pinned,
            Balance::RoundRobin => Self::RoundRobin,
            Balance::LeastConnections => Self::LeastConnections,
        }
    }
}

impl From<Unconfirmed> for v1::Unconfirmed {
    fn from(unconfirmed: Unconfirmed) -> Self {
        let mode = unconfirmed.mode.map_or(v1::Mode::Unspecified, v1::Mode::from).into();
        Self { mode, until: unix_seconds(unconfirmed.until) }
    }
}

impl TryFrom<v1::Unconfirmed> for Unconfirmed {
    type Error = InvalidMessage;

    fn try_from(message: v1::Unconfirmed) -> Result<Self, InvalidMessage> {
        let until = time_from_unix(message.until).ok_or(InvalidMessage::Time(message.until))?;
        Ok(Self { mode: mode(message.mode)?, until })
    }
}

impl From<Existing> for v1::Existing {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Keep => Self::Keep,
            Existing::Reset => Self::Reset,
        }
    }
}

impl From<Action> for v1::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
        }
    }
}

impl From<Mode> for v1::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Observe => Self::Observe,
            Mode::Permissive => Self::Permissive,
            Mode::Strict => Self::Strict,
        }
    }
}

fn action(number: i32) -> Result<Option<Action>, InvalidMessage> {
    match v1::Action::try_from(number) {
        Ok(v1::Action::Unspecified) => Ok(None),
        Ok(v1::Action::Allow) => Ok(Some(Action::Allow)),
        Ok(v1::Action::Deny) => Ok(Some(Action::Deny)),
        Err(_) => Err(InvalidMessage::Action(number)),
    }
}

fn nodes(names: &[String]) -> Result<BTreeSet<NodeName>, NameError> {
    names.iter().map(|node| node.parse()).collect()
}

fn balance(number: i32) -> Result<Option<Balance>, InvalidMessage> {
    match v1::Balance::try_from(number) {
        Ok(v1::Balance::Unspecified) => Ok(None),
        Ok(v1::Balance::Pinned) => Ok(Some(Balance::Pinned)),
        Ok(v1::Balance::RoundRobin) => Ok(Some(Balance::RoundRobin)),
        Ok(v1::Balance::LeastConnections) => Ok(Some(Balance::LeastConnections)),
        Err(_) => Err(InvalidMessage::Balance(number)),
    }
}

fn existing(number: i32) -> Result<Existing, InvalidMessage> {
    match v1::Existing::try_from(number) {
        Ok(v1::Existing::Unspecified | v1::Existing::Keep) => Ok(Existing::Keep),
        Ok(v1::Existing::Reset) => Ok(Existing::Reset),
        Err(_) => Err(InvalidMessage::Existing(number)),
    }
}

fn mode(number: i32) -> Result<Option<Mode>, InvalidMessage> {
    match v1::Mode::try_from(number) {
        Ok(v1::Mode::Unspecified) => Ok(None),
        Ok(v1::Mode::Observe) => Ok(Some(Mode::Observe)),
        Ok(v1::Mode::Permissive) => Ok(Some(Mode::Permissive)),
        Ok(v1::Mode::Strict) => Ok(Some(Mode::Strict)),
        Err(_) => Err(InvalidMessage::Mode(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> v1::Rule {
        v1::Rule {
            id: 7,
            action: v1::Action::Deny.into(),
            source: "host/fcc00/*".to_owned(),
            destination: "service/web:80".to_owned(),
            dry_run: true,
        }
    }

    fn service() -> v1::Service {
        v1::Service {
            name: "web".to_owned(),
            hosts: vec!["a".to_owned(), "b".to_owned()],
            port: 80,
            mode: v1::Mode::Strict.into(),
            exceptions: vec!["192.0.2.0/24".to_owned()],
            balance: v1::Balance::RoundRobin.into(),
            check: Some(v1::Check {
                probe: "http:/health".to_owned(),
                interval_ms: 1000,
                timeout_ms: 500,
                failures: 3,
                successes: 1,
            }),
            drained: vec!["b".to_owned()],
            existing: v1::Existing::Reset.into(),
            unconfirmed: Some(v1::Unconfirmed { mode: v1::Mode::Observe.into(), until: 7 }),
            workload: "web.service".to_owned(),
        }
    }

    #[test]
    fn a_policy_is_the_same_after_the_wire() {
        let sent = v1::Policy {
            defaults: Some(v1::Defaults {
                mesh: v1::Action::Deny.into(),
                egress: v1::Action::Allow.into(),
                mode: v1::Mode::Strict.into(),
                existing: v1::Existing::Keep.into(),
                unconfirmed: Some(v1::Unconfirmed { mode: v1::Mode::Permissive.into(), until: 9 }),
            }),
            rules: vec![rule()],
            services: vec![service()],
            drained: Some(v1::Drained { hosts: vec!["a".to_owned()] }),
        };
        assert_eq!(v1::Policy::from(&Policy::try_from(sent.clone()).unwrap()), sent);
        let empty = Policy::try_from(v1::Policy::default()).unwrap();
        assert_eq!(
            empty.defaults,
            Defaults {
                mesh: Action::Allow,
                egress: Action::Allow,
                mode: Mode::Permissive,
                ..Defaults::default()
            }
        );
    }

    #[test]
    fn a_rule_that_is_not_understood_is_refused_and_never_left_out() {
        for wrong in [
            v1::Rule { id: 0, ..rule() },
            v1::Rule { action: 0, ..rule() },
            v1::Rule { action: 3, ..rule() },
            v1::Rule { source: "fcc00".to_owned(), ..rule() },
            v1::Rule { destination: "10.0.0.1/8".to_owned(), ..rule() },
        ] {
            let rules = vec![rule(), wrong.clone()];
            assert!(Policy::try_from(v1::Policy { rules, ..v1::Policy::default() }).is_err(), "{wrong:?}");
        }
        for wrong in [
            v1::Service { port: 0, ..service() },
            v1::Service { port: 65_616, ..service() },
            v1::Service { mode: 9, ..service() },
            v1::Service { balance: 9, ..service() },
            v1::Service {
                check: Some(v1::Check { probe: "ping".to_owned(), ..v1::Check::default() }),
                ..service()
            },
            v1::Service { name: "*".to_owned(), ..service() },
            v1::Service { workload: "*".to_owned(), ..service() },
        ] {
            assert!(Service::try_from(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
