use crate::{Endpoint, SocketAddress};

/// What the agent tells the programs when it loads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The agent's network namespace (`SO_NETNS_COOKIE`). In any other, 127.0.0.1 is not the agent's.
    pub netns_cookie: u64,
    /// `SO_MARK` of the agent's own sockets. Setting it takes CAP_NET_ADMIN, or CAP_NET_RAW since
    /// Linux 5.17, so an unprivileged workload cannot forge it.
    pub mark: u32,
    /// Port of the agent's outbound listener on 127.0.0.1 and ::1, network byte order.
    pub outbound_port: u16,
    /// Always zero.
    pub padding: u16,
}

const _: () = assert!(size_of::<Settings>() == 16);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, no implicit padding (asserted by its size), every bit pattern is a value.
unsafe impl aya::Pod for Settings {}

/// One call of `connect(2)`.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Where to.
    pub destination: SocketAddress,
    /// The socket carries TCP or MPTCP.
    pub tcp: bool,
    /// `SO_MARK` of the socket.
    pub mark: u32,
    /// Network namespace of the socket.
    pub netns_cookie: u64,
    /// Interface index of `SO_BINDTODEVICE`, 0 if unbound.
    pub bound_interface: u32,
}

/// What to do with a call of `connect(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// None of our business: the kernel goes on as if we were not there.
    Pass,
    /// To the agent's outbound listener; the application sees the addresses of the plain connection.
    Redirect(Endpoint),
    /// To a mesh endpoint, but the socket is bound to an interface: the redirect over loopback would leave
    /// through that interface instead. Refused, so that it never travels in clear.
    RefuseBoundInterface,
    /// To a mesh endpoint while no agent listens, or somebody else listens at its port: refused, so that it neither
    /// travels in clear nor reaches a stranger on this host.
    RefuseWithoutAgent,
}

/// The `connect` hooks' decision. Cheap questions come first; the endpoint map is asked once.
#[inline(always)]
pub fn decide(
    settings: &Settings,
    attempt: &Attempt,
    endpoint: impl FnOnce(&SocketAddress) -> Option<Endpoint>,
    agent_listens: impl FnOnce() -> bool,
) -> Verdict {
    if !attempt.tcp || attempt.mark == settings.mark || attempt.netns_cookie != settings.netns_cookie {
        return Verdict::Pass;
    }
    match endpoint(&attempt.destination) {
        None => Verdict::Pass,
        Some(_) if attempt.bound_interface != 0 => Verdict::RefuseBoundInterface,
        Some(_) if !agent_listens() => Verdict::RefuseWithoutAgent,
        Some(endpoint) => Verdict::Redirect(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings =
        Settings { netns_cookie: 7, mark: 0x6d6d, outbound_port: 15001_u16.to_be(), padding: 0 };

    fn attempt() -> Attempt {
        Attempt {
            destination: SocketAddress::from_v4(1, 2),
            tcp: true,
            mark: 0,
            netns_cookie: SETTINGS.netns_cookie,
            bound_interface: 0,
        }
    }

    fn endpoint() -> Endpoint {
        Endpoint { source: SocketAddress::from_v4(9, 0) }
    }

    #[test]
    fn a_mesh_endpoint_is_redirected() {
        assert_eq!(
            decide(&SETTINGS, &attempt(), |_| Some(endpoint()), || true),
            Verdict::Redirect(endpoint())
        );
    }

    #[test]
    fn without_an_agent_a_mesh_endpoint_is_refused_and_nothing_else() {
        assert_eq!(
            decide(&SETTINGS, &attempt(), |_| Some(endpoint()), || false),
            Verdict::RefuseWithoutAgent
        );
        assert_eq!(decide(&SETTINGS, &attempt(), |_| None, || false), Verdict::Pass);
    }

    #[test]
    fn a_socket_bound_to_an_interface_never_goes_in_clear() {
        let attempt = Attempt { bound_interface: 2, ..attempt() };
        assert_eq!(decide(&SETTINGS, &attempt, |_| Some(endpoint()), || true), Verdict::RefuseBoundInterface);
        assert_eq!(decide(&SETTINGS, &attempt, |_| None, || true), Verdict::Pass);
    }

    proptest! {
        #[test]
        fn only_unmarked_tcp_of_our_namespace_to_an_endpoint_is_touched(
            tcp: bool, marked: bool, ours: bool, known: bool, listens: bool, bound_interface in 0_u32..2,
        ) {
            let attempt = Attempt {
                tcp,
                mark: if marked { SETTINGS.mark } else { 0 },
                netns_cookie: if ours { SETTINGS.netns_cookie } else { 8 },
                bound_interface,
                ..attempt()
            };
            let verdict = decide(&SETTINGS, &attempt, |_| known.then(endpoint), || listens);
            prop_assert_eq!(verdict == Verdict::Pass, !(tcp && !marked && ours && known));
        }
    }
}
