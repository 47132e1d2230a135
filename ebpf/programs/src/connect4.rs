//! `cgroup/connect4`: what the rules forbid fails with `EPERM`; a TCP connect to a mesh endpoint goes to the agent's
//! outbound listener, and is refused with `EPERM` on any error; everything else passes untouched.
//!
//! Since Linux 4.17; socket storage in it since 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::{debug, warn};

use crate::{
    context::SocketCall,
    intercept::{Outcome, intercept},
};

#[cgroup_sock_addr(connect4)]
pub fn murmesh_connect4(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    let destination = call.v4();
    match intercept(&call, destination) {
        Outcome::Allow => 1,
        Outcome::Deny => 0,
        Outcome::Refuse => {
            warn!(
                &context,
                "connect to {:i}:{} refused",
                u32::from_be(destination.ip[3]),
                u16::from_be(destination.port)
            );
            0
        }
        Outcome::Redirect(port) => {
            debug!(
                &context,
                "connect to {:i}:{} redirected",
                u32::from_be(destination.ip[3]),
                u16::from_be(destination.port)
            );
            call.set_v4(u32::from_ne_bytes([127, 0, 0, 1]));
            call.set_port(port);
            1
        }
    }
}
