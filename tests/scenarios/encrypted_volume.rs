//! The encrypted volume that `deploy/terraform` makes for a host with `luks_device`, by the very scripts that it runs there.

use std::fs;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Machine, Process, Topology, murmesh_binary};

use crate::at_rest::without_encrypted_volumes;
use crate::support::{skipped, text};

const HOST: &str = include_str!("../../deploy/terraform/scripts/host.sh");
const CLEAN: &str = include_str!("../../deploy/terraform/scripts/clean.sh");

/// What a volume leaves on a host, and what is on its device.
const STATE: &str = "
    set +e
    exec 2>&1
    cat /etc/crypttab /etc/fstab
    cksum /etc/murmesh-volume.key
    findmnt --raw --noheadings --output SOURCE,TARGET --mountpoint /var/lib/murmesh
    ls -d /dev/mapper/murmesh /var/lib/murmesh
    blkid -p \"$0\"
    true
";

/// A server as a unit, which keeps its data where it always does.
const SERVER: &str =
    "systemd-run --quiet --unit=trial --property=Type=notify /mnt/murmesh server --node murmesh00";

/// A block device in a file.
struct Disk<'a> {
    host: &'a Host,
    device: String,
}

impl<'a> Disk<'a> {
    fn make(host: &'a Host) -> Result<Self> {
        let image = host.log_directory().join("image");
        fs::File::create(&image)?.set_len(64 << 20)?;
        let made = Process::spawn(host.command("losetup")?.args(["--find", "--show"]).arg(image))?;
        Ok(Self { host, device: made.succeed(DEADLINE)?.trim().to_owned() })
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // Where the test has failed the volume is still open.
        let close =
            "cryptsetup status murmesh | grep -q \"$0\" && cryptsetup close murmesh; losetup --detach \"$0\"";
        let _ = self.host.run("sh", ["-c", close, &*self.device], b"", DEADLINE);
    }
}

/// Runs a script as the module does.
fn run(machine: &Machine, script: &str, arguments: [&str; 2]) -> Result<Output> {
    let mut command = machine.command("env")?;
    // Nobody makes or removes device nodes but the program itself.
    command.args(["DM_DISABLE_UDEV=1", "sh", "-euc", script]).args(arguments);
    Process::spawn(&mut command)?.output(DEADLINE)
}

fn succeed(machine: &Machine, script: &str, arguments: [&str; 2]) -> Result<String> {
    let output = run(machine, script, arguments)?;
    let said = text(&output.stdout);
    ensure!(output.status.success(), "{script}: {said}{}", text(&output.stderr));
    Ok(said)
}

#[test]
fn terraform_makes_a_volume_once_and_takes_it_away() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 0 })?;
    let host = lab.host("murmesh00")?;
    if let Some(reason) = Machine::unavailable().or(without_encrypted_volumes(host)?.map(str::to_owned)) {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disk = Disk::make(host)?;
    let shared = host.log_directory().join("shared");
    fs::create_dir(&shared)?;
    fs::copy(murmesh_binary()?, shared.join("murmesh"))?;
    let machine = Machine::start(host, &shared)?;
    machine.wait()?;
    let device = &*disk.device;
    let number = device.strip_prefix("/dev/loop").context("a loop device")?;
    succeed(&machine, "mknod \"$0\" b 7 \"$1\"", [device, number])?;
    let before = succeed(&machine, STATE, [device, ""])?;

    succeed(&machine, "mkfs.ext4 -q \"$0\"", [device, ""])?;
    let used = succeed(&machine, STATE, [device, ""])?;
    let refused = run(&machine, HOST, ["host", device])?;
    let why = text(&refused.stderr);
    ensure!(!refused.status.success() && why.contains("nothing is overwritten"), "{why}");
    ensure!(succeed(&machine, STATE, [device, ""])? == used, "what is on a device is left alone");
    succeed(&machine, "wipefs --quiet --all \"$0\"", [device, ""])?;

    succeed(&machine, HOST, ["host", device])?;
    let made = succeed(&machine, STATE, [device, ""])?;
    ensure!(made.contains("/dev/mapper/murmesh /var/lib/murmesh") && made.contains("crypto_LUKS"), "{made}");
    succeed(&machine, SERVER, ["server", ""])?;
    let found = succeed(
        &machine,
        "findmnt --noheadings --output SOURCE --target /var/lib/murmesh/server.redb",
        ["", ""],
    )?;
    ensure!(found.trim() == "/dev/mapper/murmesh", "the database is on {found}");
    let checked = run(&machine, "/mnt/murmesh check", ["check", ""])?;
    ensure!(text(&checked.stdout).contains("/var/lib/murmesh is on dm-crypt"), "{}", text(&checked.stdout));

    // Terraform runs it again when a host is replaced.
    succeed(&machine, HOST, ["host", device])?;
    let again = succeed(&machine, STATE, [device, ""])?;
    ensure!(again == made, "a second time changed {made}to {again}");
    succeed(&machine, "test -s /var/lib/murmesh/server.redb && systemctl stop trial", ["", ""])?;

    succeed(&machine, CLEAN, ["clean", ""])?;
    let after = succeed(&machine, STATE, [device, ""])?;
    ensure!(after == before, "{before}is left as {after}");
    Ok(())
}
