//! Protocols in which the service speaks first.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use murmesh_lab::{DEADLINE, Mesh, Process};

const PORT: u16 = 2525;

#[test]
fn a_greeting_reaches_a_client_that_stays_silent() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let script = "system:echo 220 fcs00 ready for you; read command; echo 221 bye";
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, script])?;
    // Twice: over a new tunnel, and over one that has carried a stream.
    for _ in 0..2 {
        let mut client = mesh.client()?.command("nc")?;
        let mut client = Process::spawn(client.args(["fcs00", &PORT.to_string()]).stdin(Stdio::piped()))?;
        let mut stdin = client.take_stdin().context("stdin is a pipe")?;
        client.wait_for_line("220 fcs00", DEADLINE)?;
        std::io::Write::write_all(&mut stdin, b"QUIT\n")?;
        client.wait_for_line("221 bye", DEADLINE)?;
    }
    mesh.ensure_carried(2)
}
