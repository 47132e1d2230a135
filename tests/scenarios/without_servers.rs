//! No server answers: agents go on from what they keep on disk, also after a restart of agent and machine, until
//! certificates end. Strict services stay closed all the time.

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology};

use crate::support::{
    Daemons, ask, greet, greeting, json, murmesh, skipped, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

/// Two members and an outsider, `fcc01`, and a strict service.
struct Strict<'a> {
    server: &'a Host,
    service: &'a Host,
    client: &'a Host,
    outsider: &'a Host,
}

impl<'a> Strict<'a> {
    fn hosts(lab: &'a Lab) -> Result<Self> {
        let host = |name| lab.host(name);
        Ok(Self {
            server: host("murmesh00")?,
            service: host("fcs00")?,
            client: host("fcc00")?,
            outsider: host("fcc01")?,
        })
    }

    /// Starts both agents and a service, makes it strict, and waits until both agents keep that on disk.
    fn start(&self, daemons: &mut Daemons<'_>) -> Result<Process> {
        daemons.start_agent(self.service)?;
        daemons.start_agent(self.client)?;
        let listener = greet(self.service, PORT)?;
        wait_for_endpoint(self.client, self.service, PORT)?;
        ensure!(self.is_open_in_clear()?, "permissive by default");
        let strict = ["service", "set", "fortune", "--host", "fcs00", "--port", "8181", "--mode", "strict"];
        let set = murmesh(self.server, &strict)?;
        ensure!(set.status.success(), "{}", text(&set.stderr));
        wait_until("plaintext is refused", || Ok(!self.is_open_in_clear()?))?;
        daemons.ask_through_mesh(self.client, self.service, PORT)?;
        for host in [self.service, self.client] {
            wait_until("what is known is on disk", || {
                let status = json(host, "status")?;
                Ok(status["saved_revision"] == status["catalog_revision"])
            })?;
        }
        Ok(listener)
    }

    fn is_open_in_clear(&self) -> Result<bool> {
        let dial =
            self.outsider.run("nc", ["-z", &self.service.ipv4().to_string(), "8181"], b"", DEADLINE)?;
        Ok(dial.status.success())
    }

    fn ensure_closed_in_clear(&self) -> Result<()> {
        ensure!(!self.is_open_in_clear()?, "the strict service is open in clear");
        Ok(())
    }
}

fn lab() -> Result<Lab> {
    Lab::new(Topology { clients: 2, ..Topology::default() })
}

#[test]
fn a_restarted_agent_goes_on_from_disk_and_says_until_when() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let hosts = Strict::hosts(&lab)?;
    let mut daemons = Daemons::server_only(&lab)?;
    let _listener = hosts.start(&mut daemons)?;
    daemons.kill_server()?;
    for host in [hosts.service, hosts.client] {
        daemons.stop_agent(host)?;
        daemons.start_agent(host)?;
    }
    hosts.ensure_closed_in_clear()?;
    ensure!(daemons.ask_through_mesh(hosts.client, hosts.service, PORT)? == greeting(hosts.service));
    let status = json(hosts.client, "status")?;
    let end = status["first_certificate_ends_at"].as_str().context("an end")?.to_owned();
    let said = text(&murmesh(hosts.client, &["status"])?.stdout);
    ensure!(said.contains(&end) && said.contains("connections go on until"), "{said}");
    Ok(())
}

#[test]
fn after_a_reboot_without_servers_members_talk_and_a_strict_service_is_closed_at_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let hosts = Strict::hosts(&lab)?;
    let mut daemons = Daemons::server_only(&lab)?;
    let listener = hosts.start(&mut daemons)?;
    daemons.kill_server()?;
    daemons.power_off(hosts.service)?;
    daemons.power_off(hosts.client)?;
    drop(listener);
    let _listener = greet(hosts.service, PORT)?;
    ensure!(hosts.is_open_in_clear()?, "without an agent there is nobody to refuse");

    let token = daemons.token(hosts.service)?;
    let agent = Process::spawn(&mut hosts.service.agent_command(&token)?)?;
    agent.wait_for_line("hooks attached", DEADLINE)?;
    hosts.ensure_closed_in_clear()?;
    agent.wait_for_line(": ready", DEADLINE)?;
    daemons.start_agent(hosts.client)?;
    for _ in 0..5 {
        ensure!(daemons.ask_through_mesh(hosts.client, hosts.service, PORT)? == greeting(hosts.service));
    }
    hosts.ensure_closed_in_clear()
}

#[test]
fn a_host_that_lost_what_it_kept_is_closed_until_a_server_answers() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let hosts = Strict::hosts(&lab)?;
    let mut daemons = Daemons::server_only(&lab)?;
    let _listener = hosts.start(&mut daemons)?;
    let _permissive = greet(hosts.service, PORT + 1)?;
    let is_permissive_open = || Ok(ask(hosts.outsider, &hosts.service.ipv4().to_string(), PORT + 1).is_ok());
    daemons.kill_server()?;

    // After a boot, and with maps of another version whose rules are newer than what is on disk.
    let lose: [fn(&mut Daemons<'_>, &Host) -> Result<()>; 2] = [
        |daemons, service| {
            daemons.power_off(service)?;
            Ok(std::fs::write(service.data_directory().join("cache.sealed"), b"damaged")?)
        },
        |daemons, service| {
            daemons.kill_agent(service)?;
            let pins = service.bpf_directory();
            for entry in std::fs::read_dir(pins)? {
                let path = entry?.path();
                if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"layout-")) {
                    std::fs::rename(path, pins.join("layout-0"))?;
                }
            }
            Ok(std::fs::create_dir(pins.join("catalog-99999999"))?)
        },
    ];
    for lose in lose {
        lose(&mut daemons, hosts.service)?;
        let token = daemons.token(hosts.service)?;
        let agent = Process::spawn(&mut hosts.service.agent_command(&token)?)?;
        agent.wait_for_line("hooks attached", DEADLINE)?;
        hosts.ensure_closed_in_clear()?;
        ensure!(!is_permissive_open()?, "nobody can tell any more that it is permissive");
        daemons.adopt_agent(hosts.service, agent);
        daemons.start_server()?;
        wait_until("what is permissive is open", is_permissive_open)?;
        hosts.ensure_closed_in_clear()?;
        daemons.ask_through_mesh(hosts.client, hosts.service, PORT)?;
        daemons.kill_server()?;
    }
    Ok(())
}

#[test]
fn when_every_certificate_has_ended_strict_stays_closed_and_servers_that_return_heal_all() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let hosts = Strict::hosts(&lab)?;
    let mut daemons = Daemons::server_with(&lab, &["--certificate-lifetime", "10s"])?;
    let _listener = hosts.start(&mut daemons)?;
    daemons.kill_server()?;
    for host in [hosts.service, hosts.client] {
        wait_until("its certificate has ended", || {
            Ok(text(&murmesh(host, &["status"])?.stdout).contains("the certificate has expired"))
        })?;
    }
    hosts.ensure_closed_in_clear()?;
    // Those of workloads may end a moment later.
    let is_refused = || Ok(ask(hosts.client, "fcs00", PORT).map_or(true, |said| said.is_empty()));
    wait_until("an ended certificate carries nothing", is_refused)?;
    daemons.agent(hosts.client)?.wait_for_line("reason=\"no certificate for", DEADLINE)?;
    let said = text(&murmesh(hosts.service, &["status"])?.stdout);
    ensure!(said.contains("strict services stay closed"), "{said}");
    // A restart changes nothing of it.
    daemons.power_off(hosts.service)?;
    daemons.start_agent(hosts.service)?;
    hosts.ensure_closed_in_clear()?;

    daemons.start_server()?;
    wait_until("members talk again", || {
        Ok(ask(hosts.client, "fcs00", PORT).is_ok_and(|said| said == greeting(hosts.service)))
    })?;
    hosts.ensure_closed_in_clear()?;
    daemons.ask_through_mesh(hosts.client, hosts.service, PORT)?;
    Ok(())
}
