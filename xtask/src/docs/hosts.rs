//! Runs what a page says, on hosts with systemd and the package.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{Lab, Machine, Process, Topology, deadline};

use super::document::{Block, Document, How, Place};

/// For one block, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(120);

/// From one attempt to the next.
const INTERVAL: Duration = Duration::from_millis(200);

/// In pages this stands for the token that was printed last.
const TOKEN: &str = "TOKEN";
const TOKEN_PREFIX: &str = "murmesh1.";

/// Runs all blocks of `page` in their order, on new hosts, where the package lies in the working directory.
pub fn run(page: &Document, package: &Path) -> Result<()> {
    let Some(topology) = topology(&page.blocks)? else { return Ok(()) };
    let lab = Lab::new(topology)?;
    let shared = lab.hosts().first().context("there are hosts")?.log_directory();
    let name = package.file_name().context("a package has a name")?;
    fs::copy(package, shared.join(name))?;
    let start = |host| Machine::start(host, &shared);
    let machines = lab.hosts().iter().map(start).collect::<Result<Vec<_>>>()?;
    machines.iter().try_for_each(Machine::wait)?;
    let mut play = Play { machines: by_name(&machines), token: None, background: Vec::new() };
    for machine in &machines {
        // Nobody is asked whether packages are to be installed.
        let prepare =
            "ln -s /mnt/*.deb /root; echo 'APT::Get::Assume-Yes \"true\";' >/etc/apt/apt.conf.d/99yes";
        Process::spawn(machine.command("sh")?.args(["-euc", prepare]))?.succeed(DEADLINE)?;
    }
    for block in &page.blocks {
        let played = play.block(block);
        let place = || format!("line {}:\n{}\n{}", block.line, block.script, play.background_said());
        played.with_context(place)?;
    }
    Ok(())
}

/// Whether anything of a page runs on hosts.
pub fn runs(page: &Document) -> Result<bool> {
    Ok(topology(&page.blocks)?.is_some())
}

/// As many hosts as the blocks name; `None` where no block runs on any.
fn topology(blocks: &[Block]) -> Result<Option<Topology>> {
    let mut topology = Topology { servers: 0, services: 0, clients: 0 };
    for block in blocks {
        let Place::Host(host, _) = &block.place else { continue };
        let kinds = [
            ("murmesh", &mut topology.servers),
            ("fcs", &mut topology.services),
            ("fcc", &mut topology.clients),
        ];
        let mut found =
            kinds.into_iter().filter_map(|(prefix, count)| Some((host.strip_prefix(prefix)?, count)));
        let Some((number, count)) = found.next() else { bail!("there can be no host {host}") };
        *count = (*count).max(number.parse::<u8>().with_context(|| format!("host {host}"))? + 1);
    }
    let is_empty = topology.servers + topology.services + topology.clients == 0;
    Ok((!is_empty).then_some(topology))
}

fn by_name<'a>(machines: &'a [Machine<'a>]) -> BTreeMap<&'a str, &'a Machine<'a>> {
    machines.iter().map(|machine| (machine.host().name(), machine)).collect()
}

struct Play<'a> {
    machines: BTreeMap<&'a str, &'a Machine<'a>>,
    token: Option<String>,
    background: Vec<Process>,
}

impl Play<'_> {
    /// What goes on may be why something else fails.
    fn background_said(&self) -> String {
        self.background.iter().map(Process::said).collect()
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        let Place::Host(host, how) = &block.place else { return Ok(()) };
        let machine = self.machines.get(host.as_str()).with_context(|| format!("no host {host}"))?;
        let mut script = block.script.clone();
        if script.contains(TOKEN) {
            script = script.replace(TOKEN, self.token.as_deref().context("no token was printed before")?);
        }
        let begin = || Process::spawn(machine.command("sh")?.args(["-euc", &format!("cd /root\n{script}")]));
        if *how == How::Background {
            self.background.push(begin()?);
            return Ok(());
        }
        let deadline = deadline(DEADLINE);
        loop {
            let output = begin()?.output(DEADLINE)?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() == (*how != How::Fails) {
                self.token = token(&said).or(self.token.take());
                return Ok(());
            }
            let errors = String::from_utf8_lossy(&output.stderr);
            let may_repeat = *how == How::Until && Instant::now() < deadline;
            ensure!(may_repeat, "{host}: {}\n{said}\n{errors}", output.status);
            thread::sleep(INTERVAL);
        }
    }
}

fn token(said: &str) -> Option<String> {
    said.split_whitespace().rfind(|word| word.starts_with(TOKEN_PREFIX)).map(str::to_owned)
}
