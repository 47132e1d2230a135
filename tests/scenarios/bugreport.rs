//! What `murmesh bugreport` gathers, and what it must not.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Topology, contains};

use crate::support::{Daemons, greet, skipped, text, wait_for_endpoint};

const PORT: u16 = 8181;

/// The archive of one host, with a log and a configuration that have secrets in them.
fn report(host: &Host, secrets: &[String]) -> Result<Vec<u8>> {
    let directory = host.data_directory().join("report");
    fs::create_dir_all(&directory)?;
    let [log, config, archive] = ["some.log", "murmesh.toml", "report.tar"].map(|name| directory.join(name));
    fs::write(&log, format!("the log goes on, and somebody has logged {}\n", secrets.join(" and ")))?;
    fs::write(&config, format!("[agent]\nnode = \"fcc00\"\njoin = \"{}\"\n", secrets[0]))?;
    let mut command = host.command("murmesh")?;
    command
        .arg("bugreport")
        .arg("--output")
        .arg(&archive)
        .arg("--log")
        .arg(&log)
        .arg("--config")
        .arg(&config);
    command.arg("--data-dir").arg(host.data_directory()).arg("--bpf-dir").arg(host.bpf_directory());
    let output = murmesh_lab::Process::spawn(&mut command)?.output(DEADLINE)?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    ensure!(text(&output.stdout).contains("no key and no token"), "{}", text(&output.stdout));
    fs::read(&archive).context("reading the archive")
}

#[test]
fn a_bug_report_has_what_helps_and_no_secret_of_the_lab() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    server.murmesh(["deny", "--dry-run", "fcc00", "fcs00:9999"])?;
    let unused = server.create_token()?;

    for host in [client, server] {
        let mut secrets = vec![unused.clone(), daemons.token(client)?, daemons.token(service)?];
        let sealed = fs::read_to_string(host.data_directory().join("seal.key"))?;
        secrets.push(sealed.trim().to_owned());
        let archive = report(host, &secrets)?;
        for secret in secrets.iter().filter_map(|secret| secret.split('.').next_back()) {
            ensure!(secret.len() >= 32, "a secret of {} bytes is none", secret.len());
            for part in [secret, &secret[..32], &secret[secret.len() - 32..]] {
                ensure!(!contains(&archive, part.as_bytes()), "a secret of {} is in its report", host.name());
            }
        }
        // Files with secrets: none of it is there, sealed or not.
        for name in ["host.key", "cache.sealed"] {
            let Ok(file) = fs::read(host.data_directory().join(name)) else { continue };
            ensure!(!contains(&archive, &file[file.len().saturating_sub(48)..]), "{name} is in the report");
        }
        ensure!(!contains(&archive, b"PRIVATE KEY"));
        for expected in ["the log goes on", "node = \"fcc00\"", "fcs00", "seal.key", "Linux", "9999"] {
            ensure!(contains(&archive, expected.as_bytes()), "{expected} is missing on {}", host.name());
        }
    }
    let archive = report_again(client)?;
    ensure!(archive.contains("--output"), "an archive that is there is not replaced: {archive}");
    Ok(())
}

/// What is said where the archive is there already.
fn report_again(host: &Host) -> Result<String> {
    let archive = host.data_directory().join("report/report.tar");
    let archive = archive.display().to_string();
    let output = host.run("murmesh", ["bugreport", "--output", &archive], b"", DEADLINE)?;
    ensure!(output.status.code() == Some(1), "it ended with {}", output.status);
    Ok(text(&output.stderr))
}
