//! The maps, and the settings that the agent writes when it loads the programs.

use aya_ebpf::{
    Global,
    btf_maps::{HashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use murmesh_common::{
    ConnectionRecord, Counter, Endpoint, HandshakeKey, ListenerEvent, Settings, SocketAddress,
};

/// Overridden by the agent before loading.
#[unsafe(no_mangle)]
static SETTINGS: Global<Settings> =
    Global::new(Settings { netns_cookie: 0, mark: 0, outbound_port: 0, padding: 0 });

/// Destinations reached through the mesh: exact address and port. The agent sets the size.
#[btf_map]
pub static ENDPOINTS: HashMap<SocketAddress, Endpoint, 65536> = HashMap::new();

/// What is known of an intercepted connection, on each of its sockets. Gone with the socket: nothing to evict.
#[btf_map]
pub static CONNECTIONS: SkStorage<ConnectionRecord> = SkStorage::new();

/// Records on their way from a connecting socket to the accepted one, for the time of the handshake.
#[btf_map]
pub static HANDSHAKES: HashMap<HandshakeKey, ConnectionRecord, 65536> = HashMap::new();

/// Listeners that opened or closed; read by the agent.
#[btf_map]
pub static EVENTS: RingBuf<ListenerEvent, 65536> = RingBuf::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

#[inline(always)]
pub fn settings() -> Settings {
    SETTINGS.load()
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU, and a program is not preempted by another on the same CPU
        // for long enough to matter to a counter.
        unsafe { *value += 1 };
    }
}

/// Tells the agent about a listener. A full buffer is counted; the agent's periodic dump repairs it.
#[inline(always)]
pub fn emit(event: ListenerEvent) {
    if EVENTS.output(event, 0).is_err() {
        count(Counter::EventLost);
    }
}
