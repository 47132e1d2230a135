//! `cgroup/getsockname6`: as `getsockname4`, for IPv6 sockets; an IPv4 address appears in its mapped form.
//!
//! Since Linux 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::SocketCall, names};

#[cgroup_sock_addr(getsockname6)]
pub fn murmesh_getsockname6(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    if let Some(source) = names::source(&call, call.v6()) {
        call.set_v6(source.ip);
    }
    1
}
