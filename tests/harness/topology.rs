//! Which hosts a lab has, and their addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};

/// How many hosts of each kind to make.
///
/// Servers are `murmesh00…` at 10.99.0.10…, services `fcs00…` at 10.99.0.20…, clients `fcc00…` at 10.99.0.120…;
/// the IPv6 address of a host has the same digits at its end, in fd99::/64, and the name `ip6-fcs00`.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Hosts for servers, `murmesh00…`.
    pub servers: u8,
    /// Hosts for services, `fcs00…`.
    pub services: u8,
    /// Hosts for clients, `fcc00…`.
    pub clients: u8,
}

impl Default for Topology {
    /// One of each.
    fn default() -> Self {
        Self { servers: 1, services: 1, clients: 1 }
    }
}

/// Name and addresses of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) name: String,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

impl Topology {
    /// The hosts, servers first.
    pub(crate) fn placements(self) -> Result<Vec<Placement>> {
        let kinds = [("murmesh", self.servers, 10), ("fcs", self.services, 20), ("fcc", self.clients, 120)];
        if self.servers > 10 || self.services > 99 || self.clients > 99 {
            bail!("a lab has room for 10 servers, 99 services and 99 clients, not for {self:?}");
        }
        let hosts = kinds.into_iter().flat_map(|(kind, count, first)| {
            (0..count).map(move |index| Placement {
                name: format!("{kind}{index:02}"),
                ipv4: Ipv4Addr::new(10, 99, 0, first + index),
                ipv6: Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, decimal_as_hexadecimal(first + index)),
            })
        });
        Ok(hosts.collect())
    }
}

/// 120 becomes 0x120, so that both addresses of a host look alike.
fn decimal_as_hexadecimal(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

#[cfg(test)]
mod tests {
    use super::{Placement, Topology};

    #[test]
    fn hosts_have_the_names_of_the_guide_and_addresses_that_look_alike() -> anyhow::Result<()> {
        let hosts = Topology { servers: 1, services: 1, clients: 2 }.placements()?;
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, ["murmesh00", "fcs00", "fcc00", "fcc01"]);
        let last =
            Placement { name: "fcc01".into(), ipv4: [10, 99, 0, 121].into(), ipv6: "fd99::121".parse()? };
        assert_eq!(hosts.last(), Some(&last));
        Ok(())
    }
}
