//! `murmesh bench run`: from arguments to a plan.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::report::FormOptions;
use crate::{
    bench::{Kind, Path, Plan, Processes, Target, Workload, serve},
    bpf::DEFAULT_MARK,
    cli::RunDirectory,
    local::AGENT_SOCKET,
    sandbox::raise_descriptor_limit,
};

/// Arguments of `murmesh bench run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name or address of the host on which `murmesh bench serve` runs.
    host: String,
    /// First of the four ports there.
    #[arg(long, default_value_t = serve::DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..=65532), value_name = "PORT")]
    port: u16,
    /// What to measure: `direct` (past the mesh), `mesh`, or a name given by --via. Ratios are to `direct`.
    #[arg(long, value_delimiter = ',', default_value = "direct,mesh", value_name = "NAME")]
    paths: Vec<String>,
    /// A further path: four consecutive ports from this address on lead to the four services, as through four
    /// sidecars or another proxy. It is measured after those of --paths that it is not named in.
    #[arg(long, value_parser = parse_via, value_name = "NAME=IP:PORT")]
    via: Vec<(String, SocketAddr)>,
    /// Processes on this machine whose CPU time and memory belong to a path, with their descendants. Without it
    /// the mesh has those of this host's agent.
    #[arg(long, value_parser = parse_cpu_of, value_name = "NAME=PID[,PID…]")]
    cpu_of: Vec<(String, Vec<u32>)>,
    /// Loads to measure with [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LOAD")]
    loads: Vec<Workload>,
    /// How many times to measure everything.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "NUMBER")]
    rounds: u16,
    /// How long each load runs on each path.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    duration: Duration,
    /// The agent's mark (SO_MARK), by which direct connections pass its hooks.
    #[arg(long, default_value_t = DEFAULT_MARK, value_name = "NUMBER")]
    mark: u32,
    #[command(flatten)]
    run_directory: RunDirectory,
    #[command(flatten)]
    pub(super) form: FormOptions,
}

impl RunArgs {
    /// What to measure.
    ///
    /// # Errors
    /// A name is unknown, or a path is not told where it leads.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        raise_descriptor_limit();
        let mut names = self.paths.clone();
        names.extend(self.via.iter().map(|(name, _)| name.clone()).filter(|name| !self.paths.contains(name)));
        for (name, _) in &self.cpu_of {
            ensure!(
                names.contains(name),
                "--cpu-of {name}: there is no such path; there are {}",
                names.join(", ")
            );
        }
        let agent = agent_process(&self.run_directory)?;
        let workloads =
            if self.loads.is_empty() { Workload::value_variants().to_vec() } else { self.loads.clone() };
        Ok(Plan {
            paths: names.iter().map(|name| self.path(name, agent)).collect::<anyhow::Result<_>>()?,
            workloads,
            rounds: usize::from(self.rounds),
            span: self.duration,
            run_dir: self.run_directory.run_dir.clone(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        })
    }

    fn path(&self, name: &str, agent: Option<u32>) -> anyhow::Result<Path> {
        let (kind, base) = self.destination(name)?;
        // Without an agent there is nothing to pass, and no right to set a mark is needed.
        let mark = agent.filter(|_| kind == Kind::Direct).map(|_| self.mark);
        let named = self.cpu_of.iter().filter(|(path, _)| path == name).flat_map(|(_, processes)| processes);
        let mut processes: Vec<u32> = named.copied().collect();
        if processes.is_empty() && kind == Kind::Mesh {
            processes.extend(agent);
        }
        let proxies = Processes::new(processes);
        Ok(Path { name: name.to_owned(), kind, target: Target::new(base, mark), proxies })
    }

    fn destination(&self, name: &str) -> anyhow::Result<(Kind, SocketAddr)> {
        match name {
            "direct" => Ok((Kind::Direct, self.services()?)),
            "mesh" => Ok((Kind::Mesh, self.services()?)),
            _ => match self.via.iter().find(|(via, _)| via == name) {
                Some((_, base)) => Ok((Kind::Via, *base)),
                None => bail!("--paths {name}: say where it is with --via {name}=IP:PORT"),
            },
        }
    }

    fn services(&self) -> anyhow::Result<SocketAddr> {
        let host = &self.host;
        let mut addresses = (host.as_str(), self.port)
            .to_socket_addrs()
            .with_context(|| format!("{host} is neither an address nor a name that this host knows"))?;
        addresses.next().with_context(|| format!("{host} has no address"))
    }
}

/// The process of this host's agent, if one runs.
fn agent_process(run_directory: &RunDirectory) -> anyhow::Result<Option<u32>> {
    let path = run_directory.run_dir.join(AGENT_SOCKET);
    let Ok(socket) = UnixStream::connect(path) else { return Ok(None) };
    let credentials = getsockopt(&socket, PeerCredentials)?;
    Ok(Some(u32::try_from(credentials.pid())?))
}

fn parse_via(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("use NAME=IP:PORT")?;
    let address: SocketAddr = address.parse().map_err(|_| format!("{address:?} is not IP:PORT"))?;
    if ["direct", "mesh", ""].contains(&name) {
        return Err(format!("{name:?} cannot be the name of a further path"));
    }
    if address.port() > u16::MAX - 3 {
        return Err(format!("{address} is the first of four ports, and there are not so many after it"));
    }
    Ok((name.to_owned(), address))
}

fn parse_cpu_of(text: &str) -> Result<(String, Vec<u32>), String> {
    let (name, processes) = text.split_once('=').ok_or("use NAME=PID[,PID…]")?;
    let parse =
        |process: &str| process.parse().map_err(|_| format!("{process:?} is not the id of a process"));
    Ok((name.to_owned(), processes.split(',').map(parse).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_processes_are_named() {
        let address = "127.0.0.1:7100".parse().expect("literal");
        assert_eq!(parse_via("sidecar=127.0.0.1:7100"), Ok(("sidecar".to_owned(), address)));
        for wrong in ["127.0.0.1:7100", "mesh=127.0.0.1:1", "a=127.0.0.1", "a=127.0.0.1:65533"] {
            assert!(parse_via(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_cpu_of("mesh=1,2"), Ok(("mesh".to_owned(), vec![1, 2])));
        assert!(parse_cpu_of("mesh=1,x").is_err() && parse_cpu_of("1").is_err());
    }
}
