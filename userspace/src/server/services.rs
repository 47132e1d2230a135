//! Named services, as an administrator asks for them.

use std::time::{Duration, SystemTime};

use super::policy::{PolicyChangeError, at_most};
use super::view::View;
use crate::api::{time_from_unix, unix_seconds, v1};
use crate::identity::ServiceName;
use crate::policy::{Mode, Service, Unconfirmed};

const MAX_SERVICES: usize = 4096;
const MAX_SERVICE_HOSTS: usize = 1024;
const MAX_EXCEPTIONS: usize = 64;
/// In place of a probe: no check any more.
const NO_CHECK: &str = "none";
const MAX_CONFIRM: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the request makes of the service as it is.
///
/// # Errors
/// It is no service, or there is not enough for a new one.
pub fn wanted_service(request: &v1::SetServiceRequest, view: &View) -> Result<Service, PolicyChangeError> {
    let name: ServiceName = request.name.parse()?;
    let policy = &view.policy;
    let known = policy.services().get(&name).map(|service| v1::Service::from(service.as_ref()));
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
    let hosts = if request.hosts.is_empty() { known.hosts } else { request.hosts.clone() };
    let exceptions = request.exceptions.as_ref().map(|exceptions| exceptions.networks.clone());
    let before = policy.services().get(&name);
    let mut service = Service::try_from(v1::Service {
        name: request.name.clone(),
        drained: known.drained.into_iter().filter(|node| hosts.contains(node)).collect(),
        hosts,
        port: request.port.unwrap_or(known.port),
        mode: request.mode.unwrap_or(known.mode),
        exceptions: exceptions.unwrap_or(known.exceptions),
        existing: request.existing.unwrap_or(known.existing),
        unconfirmed: None,
        balance: request.balance.unwrap_or(known.balance),
        check,
        workload: request.workload.clone().unwrap_or(known.workload),
    })?;
    service.unconfirmed = unconfirmed(
        request.confirm_seconds,
        request.mode.map(|_| service.mode),
        before.and_then(|before| before.mode),
        before.and_then(|before| before.unconfirmed),
    )?;
    Ok(service)
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

/// The way back from a change to the mode `asked`, if one is asked for, from `before`, which may have one already.
///
/// # Errors
/// It would lead nowhere, or be taken too late.
pub fn unconfirmed(
    confirm_seconds: u64,
    asked: Option<Option<Mode>>,
    before: Option<Mode>,
    known: Option<Unconfirmed>,
) -> Result<Option<Unconfirmed>, PolicyChangeError> {
    let confirm = Duration::from_secs(confirm_seconds);
    if confirm.is_zero() {
        return Ok(if asked.is_none() { known } else { None });
    }
    let mode = known.map_or(before, |known| known.mode);
    if asked.is_none_or(|asked| asked == mode) {
        return Err(PolicyChangeError::NothingToGoBackFrom);
    }
    if confirm > MAX_CONFIRM {
        return Err(PolicyChangeError::ConfirmTime);
    }
    // Never too early.
    let until = time_from_unix(unix_seconds(SystemTime::now() + confirm) + 1);
    Ok(Some(Unconfirmed { mode, until: until.ok_or(PolicyChangeError::ConfirmTime)? }))
}

/// Whether there can be such a service.
///
/// # Errors
/// A limit, a host that is not known, or a port that has another name.
pub fn check_service(service: &Service, view: &View) -> Result<(), PolicyChangeError> {
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
