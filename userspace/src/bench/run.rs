//! Interleaved rounds: each round measures every path for a workload before the next workload.

use std::{
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    BenchError, Figure, Kind, Machine, Path, Report, Workload, load,
    progress::Progress,
    report::PathReport,
    statistics::percentile,
    witness::{Witness, judge},
};

/// Workers that open connections at once.
const CONNECTION_WORKERS: usize = 32;

/// Connections with echoes at once.
const ECHO_CONNECTIONS: usize = 16;

/// Bulk connections at once.
const BULK_CONNECTIONS: usize = 4;

/// Idle connections per round; those of earlier rounds stay open.
const IDLE_CONNECTIONS: usize = 500;

/// Connections that show, before anything is measured, whether a path is what it says.
const TRIAL_CONNECTIONS: usize = 16;

/// How often memory is looked at until it does not change any more.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// How long memory may take to settle.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Debug)]
pub struct Plan {
    /// The paths.
    pub paths: Vec<Path>,
    /// The loads, in this order.
    pub workloads: Vec<Workload>,
    /// How many times.
    pub rounds: usize,
    /// How long each load runs.
    pub span: Duration,
    /// Where the agent of this host is found.
    pub run_dir: PathBuf,
    /// The command, to be stated with the results.
    pub command: String,
}

/// Measures.
///
/// # Errors
/// A path fails, or is not what it says.
pub fn run(plan: &Plan) -> Result<Report, BenchError> {
    let witness = Witness::find(plan.run_dir.clone())?;
    let mut machine = Machine::this()?;
    let started_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut paths: Vec<Measured<'_>> =
        plan.paths.iter().map(|path| Measured::new(path, &witness)).collect::<Result<_, _>>()?;
    let progress = Progress::new();
    // Memory first: what a busy proxy has taken and keeps, idle connections would be given from.
    let (memory, others): (Vec<_>, Vec<_>) =
        plan.workloads.iter().partition(|workload| **workload == Workload::Memory);
    take_rounds(&mut paths, &memory, plan, &progress)?;
    paths.iter_mut().for_each(|measured| measured.idle.clear());
    take_rounds(&mut paths, &others, plan, &progress)?;
    drop(progress);
    machine.note_load()?;
    Ok(Report {
        command: plan.command.clone(),
        started_at,
        machine,
        seconds: plan.span.as_secs_f64(),
        paths: paths.into_iter().map(|measured| measured.report).collect(),
    })
}

fn take_rounds(
    paths: &mut [Measured<'_>],
    workloads: &[Workload],
    plan: &Plan,
    progress: &Progress,
) -> Result<(), BenchError> {
    for round in 0..plan.rounds {
        for workload in workloads {
            // Another path is the first in each round, so that none profits from its place.
            let count = paths.len();
            for turn in 0..count {
                let measured = &mut paths[(turn + round) % count];
                let (name, number) = (&measured.path.name, round + 1);
                progress.show(&format!("round {number} of {}: {workload:?}, {name}", plan.rounds));
                measured.take(*workload, plan.span)?;
            }
        }
    }
    Ok(())
}

/// A path, and what was found so far.
struct Measured<'a> {
    path: &'a Path,
    witness: &'a Witness,
    /// Kept open while memory is measured, so that each round finds what is added.
    idle: Vec<TcpStream>,
    report: PathReport,
}

impl<'a> Measured<'a> {
    /// Tries the path.
    fn new(path: &'a Path, witness: &'a Witness) -> Result<Self, BenchError> {
        witness.ensure_possible(path.kind)?;
        let report = PathReport::new(&path.name, path.kind);
        let measured = Self { path, witness, idle: Vec::new(), report };
        measured.watched(|| (0..TRIAL_CONNECTIONS).try_for_each(|_| load::fortune(&path.target)))?;
        Ok(measured)
    }

    fn take(&mut self, workload: Workload, span: Duration) -> Result<(), BenchError> {
        match workload {
            Workload::Fortune => self.fortune(span),
            Workload::Connections => self.connections(span),
            Workload::Echo => self.echo(span),
            Workload::Echoes => self.echoes(span),
            Workload::Bulk => self.bulk(span),
            Workload::Memory => self.memory(),
        }
    }

    fn fortune(&mut self, span: Duration) -> Result<(), BenchError> {
        let Path { target, proxies, .. } = self.path;
        let outcome = self.watched(|| {
            load::fortunes(target, proxies, 1, span / 10)?;
            load::fortunes(target, proxies, 1, span)
        })?;
        self.note_latencies(outcome, Figure::FortuneMedian, Figure::FortuneTail);
        Ok(())
    }

    fn connections(&mut self, span: Duration) -> Result<(), BenchError> {
        let Path { target, proxies, .. } = self.path;
        let outcome = self.watched(|| {
            load::fortunes(target, proxies, CONNECTION_WORKERS, span / 10)?;
            load::fortunes(target, proxies, CONNECTION_WORKERS, span)
        })?;
        self.note_rate(&outcome, Figure::ConnectionRate, Figure::ConnectionCpu);
        Ok(())
    }

    fn echo(&mut self, span: Duration) -> Result<(), BenchError> {
        let Path { target, proxies, .. } = self.path;
        let outcome = self.watched(|| {
            load::echoes(target, proxies, 1, span / 10)?;
            load::echoes(target, proxies, 1, span)
        })?;
        self.note_latencies(outcome, Figure::EchoMedian, Figure::EchoTail);
        Ok(())
    }

    fn echoes(&mut self, span: Duration) -> Result<(), BenchError> {
        let Path { target, proxies, .. } = self.path;
        let outcome = self.watched(|| {
            load::echoes(target, proxies, ECHO_CONNECTIONS, span / 10)?;
            load::echoes(target, proxies, ECHO_CONNECTIONS, span)
        })?;
        self.note_rate(&outcome, Figure::EchoRate, Figure::EchoCpu);
        Ok(())
    }

    fn bulk(&mut self, span: Duration) -> Result<(), BenchError> {
        let Path { target, proxies, .. } = self.path;
        let (one, four) = (1, BULK_CONNECTIONS);
        let down_one = self.watched(|| load::download(target, proxies, one, span))?;
        let down_four = self.watched(|| load::download(target, proxies, four, span))?;
        let up_one = self.watched(|| load::upload(target, proxies, one, span))?;
        let up_four = self.watched(|| load::upload(target, proxies, four, span))?;
        for (figure, outcome) in [
            (Figure::DownloadOne, &down_one),
            (Figure::DownloadFour, &down_four),
            (Figure::UploadOne, &up_one),
            (Figure::UploadFour, &up_four),
        ] {
            let bits = outcome.results.iter().sum::<u64>() as f64 * 8.0;
            self.report.note(figure, bits / outcome.elapsed.as_secs_f64() / 1e9);
        }
        if !proxies.is_empty() {
            let bytes: u64 = down_four.results.iter().chain(&up_four.results).sum();
            let cpu = down_four.cpu + up_four.cpu;
            self.report.note(Figure::GigabyteCpu, cpu.as_secs_f64() / (bytes as f64 / 1e9));
        }
        Ok(())
    }

    fn memory(&mut self) -> Result<(), BenchError> {
        let Path { target, proxies, .. } = self.path;
        if proxies.is_empty() {
            return Ok(());
        }
        let before = proxies.resident_kib()?;
        let opened = self.watched(|| load::idle(target, IDLE_CONNECTIONS))?;
        self.idle.extend(opened);
        let growth = settled(|| proxies.resident_kib())?.saturating_sub(before);
        self.report.note(Figure::IdleMemory, growth as f64 / IDLE_CONNECTIONS as f64);
        Ok(())
    }

    /// Does `work`, and makes sure that its connections took the path.
    fn watched<T>(&self, work: impl FnOnce() -> Result<T, BenchError>) -> Result<T, BenchError> {
        let Path { kind, target, .. } = self.path;
        let (opened, carried) = (target.opened(), self.carried()?);
        let result = work()?;
        if let (Some(before), Some(after)) = (carried, self.carried()?) {
            judge(*kind, target.opened() - opened, after.saturating_sub(before))?;
        }
        Ok(result)
    }

    /// A proxy at an address of its own needs no witness.
    fn carried(&self) -> Result<Option<u64>, BenchError> {
        if self.path.kind == Kind::Via { Ok(None) } else { self.witness.streams() }
    }

    fn note_latencies(&mut self, outcome: load::Outcome<Vec<u32>>, median: Figure, tail: Figure) {
        let mut samples = outcome.results.concat();
        for (figure, per_cent) in [(median, 50), (tail, 99)] {
            if let Some(nanoseconds) = percentile(&mut samples, per_cent) {
                self.report.note(figure, f64::from(nanoseconds) / 1e3);
            }
        }
    }

    fn note_rate(&mut self, outcome: &load::Outcome<Vec<u32>>, rate: Figure, cpu: Figure) {
        let operations = outcome.operations() as f64;
        self.report.note(rate, operations / outcome.elapsed.as_secs_f64());
        if !self.path.proxies.is_empty() {
            self.report.note(cpu, outcome.cpu.as_secs_f64() * 1e6 / operations);
        }
    }
}

/// The value once two looks in a row find the same, or the last one.
fn settled(look: impl Fn() -> Result<u64, BenchError>) -> Result<u64, BenchError> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut last = look()?;
    loop {
        thread::sleep(SETTLE_INTERVAL);
        let now = look()?;
        if now == last || Instant::now() >= deadline {
            return Ok(now);
        }
        last = now;
    }
}
