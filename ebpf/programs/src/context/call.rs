//! The context of a system call on a socket.

use core::{
    mem,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr, bpf_sock_tuple},
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_delete},
    programs::SockAddrContext,
};
use murmesh_common::{ConnectionRecord, Protocol, SocketAddress};

use super::{storage, store, stored};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const IPPROTO_MPTCP: u32 = 262;

/// The context of the eight `cgroup/{connect,sendmsg,getpeername,getsockname}{4,6}` hooks.
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

    /// TCP, or MPTCP, whose subflows pass these hooks like any TCP socket; UDP, or its variant UDP-Lite.
    #[inline(always)]
    pub fn protocol(&self) -> Option<Protocol> {
        // SAFETY: fields of a valid context.
        let (kind, protocol) = unsafe {
            (read_volatile(&raw const (*self.raw()).type_), read_volatile(&raw const (*self.raw()).protocol))
        };
        match (kind, protocol) {
            (SOCK_STREAM, IPPROTO_TCP | IPPROTO_MPTCP) => Some(Protocol::Tcp),
            (SOCK_DGRAM, IPPROTO_UDP | IPPROTO_UDPLITE) => Some(Protocol::Udp),
            _ => None,
        }
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
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
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
