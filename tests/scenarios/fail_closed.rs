//! What the mesh was carrying never goes in clear because something failed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, Process};
use nix::sys::signal::Signal;

const PORT: u16 = 8500;

/// How long an agent that fails may take for it.
const FAILURE_TIME: Duration = Duration::from_secs(5);

/// Runs `work`, and sees that no packet to the service's own port leaves the client meanwhile.
fn nothing_in_clear<T>(client: &Host, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let capture = client.capture("ip or ip6")?;
    let done = work()?;
    let trace = capture.stop()?;
    let stray = trace.packets().iter().find(|packet| packet.uses_port(PORT));
    ensure!(stray.is_none(), "a packet to the service's own port: {stray:?}");
    Ok(done)
}

/// Takes away descriptors, less each time, so that the agent fails at one step after the other.
#[test]
fn wherever_an_agent_fails_the_hooks_stay_in_force() -> Result<()> {
    let Some(mut mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _listener = mesh.listen(PORT, &["--connections=100", "send=served"])?;
    mesh.connect(PORT, &["expect=served"])?.succeed(DEADLINE)?;
    let agent = mesh.client()?.agent_command(&mesh.host("murmesh00")?.create_token()?)?;
    mesh.server().signal(Signal::SIGKILL)?;
    mesh.kill_agent("fcc00")?;
    let client = mesh.client()?;
    let mut failed_after_attaching = 0;
    nothing_in_clear(client, || {
        for limit in 10.. {
            let mut limited = client.command("prlimit")?;
            limited.arg(format!("--nofile={limit}:{limit}")).arg(agent.get_program()).args(agent.get_args());
            let mut limited = Process::spawn(&mut limited)?;
            if !fails(&mut limited, &mesh)? {
                return Ok(());
            }
            failed_after_attaching += u32::from(limited.said().contains("hooks attached"));
            mesh.connect(PORT, &["--fails=ECONNREFUSED"])?.succeed(DEADLINE)?;
        }
        bail!("no number of descriptors is enough")
    })?;
    ensure!(failed_after_attaching > 0, "the agent never failed after attaching");
    Ok(())
}

/// Whether the agent ends by itself, which must be with status 1. All the while somebody asks: an answer can only come
/// through the mesh, from an agent that goes on from what it keeps on disk.
fn fails(agent: &mut Process, mesh: &Mesh) -> Result<bool> {
    let deadline = Instant::now() + FAILURE_TIME;
    while Instant::now() < deadline {
        if let Ok(status) = agent.wait(Duration::from_millis(20)) {
            ensure!(status.code() == Some(1), "{status}: {}", agent.said());
            return Ok(true);
        }
        mesh.client()?.run("nc", ["-w1", "fcs00", &PORT.to_string()], b"", DEADLINE)?;
    }
    Ok(false)
}

#[test]
fn a_destination_is_redirected_before_a_route_leads_to_it() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    let ip = |arguments: &str| client.spawn("ip", arguments.split_whitespace())?.succeed(DEADLINE);
    let connected = ip("-4 route show proto kernel")?;
    let (subnet, _) = connected.trim().split_once(' ').context("the route to the other hosts")?;
    ip(&format!("route add {}/32 dev eth0", mesh.host("murmesh00")?.ipv4()))?;
    ip(&format!("route del {subnet}"))?;

    let listener = mesh.listen(PORT, &["names", "send=x", "end"])?;
    mesh.connect(PORT, &["expect-reset"])?.succeed(DEADLINE)?;
    nothing_in_clear(client, || {
        ip(&format!("route add {subnet} dev eth0"))?;
        let names = mesh.connect(PORT, &["expect=x", "names", "shutdown", "end"])?.succeed(DEADLINE)?;
        ensure!(names.contains(&format!("{}:{PORT}", service.ipv4())), "{names}");
        let seen = String::from_utf8(listener.stdout())?;
        ensure!(seen.contains(&client.ipv4().to_string()), "the service sees {seen}");
        Ok(())
    })
}
