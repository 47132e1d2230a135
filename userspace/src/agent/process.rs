//! Processes of this host, as /proc tells of them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use crate::cgroup;

/// Who a process is. Looked up, so it may be another one by the time that this is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStatus {
    /// Thread group.
    pub pid: u32,
    /// Its real user, by which the kernel half knows it.
    pub uid: u32,
    /// Its real group.
    pub gid: u32,
    /// What it calls itself.
    pub name: String,
    /// Its cgroup v2 directory.
    pub cgroup: PathBuf,
    /// The kernel's number of that.
    pub cgroup_id: u64,
}

impl ProcessStatus {
    /// `None` if there is no such process, or /proc does not show it.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let real = |name: &str| field(name)?.split_whitespace().next()?.parse().ok();
        let cgroup = cgroup::of(&cgroup::root().ok()?, pid).ok()?;
        Some(Self {
            pid,
            uid: real("Uid:")?,
            gid: real("Gid:")?,
            name: field("Name:")?.to_owned(),
            cgroup_id: fs::metadata(&cgroup).ok()?.ino(),
            cgroup,
        })
    }
}

/// The processes that have a TCP socket of this network namespace with this local address, or one that stands for it:
/// any address, and loopback, where redirected connections come from.
pub fn with_socket(address: SocketAddr) -> Vec<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets = tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(socket);
    let stands_for = |local: SocketAddr| {
        let ip = local.ip();
        local.port() == address.port() && (ip == address.ip() || ip.is_unspecified() || ip.is_loopback())
    };
    let wanted = sockets.filter(|(local, _)| stands_for(*local)).map(|(_, inode)| inode);
    let links: Vec<String> = wanted.map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| has_descriptor(*pid, &links)).collect()
}

fn has_descriptor(pid: u32, links: &[String]) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.into_iter().any(|target| target.to_str().is_some_and(|target| links.iter().any(|l| l == target)))
}

/// Local address and inode of one line. Source: proc_pid_net(5).
fn socket(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    let inode = fields.nth(7)?.parse().ok()?;
    let address = SocketAddr::new(ip_address(ip)?, u16::from_str_radix(port, 16).ok()?);
    Some((address, inode))
}

/// Words of 32 bits in host order, in hexadecimal.
fn ip_address(text: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let digits = text.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_process_is_found_by_its_number_and_by_its_socket() {
        let own = std::process::id();
        let status = ProcessStatus::of(own).expect("this process");
        assert_eq!((status.pid, status.uid), (own, nix::unistd::getuid().as_raw()));
        assert_eq!(status.gid, nix::unistd::getgid().as_raw());
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(address).expect("a free port");
            let port = listener.local_addr().expect("an address").port();
            assert!(with_socket(([127, 0, 0, 1], port).into()).contains(&own), "{address}");
        }
        assert_eq!(ProcessStatus::of(u32::MAX), None);
    }

    #[test]
    fn lines_of_both_families_are_read() {
        let line = |local: &str| {
            format!(
                "  0: {local} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 1 0 100 0 0 10 0"
            )
        };
        let read = |local: &str| socket(&line(local)).expect("a socket");
        assert_eq!(read("0100007F:1F90"), (([127, 0, 0, 1], 8080).into(), 4242));
        assert_eq!(read("0000000000000000FFFF00000100007F:0050").0, ([127, 0, 0, 1], 80).into());
        assert_eq!(socket("garbage"), None);
    }
}
