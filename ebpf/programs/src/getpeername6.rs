//! `cgroup/getpeername6`: as `getpeername4`, for IPv6 sockets; an IPv4 peer appears in its mapped form.
//!
//! Since Linux 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::SocketCall, names};

#[cgroup_sock_addr(getpeername6)]
pub fn murmesh_getpeername6(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    if let Some(peer) = names::peer(&call) {
        call.set_v6(peer.ip);
        call.set_port(peer.port);
    }
    1
}
