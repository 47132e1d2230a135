//! Puts programs in the place of others, in links that are pinned: each hook runs the one or the other at any time, and
//! never none. Links of cgroups take this since Linux 5.7, those of network namespaces since 5.8.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::libc;

use super::{BpfError, Hook, Pins};

/// `bpf(2)` commands, `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// The part of `union bpf_attr` for objects that are pinned.
#[repr(C)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

const _: () = assert!(size_of::<Object>() == 16);

/// The `link_update` part of `union bpf_attr`.
#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    earlier_program: u32,
}

const _: () = assert!(size_of::<Update>() == 16);

/// One agent's programs.
pub struct Programs {
    pins: Pins,
    programs: Vec<(Hook, OwnedFd)>,
}

impl Programs {
    /// For the hooks that are pinned below `pins`.
    pub(super) fn new(pins: Pins, programs: Vec<(Hook, OwnedFd)>) -> Self {
        Self { pins, programs }
    }

    /// Makes every hook run these programs. Does nothing to those that do.
    ///
    /// # Errors
    /// A link is not there any more, or was detached; those before it are done.
    pub fn put_in_place(&self) -> Result<(), BpfError> {
        for (hook, program) in &self.programs {
            let path = self.pins.link(hook.name);
            update(&path, program).map_err(|error| BpfError::Pin { path, error })?;
        }
        Ok(())
    }

    /// Puts these programs in place again, after others were that did not stay. What these have pinned goes.
    ///
    /// # Errors
    /// As [`Self::put_in_place`], or a pin cannot be removed.
    pub fn put_back(&self) -> Result<(), BpfError> {
        self.put_in_place()?;
        self.pins.drop_next()
    }
}

fn update(pin: &Path, program: &OwnedFd) -> io::Result<()> {
    let link = open(pin)?;
    let mut update = Update {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        earlier_program: 0,
    };
    // SAFETY: the kernel's structure of the size given, with descriptors that are open during the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw mut update, size_of::<Update>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// aya opens links, too, and hands no descriptor out.
fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut object = Object { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the kernel's structure of the size given; the path ends with a zero, and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut object, size_of::<Object>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for us; descriptors fit into an int.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}
