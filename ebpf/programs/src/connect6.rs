//! `cgroup/connect6`: what the rules forbid fails with `EPERM`; a TCP connect to a mesh endpoint goes to the agent's
//! outbound listener, and is refused with `EPERM` on any error; everything else passes untouched.
//!
//! Since Linux 4.17; socket storage in it since 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::{debug, warn};

use crate::{
    context::SocketCall,
    intercept::{Outcome, intercept},
};

const LOOPBACK: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
/// An IPv6 socket that dialled an IPv4 address in its mapped form can reach IPv4 loopback only.
const MAPPED_LOOPBACK: [u32; 4] = [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([127, 0, 0, 1])];

#[cgroup_sock_addr(connect6)]
pub fn murmesh_connect6(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    let destination = call.v6();
    match intercept(&call, destination) {
        Outcome::Allow => 1,
        Outcome::Deny => 0,
        Outcome::Refuse => {
            warn!(&context, "connect to port {} over IPv6 refused", u16::from_be(destination.port));
            0
        }
        Outcome::Redirect(port) => {
            debug!(&context, "connect to port {} over IPv6 redirected", u16::from_be(destination.port));
            call.set_v6(if destination.as_v4().is_some() { MAPPED_LOOPBACK } else { LOOPBACK });
            call.set_port(port);
            1
        }
    }
}
