//! How much one host may put into the catalog, and so into the endpoint map of every other host.

use super::{Listener, Report, WireError};

/// Addresses in a report.
pub const MAX_ADDRESSES: usize = 256;

/// Listeners in a report.
pub const MAX_LISTENERS: usize = 16_384;

/// Pairs of an address and a listener that accepts connections to it: no host fills the endpoint map of all others
/// by itself.
pub const MAX_ENDPOINTS: usize = 4096;

/// Failing services in a report: as many as a mesh has named ones.
pub(super) const MAX_FAILING: usize = 4096;

/// Bytes that a report has to say why a service fails.
pub const MAX_REASON_BYTES: usize = 200;

impl Report {
    /// Cuts off what is beyond the limits, from the end.
    ///
    /// # Errors
    /// The first limit that it went beyond. It is within all of them now.
    pub fn truncate(&mut self) -> Result<(), WireError> {
        let checked = self.check();
        self.addresses.truncate(MAX_ADDRESSES);
        self.listeners.truncate(MAX_LISTENERS);
        let mut endpoints = 0;
        let beyond = self.listeners.iter().position(|listener| {
            endpoints += self.endpoints_of(listener);
            endpoints > MAX_ENDPOINTS
        });
        self.listeners.truncate(beyond.unwrap_or(MAX_LISTENERS));
        checked
    }

    /// Whether it is within all limits.
    ///
    /// # Errors
    /// The first limit that it goes beyond.
    pub fn check(&self) -> Result<(), WireError> {
        at_most("addresses", self.addresses.len(), MAX_ADDRESSES)?;
        at_most("listeners", self.listeners.len(), MAX_LISTENERS)?;
        let endpoints = self.listeners.iter().map(|listener| self.endpoints_of(listener)).sum();
        at_most("listeners times addresses", endpoints, MAX_ENDPOINTS)
    }

    fn endpoints_of(&self, listener: &Listener) -> usize {
        self.addresses.iter().filter(|address| listener.accepts(**address)).count()
    }
}

/// # Errors
/// [`WireError::TooMany`].
pub(super) fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), WireError> {
    if count <= limit { Ok(()) } else { Err(WireError::TooMany { what, count, limit }) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    /// On any address, from port 1 on.
    fn report(addresses: u32, listeners: u16) -> Report {
        let listener = |port| Listener {
            address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            ipv6_only: false,
            workload: None,
        };
        Report {
            addresses: (1..=addresses).map(|number| IpAddr::V4(Ipv4Addr::from_bits(number))).collect(),
            listeners: (1..=listeners).map(listener).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn what_is_within_the_limits_stays() {
        for (addresses, listeners) in [(0, 16_384), (1, 4096), (256, 16), (16, 256)] {
            let mut within = report(addresses, listeners);
            within.truncate().expect("within the limits");
            assert_eq!(within, report(addresses, listeners));
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_cut_off_at_the_end() {
        for (beyond, left) in [
            ((257, 16), (256, 16)),
            ((0, 16_385), (0, 16_384)),
            ((1, 4097), (1, 4096)),
            ((100, 41), (100, 40)),
            ((1000, 50_000), (256, 16)),
        ] {
            let mut cut = report(beyond.0, beyond.1);
            assert!(cut.check().is_err() && cut.truncate().is_err(), "{beyond:?}");
            assert_eq!(cut, report(left.0, left.1));
            cut.check().expect("within the limits now");
        }
    }

    #[test]
    fn a_listener_on_one_address_counts_once() {
        let mut report = report(256, 0);
        let address = SocketAddr::new(report.addresses[0], 80);
        report.listeners = vec![Listener { address, ipv6_only: false, workload: None }; MAX_ENDPOINTS];
        report.check().expect("within the limits");
    }
}
