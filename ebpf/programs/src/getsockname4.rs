//! `cgroup/getsockname4`: a redirected client sees the address from which the plain connection would have come;
//! every other socket sees what it always saw.
//!
//! Since Linux 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::SocketCall, names};

#[cgroup_sock_addr(getsockname4)]
pub fn murmesh_getsockname4(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    if let Some(ip) = names::source(&call, call.v4()).and_then(|source| source.as_v4()) {
        call.set_v4(ip);
    }
    1
}
