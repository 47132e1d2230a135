/// What the kernel half counts, as indexes into the per-CPU `COUNTERS` array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connections to hosts of the mesh redirected to the agent.
    Redirected = 0,
    /// Connections to mesh endpoints refused because the socket is bound to an interface, so that a redirect
    /// over loopback could not reach the agent.
    RefusedBoundInterface = 1,
    /// Connections to mesh endpoints refused because the original destination could not be recorded.
    RefusedUnrecorded = 2,
    /// Handshakes whose record could not be kept (`HANDSHAKES` full): the agent resets these connections.
    HandshakeLost = 3,
    /// Listener events that did not fit into the ring buffer: the agent's periodic dump repairs these.
    EventLost = 4,
    /// Connections to mesh endpoints refused because no agent listens.
    RefusedWithoutAgent = 5,
    /// Connections and datagrams that the rules forbade.
    Denied = 6,
    /// Events about verdicts that did not fit into the ring buffer.
    VerdictEventLost = 7,
    /// Connections from other hosts that services of this one got through the mesh.
    Served = 8,
    /// Connections in clear from hosts of the mesh that services of this one got.
    PlaintextFromMesh = 9,
    /// Connections in clear from elsewhere that services of this host got.
    PlaintextFromOutside = 10,
    /// Connections in clear that were refused on their way to services of this host.
    PlaintextRefused = 11,
    /// Connections in clear that programs of this host made to hosts of the mesh: to what is exempt, or is no endpoint.
    PlaintextToMesh = 12,
    /// Connections to named services refused because no instance serves them.
    RefusedUnavailable = 13,
}

impl Counter {
    /// Entries of the `COUNTERS` array.
    pub const COUNT: usize = 14;
}
