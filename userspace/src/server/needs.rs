//! What a server cannot do without, see `docs/security.md`.

use std::net::SocketAddr;

use super::{ServerOptions, StoreOptions};
use crate::sandbox::Needs;
use crate::seal::KeySource;

impl ServerOptions {
    /// No capability, but for what its port and the owner of its files ask for; and no program is run.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs {
            directories: vec![(self.run_dir.clone(), 0o755)],
            files: vec![self.seal.path().to_owned()],
            ports: self.listen.iter().map(SocketAddr::port).chain(self.metrics.port()).collect(),
            ..Needs::default()
        };
        match &self.store {
            StoreOptions::Embedded(directory) => needs.directories.push((directory.clone(), 0o700)),
            StoreOptions::Etcd(etcd) => {
                needs.files.extend(etcd.tls.ca.iter().cloned());
                needs
                    .files
                    .extend(etcd.tls.client.iter().flat_map(|(chain, key)| [chain.clone(), key.clone()]));
            }
        }
        // Where the key is made.
        if let KeySource::Default(key) = &self.seal {
            needs.directories.extend(key.parent().map(|directory| (directory.to_owned(), 0o700)));
        }
        needs
    }
}
