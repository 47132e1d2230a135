//! A container with a network namespace of its own and a way out of it: programs there are not in the mesh.

use std::process::Output;

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology};

use crate::support::{DEADLINE, Daemons, greet, greeting, skipped, text, wait_for_endpoint, wait_until};

const STRICT: u16 = 8181;
const PERMISSIVE: u16 = 8182;

/// Of the container's only interface, and of its host's end of that.
const INSIDE: &str = "172.31.0.2";
const OUTSIDE: &str = "172.31.0.1";
const NETWORK: &str = "172.31.0.0/30";

/// What a client says.
const SECRET: &[u8] = b"a secret of the container 41c2\n";

/// A network namespace in the cgroup of a host, with a route through it.
struct Container<'a> {
    host: &'a Host,
    process: Process,
}

impl<'a> Container<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        let sleeping = ["--net", "sh", "-c", "ip link set lo up && echo inside && exec sleep infinity"];
        let process = host.spawn("unshare", sleeping)?;
        process.wait_for_line("inside", DEADLINE)?;
        let container = Self { host, process };
        let id = container.process.id();
        let outside = format!(
            "ip link add container0 type veth peer name eth0 netns {id} && \
             ip address add {OUTSIDE}/30 dev container0 && ip link set container0 up && \
             echo 1 > /proc/sys/net/ipv4/ip_forward"
        );
        host.spawn("sh", ["-c", &outside])?.succeed(DEADLINE)?;
        let inside = format!(
            "ip address add {INSIDE}/30 dev eth0 && ip link set eth0 up && ip route add default via {OUTSIDE}"
        );
        let configured = container.run(&["sh", "-c", &inside], b"")?;
        ensure!(configured.status.success(), "{configured:?}");
        Ok(container)
    }

    fn run(&self, command: &[&str], input: &[u8]) -> Result<Output> {
        let namespace = format!("--net=/proc/{}/ns/net", self.process.id());
        self.host.run("nsenter", [namespace.as_str()].iter().chain(command), input, DEADLINE)
    }

    /// What a service says to `input`.
    fn ask(&self, address: &str, port: u16, input: &[u8]) -> Result<String> {
        Ok(text(&self.run(&["nc", "-w2", address, &port.to_string()], input)?.stdout))
    }
}

#[test]
fn a_container_with_a_route_is_refused_by_strict_services_of_its_host_and_of_others_and_reaches_the_rest()
-> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, host, other) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let mut listeners = Vec::new();
    for host in [host, other] {
        for port in [STRICT, PERMISSIVE] {
            listeners.push(greet(host, port)?);
        }
    }
    let container = Container::start(host)?;
    other.spawn("ip", ["route", "add", NETWORK, "via", &host.ipv4().to_string()])?.succeed(DEADLINE)?;
    let (own, others) = (host.ipv4().to_string(), other.ipv4().to_string());
    let ways = [(OUTSIDE, host), (own.as_str(), host), (others.as_str(), other)];
    for port in [STRICT, PERMISSIVE] {
        wait_for_endpoint(host, other, port)?;
        wait_for_endpoint(other, host, port)?;
        for (address, answers) in ways {
            let answer = container.ask(address, port, b"")?;
            ensure!(answer == greeting(answers), "{address}:{port} said {answer:?}");
        }
    }
    for node in ["fcc00", "fcs00"] {
        let port = STRICT.to_string();
        let name = format!("strict-{node}");
        let set = ["service", "set", &name, "--host", node, "--port", &port, "--mode", "strict", "--force"];
        server.murmesh(set)?;
    }
    for (address, _) in ways {
        wait_until(&format!("{address} refuses"), || Ok(container.ask(address, STRICT, b"")?.is_empty()))?;
    }
    let wire = host.capture("tcp port 8181")?;
    for is_running in [true, false] {
        if !is_running {
            daemons.kill_agent(host)?;
        }
        for (address, answers) in ways {
            let answer = container.ask(address, STRICT, SECRET)?;
            ensure!(answer.is_empty(), "{address}: {answer:?} of a strict service");
            let answer = container.ask(address, PERMISSIVE, b"")?;
            ensure!(answer == greeting(answers), "{address}:{PERMISSIVE} said {answer:?}");
        }
    }
    let trace = wire.stop()?;
    ensure!(trace.packets().iter().all(|packet| packet.payload.is_empty()), "bytes went in clear");
    daemons.start_agent(host)?;
    wait_for_endpoint(host, other, STRICT)?;
    wait_until("the host itself is served", || {
        Ok(daemons.ask_through_mesh(host, other, STRICT).is_ok_and(|answer| answer == greeting(other)))
    })
}
