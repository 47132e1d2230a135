//! Who serves this mesh, and to whom its hosts are connected.
//!
//! Keys of the store: `servers/NAME` (durable), `alive/servers/NAME`, `alive/hosts/NAME/NODE` and `alive/leader`, which
//! go with the server that announced them.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use tracing::error;

use super::records::{CONNECTED, LEADER, RUNNING, SERVERS};
use crate::api::v1;
use crate::identity::NodeName;
use crate::identity::token::ServerAddress;

/// All servers as the store has them.
#[derive(Default)]
pub struct Servers {
    known: BTreeMap<String, v1::Server>,
    running: BTreeSet<String>,
    leader: Option<String>,
    /// Names of the servers that each host is connected to.
    hosts: BTreeMap<String, BTreeSet<String>>,
}

/// What a record of servers changes for others.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// The list of servers.
    List,
    /// Whether this host is connected to any of them.
    Host(String),
    /// Nothing.
    Nothing,
}

/// Who is gone, and was last seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Departed {
    /// A host.
    Host(NodeName),
    /// A server.
    Server(String),
}

impl Servers {
    /// Takes a record; `None` when it is of something else.
    pub fn put(&mut self, key: &str, value: &[u8]) -> Option<Changed> {
        if let Some(name) = key.strip_prefix(SERVERS) {
            match v1::Server::decode(value) {
                Ok(server) => {
                    self.known.insert(name.to_owned(), server);
                }
                Err(error) => error!(name, %error, "the record of a server is damaged and left out"),
            }
        } else if let Some(name) = key.strip_prefix(RUNNING) {
            self.running.insert(name.to_owned());
        } else if key == LEADER {
            self.leader = String::from_utf8(value.to_vec()).ok();
        } else {
            let (server, node) = key.strip_prefix(CONNECTED)?.split_once('/')?;
            let servers = self.hosts.entry(node.to_owned()).or_default();
            let news = servers.is_empty();
            servers.insert(server.to_owned());
            return Some(if news { Changed::Host(node.to_owned()) } else { Changed::Nothing });
        }
        Some(Changed::List)
    }

    /// Takes the end of a record; `None` when it was of something else.
    pub fn remove(&mut self, key: &str) -> Option<Changed> {
        if let Some(name) = key.strip_prefix(SERVERS) {
            self.known.remove(name);
        } else if let Some(name) = key.strip_prefix(RUNNING) {
            self.running.remove(name);
        } else if key == LEADER {
            self.leader = None;
        } else {
            let (server, node) = key.strip_prefix(CONNECTED)?.split_once('/')?;
            let Some(servers) = self.hosts.get_mut(node) else { return Some(Changed::Nothing) };
            servers.remove(server);
            if !servers.is_empty() {
                return Some(Changed::Nothing);
            }
            self.hosts.remove(node);
            return Some(Changed::Host(node.to_owned()));
        }
        Some(Changed::List)
    }

    /// Whether any server has a connection of this host.
    pub fn has(&self, node: &str) -> bool {
        self.hosts.contains_key(node)
    }

    /// Names of the servers that each host is connected to.
    pub fn hosts(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.hosts
    }

    /// What the leader announced, if there is one.
    pub fn leader(&self) -> Option<&String> {
        self.leader.as_ref()
    }

    /// All of them, by name.
    pub fn list(&self) -> v1::ServerList {
        let leader = self.leader.as_ref().and_then(|leader| leader.split(' ').next());
        let servers = self.known.values().map(|server| v1::Server {
            connected: self.running.contains(&server.node),
            leader: leader == Some(&server.node),
            ..server.clone()
        });
        v1::ServerList { servers: servers.collect() }
    }

    /// Where agents find them: all of them, whether they run or not.
    pub fn addresses(&self) -> Vec<ServerAddress> {
        let texts = self.known.values().flat_map(|server| &server.addresses);
        texts.filter_map(|text| text.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_connected_until_the_last_server_that_had_it_is_gone() {
        let mut servers = Servers::default();
        let host = || Some(Changed::Host("fcs00".to_owned()));
        assert_eq!(servers.put("alive/hosts/one/fcs00", b""), host());
        assert_eq!(servers.put("alive/hosts/two/fcs00", b""), Some(Changed::Nothing));
        assert_eq!(servers.remove("alive/hosts/one/fcs00"), Some(Changed::Nothing));
        assert!(servers.has("fcs00"));
        assert_eq!(servers.remove("alive/hosts/two/fcs00"), host());
        assert!(!servers.has("fcs00"));
        assert_eq!(servers.remove("hosts/fcs00"), None);
    }

    #[test]
    fn the_list_says_who_runs_and_who_leads() {
        let mut servers = Servers::default();
        for name in ["one", "two"] {
            let addresses = vec![format!("{name}:9190")];
            let server = v1::Server { node: name.to_owned(), addresses, ..v1::Server::default() };
            servers.put(&format!("servers/{name}"), &server.encode_to_vec());
        }
        servers.put("alive/servers/two", b"");
        servers.put("alive/leader", b"two 77");
        let list = servers.list().servers;
        assert!(!list[0].connected && !list[0].leader && list[1].connected && list[1].leader);
        let addresses: Vec<_> = servers.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["one:9190", "two:9190"]);
    }
}
