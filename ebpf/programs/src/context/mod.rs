//! Reads and writes of the hooks' contexts and of socket storage: the only unsafe code of the programs.
//!
//! The verifier rewrites accesses to a context field by field, so each is one volatile access of the field's own
//! width: merged or narrowed by the compiler it would be rejected as "invalid bpf_context access".

mod call;
mod event;
mod lookup;

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_ktime_get_boot_ns, bpf_sk_storage_get,
    },
};
use murmesh_common::ConnectionRecord;

pub use call::SocketCall;
pub use event::SocketEvent;
pub use lookup::Lookup;

use crate::maps::CONNECTIONS;

/// Who calls `connect(2)` or `sendmsg(2)`. The hook runs in the caller's own context, so this cannot be another's.
pub struct Caller;

impl Caller {
    #[inline(always)]
    pub fn pid() -> u32 {
        // SAFETY: the helper takes no arguments.
        (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
    }

    #[inline(always)]
    pub fn uid() -> u32 {
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_get_current_uid_gid() as u32 }
    }

    #[inline(always)]
    pub fn gid() -> u32 {
        // SAFETY: the helper takes no arguments.
        (unsafe { bpf_get_current_uid_gid() } >> 32) as u32
    }

    #[inline(always)]
    pub fn cgroup() -> u64 {
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_get_current_cgroup_id() }
    }

    /// The name of the calling thread.
    #[inline(always)]
    pub fn command() -> [u8; 16] {
        let mut name = [0; 16];
        // SAFETY: a buffer of the length given. On an error it stays empty.
        unsafe { bpf_get_current_comm(name.as_mut_ptr().cast(), name.len() as u32) };
        name
    }
}

/// Nanoseconds since boot, time asleep included.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
fn storage() -> *mut core::ffi::c_void {
    (&raw const CONNECTIONS).cast_mut().cast()
}

#[inline(always)]
fn stored<'a>(socket: *mut bpf_sock) -> Option<&'a ConnectionRecord> {
    // SAFETY: a valid socket; the answer is null or a record that lives as long as the socket.
    unsafe {
        bpf_sk_storage_get(storage(), socket.cast(), ptr::null_mut(), 0).cast::<ConnectionRecord>().as_ref()
    }
}

#[inline(always)]
fn store(socket: *mut bpf_sock, record: &ConnectionRecord) -> bool {
    let initial = ptr::from_ref(record).cast_mut().cast();
    let flags = BPF_SK_STORAGE_GET_F_CREATE as u64;
    // SAFETY: a valid socket, and an initial value of the map's value type.
    let slot = unsafe { bpf_sk_storage_get(storage(), socket.cast(), initial, flags) };
    let slot = slot.cast::<ConnectionRecord>();
    if slot.is_null() {
        return false;
    }
    // SAFETY: not null. The slot may hold the record of an earlier connection of this socket.
    unsafe { *slot = *record };
    true
}
