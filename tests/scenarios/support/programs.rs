//! BPF programs of others, by bare system calls: nothing of Murmesh is in them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Result;
use murmesh_lab::Host;
use nix::libc;

const CGROUP_INET4_CONNECT: u32 = 10;

/// How a program is attached without a link.
#[derive(Debug, Clone, Copy)]
pub enum Mode {
    /// Beside others, as systemd does (`BPF_F_ALLOW_MULTI`).
    Shared = 2,
    /// Alone, here and below.
    Exclusive = 0,
}

/// Attaches a program to the cgroup of `host` without a link: IPv4 connections to `port` fail with EPERM. It stays until
/// the cgroup is removed.
pub fn forbid_port(host: &Host, port: u16, mode: Mode) -> Result<()> {
    attach(host, &forbidding(port)?, CGROUP_INET4_CONNECT, mode)
}

fn attach(host: &Host, program: &OwnedFd, kind: u32, mode: Mode) -> Result<()> {
    const PROG_ATTACH: libc::c_long = 8;
    let cgroup = File::open(host.cgroup())?;
    bpf(PROG_ATTACH, &[descriptor(&cgroup), descriptor(program), kind, mode as u32])?;
    Ok(())
}

/// Attaches a program to the cgroup of `host` as systemd does for `IPAddressDeny=`: every IPv4 packet that leaves it is
/// dropped, except those to `allowed`. It stays until the cgroup is removed.
pub fn deny_addresses(host: &Host, allowed: Ipv4Addr) -> Result<()> {
    const CGROUP_SKB: u32 = 8;
    const CGROUP_INET_EGRESS: u32 = 1;
    // Offsets of `data` and `data_end` in `struct __sk_buff`, and of the destination in an IPv4 header.
    const DATA: u64 = 76;
    const DATA_END: u64 = 80;
    const DESTINATION: u64 = 16;
    const HEADER: u32 = 20;
    let program = [
        instruction(0x61, 0x12, DATA, 0),        // r2 = context->data
        instruction(0x61, 0x13, DATA_END, 0),    // r3 = context->data_end
        instruction(0xbf, 0x24, 0, 0),           // r4 = r2
        instruction(0x07, 0x04, 0, HEADER),      // r4 += HEADER
        instruction(0xb7, 0x00, 0, 0),           // r0 = 0: dropped
        instruction(0x2d, 0x34, 3, 0),           // if r4 > r3 skip three
        instruction(0x61, 0x25, DESTINATION, 0), // r5 = destination
        instruction(0x55, 0x05, 1, u32::from_ne_bytes(allowed.octets())), // if r5 != allowed skip one
        instruction(0xb7, 0x00, 0, 1),           // r0 = 1: allowed
        instruction(0x95, 0x00, 0, 0),           // exit
    ];
    attach(host, &load(CGROUP_SKB, CGROUP_INET_EGRESS, &program)?, CGROUP_INET_EGRESS, Mode::Shared)
}

/// Attaches a program to the network namespace of `host` that chooses no socket for any connection, until what it returns
/// is dropped.
pub fn choose_sockets(host: &Host) -> Result<OwnedFd> {
    const LINK_CREATE: libc::c_long = 28;
    const SK_LOOKUP: u32 = 30;
    const SK_LOOKUP_ATTACH: u32 = 36;
    // SK_PASS; exit.
    let program =
        load(SK_LOOKUP, SK_LOOKUP_ATTACH, &[instruction(0xb7, 0x00, 0, 1), instruction(0x95, 0x00, 0, 0)])?;
    host.in_namespace(|| {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        owned(bpf(LINK_CREATE, &[descriptor(&program), descriptor(&namespace), SK_LOOKUP_ATTACH, 0])?)
    })
}

/// Puts a program that lets everything through in the place of the one that is attached by the link pinned at `path`.
pub fn replace_program(path: &Path) -> Result<()> {
    const OBJ_GET: libc::c_long = 7;
    const LINK_UPDATE: libc::c_long = 29;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = [0_u32; 4];
    put(&mut get, 0, name.as_ptr() as u64);
    let link = owned(bpf(OBJ_GET, &get)?)?;
    // Nobody connects to port 0.
    let program = forbidding(0)?;
    bpf(LINK_UPDATE, &[descriptor(&link), descriptor(&program), 0, 0])?;
    Ok(())
}

/// A program of `cgroup/connect4` that forbids `port`.
fn forbidding(port: u16) -> Result<OwnedFd> {
    const CGROUP_SOCK_ADDR: u32 = 18;
    /// Offset of `user_port` in `struct bpf_sock_addr`.
    const USER_PORT: u64 = 24;
    let program = [
        instruction(0x61, 0x12, USER_PORT, 0), // r2 = context->user_port
        instruction(0xb7, 0x00, 0, 1),         // r0 = 1: allowed
        instruction(0x55, 0x02, 1, u32::from(port.to_be())), // if r2 != port skip one
        instruction(0xb7, 0x00, 0, 0),         // r0 = 0: EPERM
        instruction(0x95, 0x00, 0, 0),         // exit
    ];
    load(CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, &program)
}

const fn instruction(code: u64, registers: u64, offset: u64, value: u32) -> u64 {
    code | registers << 8 | offset << 16 | (value as u64) << 32
}

fn load(kind: u32, attach_type: u32, program: &[u64]) -> Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    let license = c"GPL";
    // `union bpf_attr` for BPF_PROG_LOAD, up to `expected_attach_type`.
    let mut load = [0_u32; 18];
    (load[0], load[1], load[17]) = (kind, u32::try_from(program.len())?, attach_type);
    put(&mut load, 2, program.as_ptr() as u64);
    put(&mut load, 4, license.as_ptr() as u64);
    owned(bpf(PROG_LOAD, &load)?)
}

fn descriptor(file: &impl AsRawFd) -> u32 {
    file.as_raw_fd().cast_unsigned()
}

fn owned(descriptor: libc::c_long) -> Result<OwnedFd> {
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor)?) })
}

fn put(words: &mut [u32], index: usize, address: u64) {
    words[index] = (address & u64::from(u32::MAX)) as u32;
    words[index + 1] = (address >> 32) as u32;
}

fn bpf(command: libc::c_long, attributes: &[u32]) -> io::Result<libc::c_long> {
    let (pointer, length) = (attributes.as_ptr(), size_of_val(attributes));
    // SAFETY: `attributes` is the kernel's structure of the length given; what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
