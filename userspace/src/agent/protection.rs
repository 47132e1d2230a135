//! What holds from the moment in which the hooks are attached: what was known when this host was last in the mesh.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tracing::warn;

use super::{
    discover,
    enforce::{Enforcement, Known, Problems},
    publish::{server_ports, source_for},
};
use crate::{
    bpf::PolicyMaps,
    catalog::Catalog,
    discovery::ExemptPorts,
    identity::{Identity, IdentityError, token::ServerAddress},
    policy::{
        Mode, Policy,
        compile::{Room, Tables},
    },
    proxy::{Here, Routes, instances::Loads},
    workload::Workloads,
};

/// What there is to know before any server has answered.
pub struct FirstProtection<'a> {
    /// From disk.
    pub catalog: &'a Catalog,
    /// There was one.
    pub is_lost: bool,
    /// This host.
    pub identity: &'a Identity,
    /// Ports that are never meshed.
    pub exempt: &'a ExemptPorts,
    /// The servers of the mesh: one on this host is never strict.
    pub servers: &'a [ServerAddress],
    /// `SO_MARK` of the agent's own sockets.
    pub mark: Option<u32>,
}

impl FirstProtection<'_> {
    /// Puts it into the maps, before any hook looks at them. Where nothing is known nothing is changed; but where
    /// something was, of which nothing is in force either, every service is strict.
    ///
    /// # Errors
    /// This host has no name, which it cannot have joined without.
    pub fn put(
        &self,
        maps: PolicyMaps,
        room: Room,
        workloads: &watch::Receiver<Workloads>,
    ) -> Result<(), IdentityError> {
        let mut catalog = Cow::Borrowed(self.catalog);
        if catalog.revision == 0 {
            if !self.is_lost || *maps.present() != Tables::default() {
                return Ok(());
            }
            warn!(
                "until a server answers, every service that is not exempt is closed to other hosts: it may be strict"
            );
            let mut policy = Policy::default();
            policy.defaults.mode = Mode::Strict;
            catalog = Cow::Owned(Catalog { revision: 1, policy: Arc::new(policy), ..Catalog::default() });
        }
        let serving = discover::now(self.exempt, &workloads.borrow()).unwrap_or_else(|error| {
            warn!("cannot tell what this host serves: {error}");
            discover::Served::default()
        });
        let node = self.identity.node()?;
        let here = Here {
            node,
            trust_domain: &self.identity.id.trust_domain,
            addresses: &serving.addresses,
            exempt: self.exempt,
        };
        let source = |destination| source_for(self.mark, destination);
        let routes = Routes::new(&catalog, &here, &mut Loads::default(), source);
        let known = Known {
            policy: &catalog.policy,
            node,
            serving: &serving,
            routes: &routes,
            mesh: &catalog.addresses(),
            exempt: &self.exempt.and(server_ports(self.servers, node, &serving.addresses)),
        };
        Enforcement::new(Arc::new(Mutex::new(maps)), room, workloads.clone(), Problems::default())
            .enforce(&known, || ());
        Ok(())
    }
}
