//! What lies on the disks of a mesh that works: nothing that is secret can be read there without the key that seals it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use data_encoding::{BASE64, HEXLOWER};
use murmesh::control::{Cache, Membership};
use murmesh::identity::JoinToken;
use murmesh::seal::{KeySource, Sealer};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology, contains};

use crate::support::{Daemons, skipped, text, wait_until};

const PORT: u16 = 8181;
/// Opens everything else on its host.
const KEY_FILE: &str = "seal.key";

#[test]
fn no_file_of_servers_and_agents_holds_a_secret_in_clear() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let unused: JoinToken = server.create_token()?.parse()?;
    let used: JoinToken = daemons.token(client)?.parse()?;
    for host in [client, service] {
        wait_until("certificates of workloads are on disk", || Ok(secrets(host)?.len() >= 2))?;
    }
    daemons.kill_server()?;
    let mut secret = vec![unused.secret.to_vec(), used.secret.to_vec()];
    secret.extend(secrets(client)?);
    secret.extend(secrets(service)?);
    for host in [server, client, service] {
        let files = files(&host.data_directory())?;
        ensure!(!files.is_empty(), "{} keeps nothing", host.name());
        for path in files {
            let content = fs::read(&path)?;
            ensure!(!contains(&content, b"PRIVATE KEY"), "a private key is in {}", path.display());
            for form in secret.iter().flat_map(|secret| forms(secret)) {
                ensure!(!contains(&content, &form), "a secret is in {}", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn daemons_take_their_key_from_a_systemd_credential_and_keep_none() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, service) = (lab.host("murmesh00")?, lab.host("fcs00")?);
    // As systemd makes it for LoadCredential=.
    let credentials = server.data_directory().join("credentials");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&credentials)?;
    fs::write(credentials.join("murmesh-seal-key"), HEXLOWER.encode(&[7; 32]))?;
    let start = |mut command: Command| -> Result<Process> {
        let daemon = Process::spawn(command.env("CREDENTIALS_DIRECTORY", &credentials))?;
        daemon.wait_for_line(": ready", DEADLINE)?;
        Ok(daemon)
    };
    let running = start(server.server_command()?)?;
    let token = server.create_token()?;
    let agent = start(service.agent_command(&token)?)?;
    for host in [server, service] {
        ensure!(!host.data_directory().join(KEY_FILE).exists(), "{} has made a key", host.name());
        let mut check = host.command("murmesh")?;
        check.arg("check").arg("--data-dir").arg(host.data_directory());
        let check = Process::spawn(check.env("CREDENTIALS_DIRECTORY", &credentials))?.output(DEADLINE)?;
        ensure!(text(&check.stdout).contains("systemd's credential"), "{}", text(&check.stdout));
    }
    for (daemon, command) in [(running, server.server_command()?), (agent, service.agent_command(&token)?)] {
        daemon.stop(DEADLINE)?;
        let mut without = command;
        let refused = Process::spawn(&mut without)?.output(DEADLINE)?;
        ensure!(!refused.status.success(), "it started without its key");
        let said = text(&refused.stderr) + &text(&refused.stdout);
        ensure!(said.contains("--seal-key-file"), "{said}");
    }
    let _running = start(server.server_command()?)?;
    let _agent = start(service.agent_command(&token)?)?;
    Ok(())
}

/// A secret as it is, and as it would look in text.
pub fn forms(secret: &[u8]) -> [Vec<u8>; 3] {
    [secret.to_vec(), BASE64.encode(secret).into_bytes(), HEXLOWER.encode(secret).into_bytes()]
}

/// The private numbers of the keys that the agent of `host` keeps: its own first, then those of its workloads.
pub fn secrets(host: &Host) -> Result<Vec<Vec<u8>>> {
    let directory = host.data_directory();
    let seal = KeySource::choose(None, None, &directory);
    let sealer = || anyhow::Ok(Sealer::new(&seal.load_existing(None)?)?);
    let membership = Membership::load(&directory, &sealer()?)?.context("the host has joined")?;
    let own = membership.identity()?;
    let cached = Cache::new(&directory, sealer()?, &own.id).load(&own);
    let keys = [own.key.clone_key()]
        .into_iter()
        .chain(cached.identities.iter().map(|identity| identity.key.clone_key()));
    keys.map(|key| private_number(key.secret_der())).collect()
}

/// In PKCS#8 (RFC 5958) of a P-256 key: an octet string of 32 bytes after version 1 (RFC 5915 section 3).
fn private_number(der: &[u8]) -> Result<Vec<u8>> {
    const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
    let at =
        der.windows(BEFORE.len()).position(|bytes| bytes == BEFORE).context("a P-256 key")? + BEFORE.len();
    Ok(der.get(at..at + 32).context("a whole key")?.to_vec())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.is_file() && !path.ends_with(KEY_FILE) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Makes an encrypted volume in a file, and has `murmesh check` look at a directory on it. All of it goes with the script.
const ON_ENCRYPTED_VOLUME: &str = "
    cd \"$1\" && mkdir data && truncate --size=32M image && echo key >key
    trap 'umount data || true; cryptsetup close \"$2\" || true' EXIT
    cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file key image
    cryptsetup open --key-file key image \"$2\"
    mkfs.ext4 -q \"/dev/mapper/$2\"
    murmesh check --data-dir data || true
    mount \"/dev/mapper/$2\" data
    murmesh check --data-dir data || true
";

/// Why there can be no encrypted volume here.
pub fn without_encrypted_volumes(host: &Host) -> Result<Option<&'static str>> {
    let programs = "command -v cryptsetup mkfs.ext4 && { modprobe --quiet --all loop dm-crypt || true; }";
    if !host.run("sh", ["-c", programs], b"", DEADLINE)?.status.success() {
        return Ok(Some("cryptsetup or mkfs.ext4 is not installed"));
    }
    let has_mapper = fs::read_to_string("/proc/misc")?.contains("device-mapper");
    Ok((!has_mapper).then_some("this kernel has no device mapper"))
}

#[test]
fn check_tells_a_directory_on_an_encrypted_volume_from_one_that_is_not() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 0 })?;
    let host = lab.host("murmesh00")?;
    if let Some(reason) = without_encrypted_volumes(host)? {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let place = host.data_directory().join("encrypted");
    fs::create_dir(&place)?;
    let mut script = host.command("unshare")?;
    // Nobody makes or removes device nodes but the program itself.
    script.env("DM_DISABLE_UDEV", "1").args(["--mount", "sh", "-euc", ON_ENCRYPTED_VOLUME, "volume"]);
    script.arg(&place).arg(format!("murmesh-{}", std::process::id()));
    let output = Process::spawn(&mut script)?.output(DEADLINE)?;
    let said = text(&output.stdout);
    ensure!(output.status.success(), "{said}{}", text(&output.stderr));
    ensure!(said.matches("data is on dm-crypt").count() == 1, "{said}");
    Ok(())
}
