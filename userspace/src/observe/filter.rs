//! Which events somebody wants to see.

use std::net::SocketAddr;

use super::{Event, Outcome};
use crate::identity::Subject;

/// Passes the events for which all of it holds; the default passes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these; empty for any.
    pub outcomes: Vec<Outcome>,
    /// Whose caller has this identity, workload, host, process name, or address with or without port.
    pub from: Option<String>,
    /// Whose destination has this host or address, with or without port, or this `:PORT`.
    pub to: Option<String>,
}

impl Filter {
    /// Whether the event is wanted.
    pub fn passes(&self, event: &Event) -> bool {
        let named = |wanted: &Option<String>, names: fn(&Event) -> Vec<String>| {
            wanted.as_ref().is_none_or(|wanted| names(event).contains(wanted))
        };
        (self.outcomes.is_empty() || self.outcomes.contains(&event.outcome))
            && named(&self.from, caller_names)
            && named(&self.to, destination_names)
    }
}

fn caller_names(event: &Event) -> Vec<String> {
    let mut names: Vec<String> = event.source.into_iter().flat_map(address_names).collect();
    names.extend(event.process.iter().filter_map(|process| process.name.clone()));
    if let Some(caller) = &event.caller {
        names.push(caller.to_string());
        names.extend(caller.node().map(ToString::to_string));
        if let Subject::Workload(_, workload) = caller {
            names.push(workload.to_string());
        }
    }
    names
}

fn destination_names(event: &Event) -> Vec<String> {
    let port = event.destination.port();
    let node = event.node.iter().flat_map(|node| [node.to_string(), format!("{node}:{port}")]);
    address_names(event.destination).into_iter().chain(node).chain([format!(":{port}")]).collect()
}

fn address_names(address: SocketAddr) -> [String; 2] {
    [address.ip().to_string(), address.to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_by_every_name_of_its_ends_and_by_no_other() {
        let event = Event { source: Some(([10, 0, 0, 9], 40000).into()), ..Event::example() };
        let from = |name: &str| Filter { from: Some(name.to_owned()), ..Filter::default() }.passes(&event);
        for name in ["nc", "host/fcc00/user-root", "fcc00", "user-root", "10.0.0.9", "10.0.0.9:40000"] {
            assert!(from(name), "{name}");
        }
        assert!(!from("n") && !from("fcs00") && !from("10.0.0.1"));
        let to = |name: &str| Filter { to: Some(name.to_owned()), ..Filter::default() }.passes(&event);
        for name in ["fcs00", "fcs00:8181", "10.0.0.1", "10.0.0.1:8181", ":8181"] {
            assert!(to(name), "{name}");
        }
        assert!(!to("fcc00") && !to(":81") && !to("10.0.0.9"));
    }

    #[test]
    fn all_conditions_hold() {
        let wanted = |outcomes: &[Outcome], to: Option<&str>| {
            Filter { outcomes: outcomes.to_vec(), from: None, to: to.map(str::to_owned) }
                .passes(&Event::example())
        };
        assert!(wanted(&[], None) && wanted(&[Outcome::Error, Outcome::Denied], Some("fcs00")));
        assert!(!wanted(&[Outcome::Allowed], Some("fcs00")) && !wanted(&[Outcome::Denied], Some(":1")));
    }
}
