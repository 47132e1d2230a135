//! Nothing is left of Murmesh when it is to go.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, TUNNEL_PORT, Topology};
use nix::sys::signal::Signal;

use crate::support::kernel::{HOOKS, Object, hooks, objects, wait_until_freed};
use crate::support::{DEADLINE, Daemons, ask, greeting, murmesh, skipped, text};

const PORT: u16 = 8181;

/// What the kernel and the file system have of the agent of `host`.
fn present(host: &Host) -> Result<Vec<Object>> {
    let objects = objects(host)?;
    ensure!(hooks(host)?.len() == HOOKS && objects.len() > HOOKS, "{objects:?}");
    Ok(objects)
}

fn ensure_gone(host: &Host, objects: &[Object], files: &[PathBuf]) -> Result<()> {
    ensure!(hooks(host)?.is_empty(), "still attached: {:?}", hooks(host)?);
    let bpf = host.bpf_directory();
    let directories = [bpf.to_owned(), format!("{}-earlier", bpf.display()).into()];
    for path in directories.iter().chain(files) {
        ensure!(!path.exists(), "{} is still there", path.display());
    }
    wait_until_freed(objects)
}

fn options(host: &Host, words: &[&str]) -> Vec<String> {
    let own = [
        ["--run-dir", &host.run_directory().display().to_string()],
        ["--bpf-dir", &host.bpf_directory().display().to_string()],
        ["--data-dir", &host.data_directory().display().to_string()],
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect::<Vec<_>>();
    words.iter().map(|word| (*word).to_owned()).chain(own).collect()
}

fn run(host: &Host, words: &[&str]) -> Result<std::process::Output> {
    let all = options(host, words);
    murmesh(host, &all.iter().map(String::as_str).collect::<Vec<_>>())
}

/// That connections of `client` are plain, and arrive.
fn ensure_plain(client: &Host, service: &Host) -> Result<()> {
    let capture = client.capture("tcp")?;
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    let trace = capture.stop()?;
    let opens = |port| trace.packets().iter().any(|packet| packet.opens && packet.destination.port() == port);
    ensure!(opens(PORT) && !opens(TUNNEL_PORT), "the connection was not plain");
    Ok(())
}

#[test]
fn cleanup_after_a_crash_leaves_no_hook_link_map_pin_or_socket() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let refused = run(client, &["agent", "--cleanup"])?;
    ensure!(
        refused.status.code() == Some(1) && text(&refused.stderr).contains("an agent runs here"),
        "{refused:?}"
    );
    let ours = present(client)?;
    daemons.kill_agent(client)?;
    // And one whose start was cut short.
    let aside = format!("{}-earlier", client.bpf_directory().display());
    fs::rename(client.bpf_directory(), &aside)?;
    fs::create_dir_all(client.bpf_directory().join("links"))?;

    let socket = client.run_directory().join("agent.sock");
    ensure!(socket.exists(), "a killed agent leaves its socket");
    let output = run(client, &["agent", "--cleanup"])?;
    ensure!(output.status.success(), "{output:?}");
    ensure_gone(client, &ours, &[socket])?;
    ensure_plain(client, service)?;
    ensure!(run(client, &["agent", "--cleanup"])?.status.success(), "a second time is fine");

    // It is still a member.
    daemons.start_agent(client)?;
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    Ok(())
}

#[test]
fn uninstall_leaves_nothing_in_the_kernel_and_no_file() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let ours = present(client)?;
    for (words, reason) in [(&["--yes"][..], "--stop"), (&["--stop"], "--yes")] {
        let refused = run(client, &[&["uninstall"], words].concat())?;
        ensure!(refused.status.code() == Some(1) && text(&refused.stderr).contains(reason), "{refused:?}");
    }
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));

    let output = run(client, &["uninstall", "--yes", "--stop"])?;
    ensure!(output.status.success(), "{output:?}");
    ensure_gone(client, &ours, &[client.run_directory(), client.data_directory()])?;
    ensure_plain(client, service)?;

    // An agent that was killed, and whose data are kept.
    let killed = present(service)?;
    daemons.agent(service)?.signal(Signal::SIGKILL)?;
    daemons.agent(service)?.wait_for_end(DEADLINE)?;
    let output = run(service, &["uninstall", "--yes", "--keep-data"])?;
    ensure!(output.status.success(), "{output:?}");
    ensure_gone(service, &killed, &[service.run_directory()])?;
    ensure!(service.data_directory().join("membership.json").exists(), "the data are gone");
    Ok(())
}
