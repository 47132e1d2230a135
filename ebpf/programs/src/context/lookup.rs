//! The context of the search for a listener.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use murmesh_common::{Arrival, SocketAddress};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// The context of the `sk_lookup` hook.
pub struct Lookup<'a>(&'a SkLookupContext);

impl<'a> Lookup<'a> {
    #[inline(always)]
    pub fn new(context: &'a SkLookupContext) -> Self {
        Self(context)
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sk_lookup {
        self.0.lookup
    }

    /// `None` if it is not a TCP connection that comes.
    #[inline(always)]
    pub fn arrival(&self) -> Option<Arrival> {
        // SAFETY: fields of a valid context. `local_port` is in host byte order, `remote_port` in network byte order.
        unsafe {
            if read_volatile(&raw const (*self.raw()).protocol) != IPPROTO_TCP {
                return None;
            }
            let local_port = (read_volatile(&raw const (*self.raw()).local_port) as u16).to_be();
            let remote_port = read_volatile(&raw const (*self.raw()).remote_port);
            let local4 = &raw const (*self.raw()).local_ip4;
            let remote4 = &raw const (*self.raw()).remote_ip4;
            Some(Arrival {
                local: self.address(local4, &raw const (*self.raw()).local_ip6, local_port),
                remote: self.address(remote4, &raw const (*self.raw()).remote_ip6, remote_port),
            })
        }
    }

    /// Reads both forms and then chooses, as in the context of what happens to a socket.
    ///
    /// # Safety
    /// The pointers are to fields of this context.
    #[inline(always)]
    unsafe fn address(&self, v4: *const u32, v6: *const [u32; 4], port: u16) -> SocketAddress {
        // SAFETY: as the caller promises; the words of `v6` are read one by one.
        unsafe {
            let (v4, v6) = (read_volatile(v4), v6.cast::<u32>());
            let v6 = [
                read_volatile(v6),
                read_volatile(v6.add(1)),
                read_volatile(v6.add(2)),
                read_volatile(v6.add(3)),
            ];
            if read_volatile(&raw const (*self.raw()).family) == AF_INET {
                SocketAddress::from_v4(v4, port)
            } else {
                SocketAddress::from_v6(v6, port)
            }
        }
    }
}
