//! The guide's own service, asked by the guide's own client, unchanged.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh, TUNNEL_PORT};

const PORT: u16 = 8181;

/// A thousand connections on a machine that does other things too.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_thousand_answers_are_byte_exact_whatever_stdin_is() -> Result<()> {
    const EACH: usize = 250;
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let answer = fs::read("/usr/games/fortune").context("`cargo xtask setup` installs fortune")?;
    let answer = &answer[..answer.len().min(20_000)];
    let directory = mesh.service()?.data_directory();
    fs::write(directory.join("answer"), answer)?;
    let exec = format!("exec:/bin/cat {}", directory.join("answer").display());
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", ["-U", &listen, &exec])?;

    let answers = mesh.client()?.data_directory();
    // Empty, empty and passed on as the end of the client's direction, closed, and open without a word.
    let ways = [
        "nc fcs00 8181 </dev/null",
        "nc -N fcs00 8181 </dev/null",
        "socat -u tcp:fcs00:8181 - <&-",
        "nc -d fcs00 8181 <&3",
    ];
    let loops = ways.iter().enumerate().map(|(way, command)| {
        format!(
            "for i in $(seq {EACH}); do {command} >answer.{way}.$i || echo way {way}: exit status $?; done &"
        )
    });
    let script = format!(
        "cd {} && mkfifo silent && exec 3<>silent\n{}\nwait",
        answers.display(),
        loops.collect::<Vec<_>>().join("\n")
    );
    let said = mesh.client()?.spawn("sh", ["-c", &script])?.succeed(LONG)?;
    ensure!(said.is_empty(), "{said}");

    for (way, command) in ways.iter().enumerate() {
        for number in 1..=EACH {
            let received = fs::read(answers.join(format!("answer.{way}.{number}")))?;
            ensure!(received == answer, "{command:?}, number {number}: {} bytes", received.len());
        }
    }
    mesh.ensure_carried((ways.len() * EACH) as u64)
}

#[test]
fn fortunes_come_through_the_mesh() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/usr/games/fortune"])?;
    let capture = mesh.client()?.capture("tcp")?;
    let fortunes = fortunes()?;
    for _ in 0..20 {
        let output = mesh.client()?.run("nc", ["fcs00", "8181"], b"", DEADLINE)?;
        ensure!(output.status.success(), "nc: {}", output.status);
        let answer = String::from_utf8(output.stdout)?;
        ensure!(!answer.is_empty() && fortunes.contains(&answer), "this is no fortune: {answer:?}");
    }
    let trace = capture.stop()?;
    ensure!(trace.packets().iter().any(|packet| packet.uses_port(TUNNEL_PORT)), "nothing passed the tunnels");
    ensure!(!trace.packets().iter().any(|packet| packet.uses_port(PORT)), "something passed in clear");
    Ok(())
}

/// Everything that fortune may say.
fn fortunes() -> Result<String> {
    let directory = Path::new("/usr/share/games/fortunes");
    let mut all = String::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_none() {
            all.push_str(&String::from_utf8_lossy(&fs::read(path)?));
        }
    }
    Ok(all)
}
