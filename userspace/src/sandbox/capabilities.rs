//! Capabilities, see capabilities(7).

use std::io;

use caps::{CapSet, CapsHashSet, errors::CapsError};
use nix::{errno::Errno, libc};

pub use caps::Capability;

/// Some of them.
pub type Capabilities = CapsHashSet;

/// Of those that this thread has, leaves `wanted`, which the programs that it runs get too. Nothing else can be had
/// again.
///
/// # Errors
/// The kernel refuses.
pub fn keep(wanted: &Capabilities) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: Capabilities = permitted.intersection(wanted).copied().collect();
    // In this order: once the bounding set is empty nothing can become inheritable, and then it need not be in it.
    caps::set(None, CapSet::Inheritable, &kept)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        caps::clear(None, CapSet::Bounding)?;
    }
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Ambient)?;
    kept.into_iter().try_for_each(|capability| caps::raise(None, CapSet::Ambient, capability))
}

/// Those of `wanted` that this thread does not have, in order.
///
/// # Errors
/// The kernel refuses.
pub fn missing(wanted: &Capabilities) -> Result<Vec<String>, CapsError> {
    let effective = caps::read(None, CapSet::Effective)?;
    let mut missing: Vec<_> = wanted.difference(&effective).map(ToString::to_string).collect();
    missing.sort();
    Ok(missing)
}

/// Gives up all capabilities of this thread, between fork and exec: what it runs has none, also as root, where
/// `keep` was called before. It takes no memory.
///
/// # Errors
/// The kernel refuses.
pub fn drop_all() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3` in linux/capability.h.
    const VERSION: u32 = 0x2008_0522;
    let header = Header { version: VERSION, pid: 0 };
    // Effective, permitted, inheritable, for the lower and the upper 32 capabilities. The ambient set follows.
    let none = [0_u32; 6];
    // SAFETY: a header and data as capset(2) wants them for this version; the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
