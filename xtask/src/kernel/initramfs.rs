//! The first file system of the machine: a shell, and the modules by which it gets at the host's files.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::package::Kernel;
use crate::shell::{self, find_program};

const INIT: &str = include_str!("guest/init.sh");

/// What carries the host's files, and what is put over them.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Makes it in `directory` and returns the file.
pub fn make(kernel: &Kernel, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("initramfs");
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("modules"))?;
    let shell = find_program("busybox").context("busybox is missing: apt-get install busybox-static")?;
    fs::copy(shell, tree.join("bin/busybox"))?;
    fs::write(tree.join("init"), INIT)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut order = String::new();
    for module in needed_modules(kernel)? {
        order += &put_module(&module, &tree.join("modules"))?;
        order.push('\n');
    }
    fs::write(tree.join("modules/order"), order)?;
    fs::write(tree.join("modules/directory"), kernel.modules().display().to_string())?;
    let image = directory.join("initramfs.img");
    pack(&tree, &image).context("packing the first file system")?;
    Ok(image)
}

/// Files of modules, each after those it needs. What is built into the kernel is none.
fn needed_modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let output = Command::new("modprobe")
        .args(["--show-depends", "--all", "--set-version", kernel.release(), "--dirname"])
        .arg(kernel.directory())
        .args(MODULES)
        .output()
        .context("starting modprobe: apt-get install kmod")?;
    ensure!(output.status.success(), "modprobe: {}", String::from_utf8_lossy(&output.stderr).trim());
    let mut modules = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let file = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()));
        modules.extend(file.filter(|file| !modules.contains(file)));
    }
    Ok(modules)
}

/// Returns the file's name.
fn put_module(module: &Path, directory: &Path) -> Result<String> {
    let name = module.file_name().context("a module is a file")?.to_string_lossy().into_owned();
    let Some(plain) = name.strip_suffix(".xz") else {
        fs::copy(module, directory.join(&name))?;
        return Ok(name);
    };
    let file = fs::File::create(directory.join(plain))?;
    shell::run(Command::new("xz").args(["--decompress", "--stdout"]).arg(module).stdout(file))?;
    Ok(plain.to_owned())
}

fn pack(tree: &Path, image: &Path) -> Result<()> {
    let mut names = String::new();
    for directory in ["", "bin", "modules"] {
        for entry in fs::read_dir(tree.join(directory))? {
            let path = entry?.path();
            names += &format!("{}\n", path.strip_prefix(tree)?.display());
        }
    }
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(image)?)
        .stderr(Stdio::null())
        .spawn()?;
    cpio.stdin.take().context("cpio has an input")?.write_all(names.as_bytes())?;
    let status = cpio.wait()?;
    if !status.success() {
        bail!("cpio ended with {status}");
    }
    Ok(())
}
