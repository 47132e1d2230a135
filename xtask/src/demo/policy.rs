//! The second act: who may call, and what becomes of those outside of the mesh.

use std::process::Output;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::Host;

use super::{CLIENT, DEADLINE, announce, fetch, quote, title};

/// The same client, and what it says when it does not get through: without `-v` it fails silently.
const TALKATIVE_CLIENT: [&str; 4] = ["nc", "-v", "fcs00", "8181"];

/// A rule against the client comes and goes.
pub fn rules(server: &Host, client: &Host) -> Result<()> {
    title("Who may call?");
    let rule = administer(server, ["deny", "fcc00", "fcs00:8181"])?;
    let number = rule.split([' ', ':']).nth(1).context("murmesh deny names no rule")?;
    let said = refused(client, "Operation not permitted")?;
    println!("  The kernel itself refused connect(2). nc says:");
    quote(&said);
    administer(server, ["policy", "delete", number])?;
    let fortune = allowed_again(client)?;
    println!("  nc received:");
    quote(&fortune);
    Ok(())
}

/// The server's host has no agent, so it is outside of the mesh.
pub fn strict(outsider: &Host, client: &Host) -> Result<()> {
    title("And from outside of the mesh?");
    fetch(outsider, &CLIENT)?;
    println!("  {} has no agent, and received a fortune in clear.", outsider.name());
    administer(outsider, ["service", "set", "fortune", "--host", "fcs00", "--port", "8181"])?;
    // It has just been seen in clear, which is a reason to refuse.
    administer(outsider, ["service", "set", "fortune", "--mode", "strict", "--force"])?;
    let said = refused(outsider, "Connection refused")?;
    println!("  Plaintext is refused by the kernel of fcs00, where socat was not touched. nc says:");
    quote(&said);
    let fortune = fetch(client, &CLIENT)?;
    println!("  Through the mesh, nc received:");
    quote(&fortune);
    Ok(())
}

/// Runs `murmesh` on the server's host, shows what it answers, and returns it.
pub fn administer<const N: usize>(server: &Host, arguments: [&str; N]) -> Result<String> {
    announce(server, &format!("murmesh {}", arguments.join(" ")));
    let answer = server.murmesh(arguments)?;
    quote(&answer);
    Ok(answer)
}

/// Dials until the change is enforced, and returns what `nc` says when it fails for `reason`.
fn refused(host: &Host, reason: &str) -> Result<String> {
    announce(host, &TALKATIVE_CLIENT.join(" "));
    let output = dial_until(host, &TALKATIVE_CLIENT, |output| !output.status.success())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains(reason), "nc failed, and not for {reason:?}: {said}");
    ensure!(output.stdout.is_empty(), "nc failed, and received something all the same");
    Ok(said)
}

fn allowed_again(client: &Host) -> Result<String> {
    announce(client, &CLIENT.join(" "));
    let output = dial_until(client, &CLIENT, |output| output.status.success())?;
    ensure!(!output.stdout.is_empty(), "nc received nothing");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Agents apply a change within a second, and tell nobody when they have.
fn dial_until(host: &Host, command: &[&str], wanted: impl Fn(&Output) -> bool) -> Result<Output> {
    let begun = Instant::now();
    loop {
        let output = host.run(command[0], &command[1..], b"", DEADLINE)?;
        if wanted(&output) {
            return Ok(output);
        }
        if begun.elapsed() >= DEADLINE {
            bail!("{} after {DEADLINE:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
    }
}
