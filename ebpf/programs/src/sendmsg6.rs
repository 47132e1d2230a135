//! `cgroup/sendmsg6`: a datagram to an address outside the mesh that the rules forbid fails with `EPERM`; everything
//! else passes untouched.
//!
//! Since Linux 4.18. A datagram to an IPv4-mapped address runs `sendmsg4`.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::SocketCall, intercept::may_send};

#[cgroup_sock_addr(sendmsg6)]
pub fn murmesh_sendmsg6(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    i32::from(may_send(&call, call.v6()))
}
