//! The lab itself: what every other scenario relies on.

use std::env;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Distance, Host, Lab, Process, Topology};

const SECONDS: Duration = Duration::from_secs(10);

/// A host says hello to everybody who connects to its port 8000.
fn greet(host: &Host, family: &str) -> Result<Process> {
    let listen = format!("tcp{family}-listen:8000,fork,reuseaddr");
    let server = host.spawn("socat", [listen.as_str(), &format!("exec:echo hello from {}", host.name())])?;
    host.wait_listening(8000, SECONDS)?;
    Ok(server)
}

fn ask(client: &Host, family: &str, name: &str) -> Result<String> {
    let output = client.run("nc", [family, name, "8000"], b"", SECONDS)?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn hosts_reach_each_other_by_name_over_both_families() -> Result<()> {
    let lab = Lab::new(Topology { services: 2, ..Topology::default() })?;
    let _servers = [greet(lab.host("fcs00")?, "4")?, greet(lab.host("fcs01")?, "6")?];
    assert_eq!(ask(lab.host("fcc00")?, "-4", "fcs00")?, "hello from fcs00\n");
    assert_eq!(ask(lab.host("murmesh00")?, "-6", "ip6-fcs01")?, "hello from fcs01\n");
    Ok(())
}

#[test]
fn two_labs_with_the_same_names_and_addresses_do_not_meet() -> Result<()> {
    let (one, other) = (Lab::new(Topology::default())?, Lab::new(Topology::default())?);
    let _server = greet(one.host("fcs00")?, "4")?;
    assert_eq!(ask(one.host("fcc00")?, "-4", "fcs00")?, "hello from fcs00\n");
    let elsewhere = other.host("fcc00")?.run("nc", ["-4", "fcs00", "8000"], b"", SECONDS)?;
    assert_eq!((elsewhere.status.code(), elsewhere.stdout.as_slice()), (Some(1), b"".as_slice()));
    Ok(())
}

#[test]
fn input_output_and_exit_code_pass_through() -> Result<()> {
    let lab = Lab::new(Topology::default())?;
    let script = "read line; echo \"$line\"; echo oops >&2; exit 7";
    let output = lab.host("fcc00")?.run("sh", ["-c", script], b"a line\n", SECONDS)?;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"a line\n".as_slice(), b"oops\n".as_slice())
    );
    Ok(())
}

#[test]
fn a_process_has_the_name_and_the_cgroup_of_its_host_and_sees_pins() -> Result<()> {
    let lab = Lab::new(Topology::default())?;
    let host = lab.host("fcc00")?;
    let output =
        host.run("sh", ["-c", "hostname; cat /proc/self/cgroup; stat -f -c %T /sys/fs/bpf"], b"", SECONDS)?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(said.starts_with("fcc00\n"), "{said}");
    ensure!(said.contains(&format!("0::/murmesh-lab/{}/fcc00\n", lab.name())), "{said}");
    ensure!(said.ends_with("bpf_fs\n"), "{said}");
    ensure!(host.cgroup().join("cgroup.procs").exists());
    Ok(())
}

#[test]
fn a_capture_has_every_packet_up_to_its_end() -> Result<()> {
    let lab = Lab::new(Topology::default())?;
    let (client, server) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let _server = greet(server, "4")?;
    let capture = client.capture("tcp port 8000")?;
    for _ in 0..20 {
        ask(client, "-4", "fcs00")?;
    }
    let trace = capture.stop()?;
    let greetings = trace.streams().into_iter().filter(|stream| stream.bytes == b"hello from fcs00\n");
    assert_eq!(greetings.count(), 20);
    ensure!(trace.packets().iter().all(|packet| packet.uses_port(8000)));
    Ok(())
}

#[test]
fn distance_is_a_round_trip_per_connect_over_both_families_until_it_ends() -> Result<()> {
    const ROUND_TRIP: Duration = Duration::from_millis(200);
    let lab = Lab::new(Topology { clients: 2, ..Topology::default() })?;
    let (near, far, server) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let listeners = server.addresses().map(|address| {
        let address = SocketAddr::new(address, 8000);
        Ok((address, server.in_namespace(|| Ok(TcpListener::bind(address)?))?))
    });
    let listeners = listeners.into_iter().collect::<Result<Vec<_>>>()?;
    let distance = Distance::between(far, server, ROUND_TRIP)?;
    for (address, _) in &listeners {
        let (apart, together) = (time_of_connect(far, *address)?, time_of_connect(near, *address)?);
        ensure!(apart >= ROUND_TRIP && apart < ROUND_TRIP * 3 / 2, "{address}: {apart:?}");
        ensure!(together < ROUND_TRIP, "{address}, from another host: {together:?}");
    }
    drop(distance);
    for (address, _) in &listeners {
        let together = time_of_connect(far, *address)?;
        ensure!(together < ROUND_TRIP, "{address}, afterwards: {together:?}");
    }
    Ok(())
}

/// The shortest of some: others have to wait for a busy machine.
fn time_of_connect(client: &Host, address: SocketAddr) -> Result<Duration> {
    let connect = |_| {
        let begin = Instant::now();
        TcpStream::connect(address)?;
        Ok(begin.elapsed())
    };
    let times = client.in_namespace(|| (0..5).map(connect).collect::<Result<Vec<_>>>())?;
    times.into_iter().min().context("five connects have a shortest")
}

#[test]
fn dropping_a_lab_ends_its_processes_and_leaves_nothing() -> Result<()> {
    let lab = Lab::new(Topology::default())?;
    let (name, cgroup) = (lab.name().to_owned(), lab.host("fcc00")?.cgroup().to_owned());
    let mut orphan = lab.host("fcc00")?.spawn("sh", ["-c", "sleep 1000 & echo started; wait"])?;
    orphan.wait_for_line("started", SECONDS)?;
    drop(lab);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&orphan.wait(SECONDS)?), Some(9));
    assert_nothing_is_left(&name);
    ensure!(!cgroup.exists());
    Ok(())
}

#[test]
fn what_a_killed_process_left_behind_is_swept_by_the_next_lab() -> Result<()> {
    const VICTIM: &str = "MURMESH_LAB_VICTIM";
    if env::var_os(VICTIM).is_some() {
        return make_a_lab_and_wait();
    }
    // This test run again, as the process that is killed while it has a lab.
    let mut victim = Command::new(env::current_exe()?);
    let name = "lab::what_a_killed_process_left_behind_is_swept_by_the_next_lab";
    victim.args(["--exact", name, "--nocapture"]).env(VICTIM, "1").stdin(Stdio::null());
    let victim = Process::spawn(&mut victim)?;
    let line = victim.wait_for_line("lab is up: ", SECONDS)?;
    let name = line.rsplit(' ').next().context("the line names the lab")?.to_owned();
    ensure!(Path::new("/run/murmesh-lab").join(&name).exists());
    drop(victim);

    let _next = Lab::new(Topology::default())?;
    assert_nothing_is_left(&name);
    Ok(())
}

fn make_a_lab_and_wait() -> Result<()> {
    let lab = Lab::new(Topology::default())?;
    let mut process = lab.host("fcc00")?.spawn("sleep", ["1000"])?;
    println!("\nlab is up: {}", lab.name());
    process.wait(Duration::from_secs(100))?;
    Ok(())
}

fn assert_nothing_is_left(name: &str) {
    for directory in ["/run/murmesh-lab", "/sys/fs/bpf/murmesh-lab"] {
        let path = Path::new(directory).join(name);
        assert!(!path.exists(), "{} is still there", path.display());
    }
    let prefix = format!("murmesh-lab.{name}.");
    let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left: Vec<_> =
        namespaces.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).collect();
    assert!(left.is_empty(), "{left:?}");
}
