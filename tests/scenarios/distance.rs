//! What a connection costs where the way is long.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Distance, Host, Mesh};

/// Beside it, the time that programs take to start is small, also on a busy machine.
const ROUND_TRIP: Duration = Duration::from_millis(500);

const PORT: u16 = 8181;

/// A port that is never meshed.
const EXEMPT_PORT: u16 = 22;

/// Each of an agent's workers dials the first of its own tunnels; some asks later one is at rest in all of them.
const MOST_ASKS: usize = 10;

#[test]
fn a_fortune_over_a_warm_tunnel_takes_one_round_trip_where_plain_tcp_takes_two() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    let command =
        |port: u16| [format!("tcp-l:{port},bind=0,fork,reuseaddr"), "exec:/usr/games/fortune".into()];
    let _meshed = mesh.serve(service, PORT, "socat", command(PORT))?;
    let _plain = service.spawn("socat", command(EXEMPT_PORT))?;
    service.wait_listening(EXEMPT_PORT, DEADLINE)?;
    let _distance = Distance::between(client, service, ROUND_TRIP)?;

    let plain = time_of_fortune(client, EXEMPT_PORT)?;
    ensure!(plain >= ROUND_TRIP * 2, "plain TCP took only {plain:?}");
    let mut asked = Vec::new();
    while asked.last().is_none_or(|last| *last >= ROUND_TRIP * 2) {
        ensure!(asked.len() < MOST_ASKS, "no fortune came in less than two round trips: {asked:?}");
        asked.push(time_of_fortune(client, PORT)?);
    }
    ensure!(asked.iter().all(|time| *time >= ROUND_TRIP), "the way was not long: {asked:?}");
    mesh.ensure_carried(asked.len() as u64)
}

/// From the start of a program that asks for it to its end.
fn time_of_fortune(client: &Host, port: u16) -> Result<Duration> {
    let begin = Instant::now();
    let output = client.run("nc", ["fcs00", &port.to_string()], b"", DEADLINE)?;
    let time = begin.elapsed();
    ensure!(output.status.success() && !output.stdout.is_empty(), "nc fcs00 {port}: {output:?}");
    Ok(time)
}
