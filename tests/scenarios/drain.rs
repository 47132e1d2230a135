//! An agent that stops: what it carries goes on, and nothing new begins.

use std::io::Write as _;
use std::process::{ChildStdin, Stdio};

use anyhow::{Context as _, Result};
use murmesh_lab::{DEADLINE, Mesh, Process};
use nix::sys::signal::Signal;

const PORT: u16 = 8520;

/// Connections enough for each worker of the client's agent to be asked, and to have a tunnel at rest.
const ENOUGH: usize = 12;

/// The catalog is kept from changing by a server that stands still, so the client's agent goes on to ask.
#[test]
fn a_draining_agent_finishes_its_streams_and_refuses_new_ones() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:cat"])?;
    for _ in 0..ENOUGH {
        mesh.connect(PORT, &["send=x", "expect=x", "shutdown", "end"])?.succeed(DEADLINE)?;
    }
    let mut held = Process::spawn(
        mesh.client()?.command("nc")?.args(["-N", "fcs00", &PORT.to_string()]).stdin(Stdio::piped()),
    )?;
    let mut stdin = held.take_stdin().context("a pipe")?;
    echoes(&held, &mut stdin, "before\n")?;

    mesh.server().signal(Signal::SIGSTOP)?;
    let agent = mesh.agent("fcs00")?;
    agent.signal(Signal::SIGTERM)?;
    agent.wait_for_line("draining", DEADLINE)?;
    for _ in 0..ENOUGH {
        mesh.connect(PORT, &["expect-reset"])?.succeed(DEADLINE)?;
    }
    mesh.agent("fcc00")?.wait_for_line("refused by the other host: Draining", DEADLINE)?;
    echoes(&held, &mut stdin, "after\n")?;
    drop(stdin);
    held.succeed(DEADLINE)?;
    agent.wait_for_line("stopped", DEADLINE)?;
    Ok(())
}

fn echoes(held: &Process, stdin: &mut ChildStdin, line: &str) -> Result<()> {
    stdin.write_all(line.as_bytes())?;
    held.wait_for_stdout(DEADLINE, |said| said.ends_with(line.as_bytes()))
}
