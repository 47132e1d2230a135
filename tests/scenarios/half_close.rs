//! A direction that has ended leaves the other one open.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

const PORT: u16 = 8500;

fn play(service: &[&str], client: &[&str]) -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, service)?;
    mesh.connect(PORT, client)?.succeed(DEADLINE)?;
    service.succeed(DEADLINE)?;
    mesh.ensure_carried(1)
}

#[test]
fn the_answer_arrives_a_second_after_the_client_has_ended() -> Result<()> {
    play(
        &["expect=question", "end", "pause=1000", "send=answer"],
        &["send=question", "shutdown", "expect=answer", "end"],
    )
}

#[test]
fn the_client_sends_on_a_second_after_the_service_has_ended() -> Result<()> {
    play(
        &["send=greeting", "shutdown", "expect=late", "end"],
        &["expect=greeting", "end", "pause=1000", "send=late"],
    )
}

#[test]
fn an_end_before_the_first_byte_is_an_end() -> Result<()> {
    play(&["end", "send=answer"], &["shutdown", "expect=answer", "end"])
}

#[test]
fn nc_and_socat_wait_for_an_answer_a_second_after_end_of_input() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let service = [&listen, "system:wc -c; sleep 1; echo done", "-t5"];
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [service[2], service[0], service[1]])?;
    let target = format!("tcp:fcs00:{PORT}");
    let port = PORT.to_string();
    let clients: [&[&str]; 2] = [&["nc", "-N", "fcs00", &port], &["socat", "-t5", "-", &target]];
    for client in clients {
        let output = mesh.client()?.run(client[0], &client[1..], b"four", DEADLINE)?;
        let answer = String::from_utf8(output.stdout)?;
        ensure!(answer == "4\ndone\n", "{client:?}: {answer:?}");
    }
    mesh.ensure_carried(2)
}
