//! `cgroup/getpeername4`: a redirected client sees the address it dialled, a service sees the real client, also
//! in the address that `accept(2)` returns; every other socket sees what it always saw.
//!
//! Since Linux 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::SocketCall, names};

#[cgroup_sock_addr(getpeername4)]
pub fn murmesh_getpeername4(context: SockAddrContext) -> i32 {
    let call = SocketCall::new(&context);
    if let Some(peer) = names::peer(&call)
        && let Some(ip) = peer.as_v4()
    {
        call.set_v4(ip);
        call.set_port(peer.port);
    }
    1
}
