//! Which store a server uses.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::identity::NodeName;
use crate::server::StoreOptions;
use crate::store::{EtcdOptions, EtcdTls};

/// Options that say where the records of the mesh are.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Where the records of the mesh are kept.
    #[arg(long, value_enum, default_value_t, value_name = "STORE")]
    store: Kind,
    /// URLs of the members of the etcd cluster, the one on this host first; with --store etcd.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = endpoint,
        required_if_eq("store", "etcd"),
        value_name = "URL"
    )]
    etcd_endpoints: Vec<String>,
    /// What the keys of this mesh begin with in etcd.
    #[arg(long, default_value = "/murmesh", value_name = "PREFIX")]
    etcd_prefix: String,
    /// PEM file with the certificates of the authority that etcd's members are trusted by.
    #[arg(long, value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// PEM file with this server's certificate chain for etcd.
    #[arg(long, requires = "etcd_key", value_name = "FILE")]
    etcd_certificate: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(long, requires = "etcd_certificate", value_name = "FILE")]
    etcd_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A file in the data directory, for one server.
    #[default]
    Embedded,
    /// An etcd cluster, for several servers.
    Etcd,
}

impl StoreArgs {
    /// The store of the server called `node`.
    pub fn options(self, data_dir: PathBuf, node: &NodeName) -> StoreOptions {
        match self.store {
            Kind::Embedded => StoreOptions::Embedded(data_dir),
            Kind::Etcd => StoreOptions::Etcd(EtcdOptions {
                endpoints: self.etcd_endpoints,
                prefix: self.etcd_prefix,
                tls: EtcdTls { ca: self.etcd_ca, client: self.etcd_certificate.zip(self.etcd_key) },
                name: node.to_string(),
            }),
        }
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("it must begin with http:// or https://".to_owned())
    }
}
