//! `cgroup/sendmsg4`: a datagram to an address outside the mesh that the rules forbid fails with `EPERM`; everything
//! else passes untouched.
//!
//! Since Linux 4.18.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::SocketCall, intercept::may_send};

#[cgroup_sock_addr(sendmsg4)]
pub fn murmesh_sendmsg4(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    i32::from(may_send(&call, call.v4()))
}
