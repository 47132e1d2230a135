//! Every figure that there is, with its labels. `docs/metrics.md` has them as a table, which a test compares.

use prometheus_client::metrics::MetricType;

/// What a figure is called, and what it says.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name; that of a counter ends with `_total` beside this.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Names of its labels. Each has a bounded set of values.
    pub labels: &'static [&'static str],
    /// Which daemons have it.
    pub of: Daemons,
    /// In words.
    pub help: &'static str,
}

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the daemon or of the kernel half.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How something was distributed, in seconds.
    Histogram,
}

/// Who has a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemons {
    /// Agents.
    Agent,
    /// Servers.
    Server,
    /// Both.
    Both,
}

impl Definition {
    /// Names under which Prometheus has it.
    pub fn series(&self) -> Vec<String> {
        let name = self.name;
        match self.kind {
            Kind::Counter => vec![format!("{name}_total")],
            Kind::Gauge => vec![name.to_owned()],
            Kind::Histogram => ["bucket", "count", "sum"].map(|part| format!("{name}_{part}")).into(),
        }
    }
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter,
            Kind::Gauge => Self::Gauge,
            Kind::Histogram => Self::Histogram,
        }
    }
}

macro_rules! definitions {
    ($($constant:ident: $of:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Definition = Definition {
                name: concat!("murmesh_", $name),
                kind: Kind::$kind,
                labels: &[$($label),*],
                of: Daemons::$of,
                help: $help,
            };
        )*

        /// All of them.
        pub static ALL: &[&Definition] = &[$(&$constant),*];
    };
}

definitions! {
    BUILD: Both Gauge "build_info" ["role", "version"] "Always 1; the labels tell what runs.";
    CERTIFICATE_EXPIRES: Both Gauge "certificate_expires_timestamp_seconds" ["certificate"] "When a certificate ends: own is that of the daemon; first, of an agent, the first of all that are in use.";
    CATALOG_REVISION: Both Gauge "catalog_revision" [] "Revision of catalog and policy that the daemon knows. An agent lags behind a server by the difference.";
    PROCESS_MEMORY: Both Gauge "process_resident_memory_bytes" [] "Memory of the daemon.";
    PROCESS_DESCRIPTORS: Both Gauge "process_open_descriptors" [] "Descriptors that the daemon has open.";
    PROCESS_MAX_DESCRIPTORS: Both Gauge "process_max_descriptors" [] "Descriptors that it may have.";
    PROCESS_STARTED: Both Gauge "process_start_timestamp_seconds" [] "When the daemon was started.";
    LOG_LINES_LOST: Both Counter "log_lines_lost" [] "Lines of the log that were dropped because nobody read them fast enough.";

    INTERCEPTION_HEALTHY: Agent Gauge "interception_healthy" [] "1 while the kernel half was found as the agent made it, a test connection through the hooks included, within the last ten seconds; else 0.";
    INTERCEPTION_FAULTS: Agent Gauge "interception_faults" [] "What the last look at the kernel half found changed by somebody else, or not working.";
    INTERCEPTION_MAP_PROBLEMS: Agent Gauge "interception_map_problems" [] "What the kernel half should know and does not, because a map is full or the kernel did not take it. Connections that it is about are refused.";
    CONNECTIONS: Agent Counter "connections" ["direction", "service", "verdict"] "TCP connections that the mesh has carried or refused and that have ended, seen from this host. direction: outbound, inbound. service: the named service, (unnamed), or (others) beyond 500 names. verdict: allowed, denied, error.";
    CONNECTIONS_OPEN: Agent Gauge "connections_open" ["direction", "service"] "Those that are open.";
    CONNECTION_BYTES: Agent Counter "connection_bytes" ["direction", "service", "way"] "Bytes of connections that have ended. way: sent and received are seen from the program on this host.";
    CONNECTION_ENDS: Agent Counter "connection_ends" ["direction", "reason"] "How they ended. reason: ended is a clean end; each other one is explained in the documentation.";
    KERNEL_EVENTS: Agent Counter "kernel_events" ["event"] "What the kernel half has counted since its programs were loaded, each explained in the documentation.";
    PLAINTEXT_CONNECTIONS: Agent Counter "plaintext_connections" ["port", "service", "source"] "Connections in clear that services of this host got, by port. source: mesh, outside.";
    TUNNELS_IDLE: Agent Gauge "tunnels_idle" [] "Tunnels at rest that this host opened, ready for the next connection.";
    TUNNEL_HANDSHAKES: Agent Counter "tunnel_handshakes" [] "TLS handshakes begun by this host.";
    TUNNEL_REFUSALS: Agent Counter "tunnel_refusals" ["reason"] "Connections to the tunnel port that did not become a tunnel, and tunnels that were closed because the other side broke the protocol; each reason is explained in the documentation.";
    MISSING_RECORDS: Agent Counter "missing_records" [] "Intercepted connections that were reset because no original destination was recorded for them.";
    ENDPOINTS: Agent Gauge "endpoints" [] "Addresses that lead through the mesh.";
    PUBLISHED_REVISION: Agent Gauge "published_revision" [] "Revision of catalog and policy that the data path goes by. It follows catalog_revision within a moment.";
    SAVED_REVISION: Agent Gauge "saved_revision" [] "Revision of the catalog that is kept on disk for when no server answers.";
    SERVER_CONNECTED: Agent Gauge "server_connected" [] "1 while a server answers, else 0.";
    INSTANCES_EJECTED: Agent Gauge "instances_ejected" ["service"] "Instances of a named service that this agent leaves alone for a moment because it failed to reach them.";
    OLDER_AGENTS: Agent Gauge "older_agents" [] "Agents that were taken over, and still carry connections.";

    SERVER_HOSTS: Server Gauge "server_hosts" ["state"] "Hosts of the mesh. state: connected, away for a moment, lost.";
    SERVER_WATCHES: Server Gauge "server_watches" [] "Watch streams of hosts to this server.";
    SERVER_LEADER: Server Gauge "server_leader" [] "1 on the server that leads, else 0.";
    SERVERS: Server Gauge "servers" ["state"] "Servers of the mesh. state: connected, away.";
    SERVER_STORE_UP: Server Gauge "server_store_up" [] "1 while the database answers, else 0.";
    SERVER_STORE_SECONDS: Server Histogram "server_store_seconds" ["operation"] "How long the database took to answer. operation: get, list, commit.";
    SERVER_STORE_ERRORS: Server Counter "server_store_errors" ["operation"] "Calls that the database did not answer, or not well.";
    SERVER_CALLS: Server Counter "server_calls" ["call", "result"] "Calls of hosts and other servers. call: the name of the call in the API. result: ok, or the gRPC code of the refusal.";
    SERVER_REFUSALS: Server Counter "server_refusals" ["reason"] "Connections to the server's port that were refused, or cut off before they had proved who they are; each reason is explained in the documentation.";
    SERVER_CERTIFICATES: Server Counter "server_certificates_signed" ["subject"] "Certificates that this server has signed. subject: host, workload, service.";
    SERVER_RULES: Server Gauge "server_rules" [] "Rules of the policy.";
    SERVER_SERVICES: Server Gauge "server_services" ["mode"] "Named services, by the mode that they have.";
}
