//! The maps, and the settings that the agent writes when it loads the programs.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, LruPerCpuHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage},
    macros::btf_map,
};
use murmesh_common::{
    Arrival, ConnectionRecord, Counter, DenialKey, Destination, Endpoint, HandshakeKey, ListenerEvent,
    NetworkKey, PlaintextClient, PlaintextCount, PolicyState, Sender, Settings, SocketAddress, SourceClass,
    UserKey, Verdict, VerdictEvent, VerdictKey, WorkloadEntry,
};

/// Overridden by the agent before loading.
#[unsafe(no_mangle)]
static SETTINGS: Global<Settings> =
    Global::new(Settings { netns_cookie: 0, mark: 0, outbound_port: 0, fail_open: 0 });

/// The agent's cgroup, by its id. The agent may be moved to another one.
#[btf_map]
static AGENT: Array<u64, 1> = Array::new();

/// Destinations reached through the mesh, and services of this host: exact address and port. The agent sets the size
/// of this and of the next four.
#[btf_map]
pub static ENDPOINTS: HashMap<SocketAddress, Endpoint, 65536> = HashMap::new();

/// Who the processes of a cgroup are, by its id. One that is not in here is not known yet.
#[btf_map]
pub static WORKLOADS: HashMap<u64, WorkloadEntry, 16384> = HashMap::new();

/// Classes of users of whom rules speak, and of those who are workloads of their own.
#[btf_map]
pub static USERS: HashMap<UserKey, SourceClass, 16384> = HashMap::new();

/// What the rules say of some sources and a destination, where it is not what they say of all others.
#[btf_map]
pub static VERDICTS: HashMap<VerdictKey, Verdict, 65536> = HashMap::new();

/// What the rules say of destinations outside the mesh.
#[btf_map]
pub static EGRESS: LpmTrie<NetworkKey, Destination, 65536> = LpmTrie::new();

/// This host's ports where something else holds than `POLICY` says, by port in network byte order: a `PortMode`.
#[btf_map]
pub static PORTS: HashMap<u16, u32, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Addresses that are let in, in clear, to a port of this host that is strict.
#[btf_map]
pub static EXCEPTIONS: LpmTrie<NetworkKey, u32, 65536> = LpmTrie::new();

/// Addresses of this host and of the mesh: an `Owner` as a number.
#[btf_map]
pub static ADDRESSES: HashMap<[u32; 4], u32, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Not 0 where a rule could refuse a port of this host to some workload of a group of hosts. Every group has an entry
/// for all its other ports.
#[btf_map]
pub static DENIALS: HashMap<DenialKey, u32, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What came in clear from other hosts, by port of this host in network byte order.
#[btf_map]
pub static PLAINTEXT_PORTS: PerCpuHashMap<u16, PlaintextCount, 65536, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

/// The same for each client; the oldest are forgotten.
#[btf_map]
pub static PLAINTEXT_CLIENTS: LruPerCpuHashMap<PlaintextClient, PlaintextCount, 4096> =
    LruPerCpuHashMap::new();

/// What there are rules for.
#[btf_map]
static POLICY: Array<PolicyState, 1> = Array::new();

/// What is known of an intercepted connection, on each of its sockets. Gone with the socket: nothing to evict.
#[btf_map]
pub static CONNECTIONS: SkStorage<ConnectionRecord> = SkStorage::new();

/// Records on their way from a connecting socket to the accepted one, for the time of the handshake.
#[btf_map]
pub static HANDSHAKES: HashMap<HandshakeKey, ConnectionRecord, 65536> = HashMap::new();

/// Listeners that opened or closed; read by the agent.
#[btf_map]
pub static EVENTS: RingBuf<ListenerEvent, 65536> = RingBuf::new();

/// Verdicts that somebody may want to see; read by the agent.
#[btf_map]
pub static VERDICT_EVENTS: RingBuf<VerdictEvent, 262144> = RingBuf::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

#[inline(always)]
pub fn settings() -> Settings {
    SETTINGS.load()
}

#[inline(always)]
pub fn agents_cgroup() -> u64 {
    AGENT.get(0).copied().unwrap_or_default()
}

#[inline(always)]
pub fn policy() -> PolicyState {
    POLICY.get(0).copied().unwrap_or_default()
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // A program is not preempted by another on the same CPU for long enough to matter to a counter.
        // SAFETY: the slot belongs to this CPU.
        unsafe { *value += 1 };
    }
}

/// Counts a connection in clear from another host by its service and by its client, at `time`. Where the kernel has no
/// memory for a new entry it is left out.
#[inline(always)]
pub fn count_plaintext(arrival: &Arrival, sender: Sender, time: u64) {
    let (port, client) = (arrival.local.port, arrival.client());
    if PLAINTEXT_PORTS.get_ptr_mut(port).is_none() {
        let _ = PLAINTEXT_PORTS.insert(port, PlaintextCount::default(), BPF_NOEXIST.into());
    }
    if let Some(count) = PLAINTEXT_PORTS.get_ptr_mut(port) {
        add_plaintext(count, sender, time);
    }
    if PLAINTEXT_CLIENTS.get_ptr_mut(client).is_none() {
        let _ = PLAINTEXT_CLIENTS.insert(client, PlaintextCount::default(), BPF_NOEXIST.into());
    }
    if let Some(count) = PLAINTEXT_CLIENTS.get_ptr_mut(client) {
        add_plaintext(count, sender, time);
    }
}

#[inline(always)]
fn add_plaintext(count: *mut PlaintextCount, sender: Sender, time: u64) {
    // SAFETY: this CPU's part of an entry, as in `count`.
    unsafe {
        match sender {
            Sender::Mesh => (*count).from_mesh += 1,
            Sender::Outside => (*count).from_outside += 1,
        }
        (*count).last = time;
    }
}

/// Tells the agent about a listener. A full buffer is counted; the agent's periodic dump repairs it.
#[inline(always)]
pub fn emit(event: ListenerEvent) {
    if EVENTS.output(event, 0).is_err() {
        count(Counter::EventLost);
    }
}

/// Tells the agent about a verdict. A full buffer is counted: it keeps nobody from connecting, or from being refused.
#[inline(always)]
pub fn report(event: &VerdictEvent) {
    if VERDICT_EVENTS.output(*event, 0).is_err() {
        count(Counter::VerdictEventLost);
    }
}
