//! Others on the same host: their BPF programs, their network namespaces, and what is not TCP.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Topology, contains};
use nix::libc;

use crate::support::kernel::{HOOKS, hooks};
use crate::support::{DEADLINE, Daemons, greet, greeting, opened, skipped, text, wait_for_endpoint};

const PORT: u16 = 8181;

#[test]
fn programs_of_others_on_the_cgroup_stay_in_effect() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let forbidden = 8282;
    forbid_port(client, forbidden).context("attaching a program as others do")?;
    ensure_forbidden(client, forbidden)?;

    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    ensure!(hooks(client)?.len() == HOOKS + 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)?;
    // It also rules over what the mesh would carry.
    let _forbidden = greet(service, forbidden)?;
    wait_for_endpoint(client, service, forbidden)?;
    ensure_forbidden(client, forbidden)?;

    daemons.kill_agent(client)?;
    daemons.start_agent(client)?;
    ensure_forbidden(client, forbidden)?;
    daemons.stop_agent(client)?;
    ensure!(hooks(client)?.len() == 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)
}

#[test]
fn another_network_namespace_in_the_cgroup_is_left_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;

    // A container with a service of its own at the same address. Its loopback interface is not ours.
    let container = "ip link set lo up && ip addr add 10.99.0.20/32 dev lo && \
                     { socat tcp4-listen:8181,reuseaddr exec:'echo hello from inside' & } && \
                     until nc -z 127.0.0.1 1 || grep -q :1FF5 /proc/net/tcp; do :; done && nc 10.99.0.20 8181";
    let carried = opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181");
    let output = client.run("unshare", ["--net", "sh", "-c", container], b"", DEADLINE)?;
    ensure!(
        text(&output.stdout) == "hello from inside\n",
        "{} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    ensure_carried_once_more(&daemons, client, service, carried)
}

#[test]
fn udp_to_the_address_of_a_meshed_service_is_untouched() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    let _echo = service.spawn("socat", ["udp4-listen:8181,fork", "exec:cat"])?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    let carried = opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181");
    let capture = client.capture("udp")?;
    let output = client.run("nc", ["-u", "-W", "1", "10.99.0.20", "8181"], b"a datagram\n", DEADLINE)?;
    let trace = capture.stop()?;
    ensure!(text(&output.stdout) == "a datagram\n", "{:?} {}", text(&output.stdout), text(&output.stderr));
    let datagrams = trace.packets().iter().filter(|packet| contains(&packet.payload, b"a datagram"));
    ensure!(datagrams.filter(|packet| packet.uses_port(PORT)).count() == 2, "one there, one back");
    ensure_carried_once_more(&daemons, client, service, carried)
}

/// Only the connection that this makes is carried since there were `carried` of them: its line in the log shows that
/// an earlier one's would be there.
fn ensure_carried_once_more(
    daemons: &Daemons<'_>,
    client: &Host,
    service: &Host,
    carried: usize,
) -> Result<()> {
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    ensure!(opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181") == carried + 1, "it was intercepted");
    Ok(())
}

fn ensure_forbidden(client: &Host, port: u16) -> Result<()> {
    let output = client.run("nc", ["-v", "10.99.0.20", &port.to_string()], b"", DEADLINE)?;
    ensure!(
        text(&output.stderr).contains("not permitted"),
        "the other program is not in effect: {}",
        text(&output.stderr)
    );
    Ok(())
}

/// Attaches a program to the cgroup of `host` in the way of systemd and others, without a link: IPv4 connections to
/// `port` fail with EPERM. It stays until the cgroup is removed.
fn forbid_port(host: &Host, port: u16) -> Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    const CGROUP_SOCK_ADDR: u32 = 18;
    const CGROUP_INET4_CONNECT: u32 = 10;
    const ALLOW_MULTI: u32 = 2;
    /// Offset of `user_port` in `struct bpf_sock_addr`.
    const USER_PORT: u64 = 24;

    let instruction = |code: u64, registers: u64, offset: u64, value: u32| {
        code | registers << 8 | offset << 16 | u64::from(value) << 32
    };
    let program = [
        instruction(0x61, 0x12, USER_PORT, 0), // r2 = context->user_port
        instruction(0xb7, 0x00, 0, 1),         // r0 = 1: allowed
        instruction(0x55, 0x02, 1, u32::from(port.to_be())), // if r2 != port skip one
        instruction(0xb7, 0x00, 0, 0),         // r0 = 0: EPERM
        instruction(0x95, 0x00, 0, 0),         // exit
    ];
    let license = c"GPL";
    // `union bpf_attr` for BPF_PROG_LOAD, up to `expected_attach_type`.
    let mut load = [0_u32; 18];
    (load[0], load[1], load[17]) = (CGROUP_SOCK_ADDR, u32::try_from(program.len())?, CGROUP_INET4_CONNECT);
    put(&mut load, 2, program.as_ptr() as u64);
    put(&mut load, 4, license.as_ptr() as u64);
    let program = bpf(PROG_LOAD, &load)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(i32::try_from(program)?) };
    let cgroup = File::open(host.cgroup())?;
    let descriptor = |fd: i32| fd.cast_unsigned();
    let attach =
        [descriptor(cgroup.as_raw_fd()), descriptor(program.as_raw_fd()), CGROUP_INET4_CONNECT, ALLOW_MULTI];
    bpf(PROG_ATTACH, &attach)?;
    Ok(())
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
