//! The context of what happens to a socket.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockOpsContext,
};
use murmesh_common::{ConnectionRecord, SocketAddress};

use super::{store, stored};

const AF_INET: u32 = 2;

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
        // `remote_port` holds the port in network byte order in the two bytes that come last in memory (kernel:
        // `sock_ops_convert_ctx_access`).
        // SAFETY: fields of a valid context.
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

    /// `SO_MARK` of the socket.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        let socket = self.socket();
        // SAFETY: field of a valid socket.
        if socket.is_null() { 0 } else { unsafe { read_volatile(&raw const (*socket).mark) } }
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
