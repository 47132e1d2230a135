//! Reads and writes of the hooks' contexts and of socket storage: the only unsafe code of the programs.
//!
//! The verifier rewrites accesses to a context field by field, so each is one volatile access of the field's own
//! width: merged or narrowed by the compiler it would be rejected as "invalid bpf_context access".

use core::ptr::{self, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_addr, bpf_sock_ops,
        bpf_sock_tuple,
    },
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie,
        bpf_get_socket_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get,
    },
    programs::{SockAddrContext, SockOpsContext},
};
use murmesh_common::{ConnectionRecord, SocketAddress};

use crate::maps::CONNECTIONS;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const AF_INET: u32 = 2;

/// The context of the six `cgroup/{connect,getpeername,getsockname}{4,6}` hooks.
pub struct SocketCall<'a>(&'a SockAddrContext);

impl<'a> SocketCall<'a> {
    #[inline(always)]
    pub fn new(context: &'a SockAddrContext) -> Self {
        Self(context)
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.0.sock_addr
    }

    #[inline(always)]
    fn socket(&self) -> *mut bpf_sock {
        // SAFETY: the context is valid for the program's run, and `sk` is never null in these hooks.
        unsafe { (*self.raw()).__bindgen_anon_1.sk }
    }

    /// TCP, or MPTCP, whose subflows pass these hooks like any TCP socket.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        // SAFETY: fields of a valid context.
        let (kind, protocol) = unsafe {
            (read_volatile(&raw const (*self.raw()).type_), read_volatile(&raw const (*self.raw()).protocol))
        };
        kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: field of a valid socket.
        unsafe { read_volatile(&raw const (*self.socket()).mark) }
    }

    #[inline(always)]
    pub fn bound_interface(&self) -> u32 {
        // SAFETY: field of a valid socket.
        unsafe { read_volatile(&raw const (*self.socket()).bound_dev_if) }
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.raw().cast()) }
    }

    #[inline(always)]
    pub fn v4(&self) -> SocketAddress {
        // SAFETY: fields of a valid context.
        let (ip, port) = unsafe {
            (
                read_volatile(&raw const (*self.raw()).user_ip4),
                read_volatile(&raw const (*self.raw()).user_port),
            )
        };
        SocketAddress::from_v4(ip, port as u16)
    }

    #[inline(always)]
    pub fn v6(&self) -> SocketAddress {
        let mut ip = [0; 4];
        for (index, word) in ip.iter_mut().enumerate() {
            // SAFETY: field of a valid context; `index` is below 4.
            *word = unsafe { read_volatile((&raw const (*self.raw()).user_ip6).cast::<u32>().add(index)) };
        }
        // SAFETY: field of a valid context.
        let port = unsafe { read_volatile(&raw const (*self.raw()).user_port) };
        SocketAddress::from_v6(ip, port as u16)
    }

    #[inline(always)]
    pub fn set_v4(&self, ip: u32) {
        // SAFETY: field of a valid context that these hooks may write.
        unsafe { write_volatile(&raw mut (*self.raw()).user_ip4, ip) }
    }

    #[inline(always)]
    pub fn set_v6(&self, ip: [u32; 4]) {
        for (index, word) in ip.into_iter().enumerate() {
            // SAFETY: field of a valid context that these hooks may write; `index` is below 4.
            unsafe { write_volatile((&raw mut (*self.raw()).user_ip6).cast::<u32>().add(index), word) }
        }
    }

    /// `port` in network byte order.
    #[inline(always)]
    pub fn set_port(&self, port: u16) {
        // SAFETY: field of a valid context that these hooks may write.
        unsafe { write_volatile(&raw mut (*self.raw()).user_port, u32::from(port)) }
    }

    /// The mark of whoever listens at 127.0.0.1 (for IPv4) or ::1 and `port` (network byte order) in this socket's
    /// namespace, or 0.
    #[inline(always)]
    pub fn listener_mark(&self, port: u16, v4: bool) -> u32 {
        const CURRENT_NETNS: u64 = -1_i64 as u64;
        // SAFETY: all-zero addresses and ports are values.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let size = if v4 {
            let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
            // SAFETY: writing a member of a union whose members are plain numbers.
            unsafe {
                (tuple.__bindgen_anon_1.ipv4.saddr, tuple.__bindgen_anon_1.ipv4.daddr) = (loopback, loopback);
                tuple.__bindgen_anon_1.ipv4.dport = port;
                size_of_val(&tuple.__bindgen_anon_1.ipv4)
            }
        } else {
            // SAFETY: as above.
            unsafe {
                tuple.__bindgen_anon_1.ipv6.saddr[3] = 1_u32.to_be();
                tuple.__bindgen_anon_1.ipv6.daddr[3] = 1_u32.to_be();
                tuple.__bindgen_anon_1.ipv6.dport = port;
                size_of_val(&tuple.__bindgen_anon_1.ipv6)
            }
        };
        // SAFETY: the tuple is of the size given; the answer is null or a socket, given back below.
        unsafe {
            let listener =
                bpf_sk_lookup_tcp(self.raw().cast(), &raw mut tuple, size as u32, CURRENT_NETNS, 0);
            if listener.is_null() {
                return 0;
            }
            let mark = read_volatile(&raw const (*listener).mark);
            bpf_sk_release(listener.cast());
            mark
        }
    }

    /// The record kept on this socket.
    #[inline(always)]
    pub fn record(&self) -> Option<&ConnectionRecord> {
        stored(self.socket())
    }

    /// Keeps `record` on this socket. False if the kernel has no memory for it.
    #[inline(always)]
    pub fn keep(&self, record: &ConnectionRecord) -> bool {
        store(self.socket(), record)
    }

    #[inline(always)]
    pub fn forget(&self) {
        // SAFETY: a valid socket; deleting what is not there is an error code that does not matter.
        unsafe { bpf_sk_storage_delete(storage(), self.socket().cast()) };
    }
}

/// Who calls `connect(2)`. The hook runs in the caller's own context, so this cannot be another's.
pub struct Caller {
    pub pid: u32,
    pub uid: u32,
    pub cgroup: u64,
}

impl Caller {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helpers take no arguments.
        unsafe {
            Self {
                pid: (bpf_get_current_pid_tgid() >> 32) as u32,
                uid: bpf_get_current_uid_gid() as u32,
                cgroup: bpf_get_current_cgroup_id(),
            }
        }
    }
}

/// The context of the `sockops` hook.
pub struct SocketEvent<'a>(&'a SockOpsContext);

impl<'a> SocketEvent<'a> {
    #[inline(always)]
    pub fn new(context: &'a SockOpsContext) -> Self {
        Self(context)
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_ops {
        self.0.ops
    }

    #[inline(always)]
    fn socket(&self) -> *mut bpf_sock {
        // SAFETY: field of a valid context; null if the socket is not a full one.
        unsafe { (*self.raw()).__bindgen_anon_2.sk }
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.raw().cast()) }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.raw().cast()) }
    }

    #[inline(always)]
    pub fn local(&self) -> SocketAddress {
        // SAFETY: fields of a valid context. `local_port` is in host byte order.
        unsafe {
            let port = (read_volatile(&raw const (*self.raw()).local_port) as u16).to_be();
            self.address(&raw const (*self.raw()).local_ip4, &raw const (*self.raw()).local_ip6, port)
        }
    }

    #[inline(always)]
    pub fn remote(&self) -> SocketAddress {
        // SAFETY: fields of a valid context. `remote_port` holds the port in network byte order in the two bytes
        // that come last in memory (kernel: `sock_ops_convert_ctx_access`).
        unsafe {
            let port = (read_volatile(&raw const (*self.raw()).remote_port).to_be() as u16).to_be();
            self.address(&raw const (*self.raw()).remote_ip4, &raw const (*self.raw()).remote_ip6, port)
        }
    }

    /// Reads both forms and then chooses: with the reads in two branches, the compiler makes one read at a chosen
    /// offset of them, which the verifier refuses ("dereference of modified ctx ptr").
    ///
    /// # Safety
    /// The pointers are to fields of this context.
    #[inline(always)]
    unsafe fn address(&self, v4: *const u32, v6: *const [u32; 4], port: u16) -> SocketAddress {
        // SAFETY: as the caller promises; the words of `v6` are read one by one.
        unsafe {
            let (v4, v6) = (read_volatile(v4), v6.cast::<u32>());
            let v6 = [
                read_volatile(v6),
                read_volatile(v6.add(1)),
                read_volatile(v6.add(2)),
                read_volatile(v6.add(3)),
            ];
            if read_volatile(&raw const (*self.raw()).family) == AF_INET {
                SocketAddress::from_v4(v4, port)
            } else {
                SocketAddress::from_v6(v6, port)
            }
        }
    }

    /// Old and new state of a state change, as in `bpf_sock_ops.args`.
    #[inline(always)]
    pub fn states(&self) -> (u32, u32) {
        // SAFETY: the first two of four arguments of a valid context.
        unsafe {
            let arguments = (&raw const (*self.raw()).__bindgen_anon_1).cast::<u32>();
            (read_volatile(arguments), read_volatile(arguments.add(1)))
        }
    }

    /// Asks for this socket's state changes, beside what others have asked for. Never taken back: clearing the
    /// flag would take it from them too.
    #[inline(always)]
    pub fn want_state_changes(&self) {
        let _ = self.0.set_cb_flags((self.0.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }

    /// The record kept on this socket.
    #[inline(always)]
    pub fn record(&self) -> Option<&ConnectionRecord> {
        let socket = self.socket();
        if socket.is_null() { None } else { stored(socket) }
    }

    /// Keeps `record` on this socket. False if the kernel has no memory for it.
    #[inline(always)]
    pub fn keep(&self, record: &ConnectionRecord) -> bool {
        let socket = self.socket();
        !socket.is_null() && store(socket, record)
    }
}

#[inline(always)]
fn storage() -> *mut core::ffi::c_void {
    (&raw const CONNECTIONS).cast_mut().cast()
}

#[inline(always)]
fn stored<'a>(socket: *mut bpf_sock) -> Option<&'a ConnectionRecord> {
    // SAFETY: a valid socket; the answer is null or a record that lives as long as the socket.
    unsafe {
        bpf_sk_storage_get(storage(), socket.cast(), ptr::null_mut(), 0).cast::<ConnectionRecord>().as_ref()
    }
}

#[inline(always)]
fn store(socket: *mut bpf_sock, record: &ConnectionRecord) -> bool {
    let initial = ptr::from_ref(record).cast_mut().cast();
    // SAFETY: a valid socket, and an initial value of the map's value type.
    let slot =
        unsafe { bpf_sk_storage_get(storage(), socket.cast(), initial, BPF_SK_STORAGE_GET_F_CREATE as u64) }
            .cast::<ConnectionRecord>();
    if slot.is_null() {
        return false;
    }
    // SAFETY: not null. The slot may hold the record of an earlier connection of this socket.
    unsafe { *slot = *record };
    true
}
