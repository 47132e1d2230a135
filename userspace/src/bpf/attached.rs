//! Asks the kernel which programs are attached to a cgroup, and to our network namespace.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::libc;

use super::{
    BpfError,
    programs::{HOOKS, Hook, OWN_NAMESPACE, Target},
};

/// `bpf(2)` command, `enum bpf_cmd`.
const BPF_PROG_QUERY: libc::c_long = 16;

/// Programs of one attach type that are looked at.
const MAX_PROGRAMS: usize = 64;

/// The `query` part of `union bpf_attr`, as far as Linux 5.10 has it.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
}

const _: () = assert!(size_of::<Query>() == 40);

/// Which of `expected` (hook and number of its program) the kernel runs in `cgroup` and in this thread's network
/// namespace.
///
/// # Errors
/// The cgroup is gone, or rights are missing.
pub fn attached_hooks(cgroup: &Path, expected: &[(Hook, u32)]) -> Result<Vec<Hook>, BpfError> {
    let failed = |error| BpfError::Cgroup { path: cgroup.to_owned(), error };
    let directory = File::open(cgroup).map_err(failed)?;
    let mut attached = Vec::new();
    for (hook, program) in expected {
        let programs = match hook.target {
            Target::Cgroup => query(&directory, hook.attach_type).map_err(failed)?.0,
            Target::Namespace => in_namespace(hook.attach_type)?,
        };
        if programs.contains(program) {
            attached.push(*hook);
        }
    }
    Ok(attached)
}

/// Numbers of the programs beside our own at a hook that chooses the sockets of connections which come to this thread's
/// network namespace. The kernel takes the socket that one of them chooses, whatever another refuses
/// (`BPF_PROG_SK_LOOKUP_RUN_ARRAY`).
///
/// # Errors
/// Rights are missing.
pub fn other_lookups((hook, own): (Hook, u32)) -> Result<Vec<u32>, BpfError> {
    Ok(in_namespace(hook.attach_type)?.into_iter().filter(|program| *program != own).collect())
}

fn in_namespace(attach_type: u32) -> Result<Vec<u32>, BpfError> {
    let namespace = File::open(OWN_NAMESPACE).map_err(BpfError::system("network namespace"))?;
    Ok(query(&namespace, attach_type).map_err(BpfError::system("programs of the namespace"))?.0)
}

/// A hook, and the cgroup at or above `cgroup` where a program is attached to it that lets no other beside it, if there
/// is one: it has neither `BPF_F_ALLOW_MULTI` nor a link.
pub fn exclusive_program(cgroup: &Path) -> Option<(&'static str, PathBuf)> {
    const ALLOW_MULTI: u32 = 2;
    let hooks = || HOOKS.iter().filter(|hook| hook.target == Target::Cgroup);
    cgroup.ancestors().find_map(|place| {
        let directory = File::open(place).ok()?;
        let is_exclusive = |hook: &&Hook| {
            query(&directory, hook.attach_type)
                .is_ok_and(|(programs, flags)| !programs.is_empty() && flags & ALLOW_MULTI == 0)
        };
        Some((hooks().find(is_exclusive)?.name, place.to_owned()))
    })
}

/// Numbers of the programs, and the flags with which they are attached.
fn query(target: &File, attach_type: u32) -> io::Result<(Vec<u32>, u32)> {
    let mut programs = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target_fd: target.as_raw_fd().cast_unsigned(),
        attach_type,
        prog_ids: programs.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        ..Query::default()
    };
    // SAFETY: the kernel's structure of the size given; `prog_ids` points to `prog_cnt` words that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let programs = programs[..(query.prog_cnt as usize).min(MAX_PROGRAMS)].to_vec();
    Ok((programs, query.attach_flags))
}
