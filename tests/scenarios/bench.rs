//! `murmesh bench` between two hosts.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh, Process};
use serde_json::Value;

const PORT: u16 = 7000;

/// For all loads on two paths.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn every_figure_is_measured_past_the_mesh_and_through_it() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _services = serve(&mesh)?;
    let run = ["bench", "run", "fcs00", "--rounds", "1", "--duration", "200ms", "-o", "json"];
    let report: Value = serde_json::from_str(&mesh.client()?.spawn("murmesh", run)?.succeed(LONG)?)?;
    let paths = report["paths"].as_array().context("paths are a list")?;
    let figures = |index: usize| {
        let path = paths.get(index).with_context(|| format!("{report}"))?;
        let figures = path["figures"].as_object().context("figures have names")?;
        ensure!(figures.values().all(|values| values[0].as_f64().is_some()), "{report}");
        Ok((path["name"].as_str().context("a path has a name")?, figures.len()))
    };
    // Proxies' CPU time and memory are figures of the mesh only.
    ensure!(figures(0)? == ("direct", 10), "{report}");
    ensure!(figures(1)? == ("mesh", 14), "{report}");
    Ok(())
}

#[test]
fn a_path_that_is_not_what_it_says_is_not_measured() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _services = serve(&mesh)?;
    let refused = |host: &str, arguments: &[&str], reason: &str| {
        let run = ["bench", "run", host].into_iter().chain(arguments.iter().copied());
        let output = mesh.client()?.run("murmesh", run, b"", DEADLINE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(reason), "{arguments:?}: {said}");
        Ok(())
    };
    // With a mark that is not the agent's, what should bypass the mesh does not.
    refused("fcs00", &["--paths", "direct", "--mark", "1"], "path direct")?;
    // The server's host has no agent, so that what should pass the mesh does not.
    let outside = mesh.host("murmesh00")?;
    let _services = outside.spawn("murmesh", ["bench", "serve"])?;
    outside.wait_listening(PORT, DEADLINE)?;
    refused("murmesh00", &["--paths", "mesh"], "path mesh")
}

fn serve(mesh: &Mesh) -> Result<Process> {
    let services = mesh.service()?.spawn("murmesh", ["bench", "serve"])?;
    services.wait_for_line("serving", DEADLINE)?;
    let host = mesh.service()?.ipv4().into();
    let destinations = (PORT..PORT + 4).map(|port| SocketAddr::new(host, port));
    mesh.wait_carried(&destinations.collect::<Vec<_>>())?;
    Ok(services)
}
