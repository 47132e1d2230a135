//! The loads. Nothing is allocated while one runs.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use super::{
    BenchError, Processes, Service, Target,
    serve::{CHUNK, FORTUNE},
};

/// Samples that a worker has room for; it stops early when they are used up.
const MAX_SAMPLES: usize = 1 << 20;

/// Bytes of an echo.
const ECHO: usize = 64;

/// What ran, for how long, at which cost.
#[derive(Debug)]
pub struct Outcome<T> {
    /// What each worker returned.
    pub results: Vec<T>,
    /// From the common start to the end of the last worker.
    pub elapsed: Duration,
    /// CPU time of the proxies in that time.
    pub cpu: Duration,
}

impl Outcome<Vec<u32>> {
    /// Operations done.
    pub fn operations(&self) -> usize {
        self.results.iter().map(Vec::len).sum()
    }
}

/// Whole connections to the fortune service on `workers` threads; nanoseconds of each.
pub fn fortunes(
    target: &Target,
    proxies: &Processes,
    workers: usize,
    span: Duration,
) -> Result<Outcome<Vec<u32>>, BenchError> {
    repeat(proxies, workers, span, || Ok(()), |()| fortune(target))
}

/// Echoes on `connections`, each with a thread; nanoseconds of each.
pub fn echoes(
    target: &Target,
    proxies: &Processes,
    connections: usize,
    span: Duration,
) -> Result<Outcome<Vec<u32>>, BenchError> {
    repeat(proxies, connections, span, || target.dial(Service::Echo), echo)
}

/// Bytes received from the source service on each of `connections`.
pub fn download(
    target: &Target,
    proxies: &Processes,
    connections: usize,
    span: Duration,
) -> Result<Outcome<u64>, BenchError> {
    together(
        proxies,
        connections,
        || Ok(vec![0; CHUNK]),
        |mut buffer| {
            let deadline = Instant::now() + span;
            let mut connection = target.dial(Service::Source)?;
            let mut received = 0;
            while Instant::now() < deadline {
                let length =
                    connection.read(&mut buffer).map_err(BenchError::connection("receiving bulk"))?;
                if length == 0 {
                    return Err(wrong(Service::Source, received, u64::MAX));
                }
                received += length as u64;
            }
            // The source never ends by itself: a reset ends it at once.
            let socket = SockRef::from(&connection);
            socket.set_linger(Some(Duration::ZERO)).map_err(BenchError::connection("ending bulk"))?;
            Ok(received)
        },
    )
}

/// Bytes sent to the sink service on each of `connections`, and acknowledged by it.
pub fn upload(
    target: &Target,
    proxies: &Processes,
    connections: usize,
    span: Duration,
) -> Result<Outcome<u64>, BenchError> {
    together(
        proxies,
        connections,
        || Ok(vec![b'x'; CHUNK]),
        |buffer| {
            let deadline = Instant::now() + span;
            let mut connection = target.dial(Service::Sink)?;
            let mut sent = 0;
            while Instant::now() < deadline {
                connection.write_all(&buffer).map_err(BenchError::connection("sending bulk"))?;
                sent += buffer.len() as u64;
            }
            acknowledged(&connection, sent)
        },
    )
}

/// Opens `count` connections that each have carried an echo, and are idle now.
pub fn idle(target: &Target, count: usize) -> Result<Vec<TcpStream>, BenchError> {
    let open = |_| {
        let mut connection = target.dial(Service::Echo)?;
        echo(&mut connection)?;
        Ok(connection)
    };
    (0..count).map(open).collect()
}

/// One connection, from connect to the end of the answer.
pub fn fortune(target: &Target) -> Result<(), BenchError> {
    let mut connection = target.dial(Service::Fortune)?;
    let mut buffer = [0; FORTUNE.len() + 1];
    let mut received = 0;
    loop {
        match connection
            .read(&mut buffer[received..])
            .map_err(BenchError::connection("receiving a fortune"))?
        {
            0 if received == FORTUNE.len() => return Ok(()),
            0 => return Err(wrong(Service::Fortune, received as u64, FORTUNE.len() as u64)),
            length => received += length,
        }
    }
}

fn echo(connection: &mut TcpStream) -> Result<(), BenchError> {
    let failed = BenchError::connection("echoing");
    connection.write_all(&[b'x'; ECHO]).map_err(&failed)?;
    connection.read_exact(&mut [0; ECHO]).map_err(&failed)
}

fn acknowledged(mut connection: &TcpStream, sent: u64) -> Result<u64, BenchError> {
    let failed = BenchError::connection("waiting for the sink's count");
    connection.shutdown(Shutdown::Write).map_err(&failed)?;
    let mut count = [0; 8];
    connection.read_exact(&mut count).map_err(&failed)?;
    let received = u64::from_be_bytes(count);
    if received == sent { Ok(sent) } else { Err(wrong(Service::Sink, received, sent)) }
}

fn wrong(service: Service, received: u64, expected: u64) -> BenchError {
    BenchError::Answer { service: service.name(), received, expected }
}

/// Repeats `step` on `workers` threads for `span`, and takes the nanoseconds of each.
fn repeat<S: Send>(
    proxies: &Processes,
    workers: usize,
    span: Duration,
    prepare: impl Fn() -> Result<S, BenchError> + Sync,
    step: impl Fn(&mut S) -> Result<(), BenchError> + Sync,
) -> Result<Outcome<Vec<u32>>, BenchError> {
    together(
        proxies,
        workers,
        || Ok((prepare()?, Vec::with_capacity(MAX_SAMPLES))),
        |(mut state, mut samples)| {
            let mut begin = Instant::now();
            let deadline = begin + span;
            while begin < deadline && samples.len() < MAX_SAMPLES {
                step(&mut state)?;
                let end = Instant::now();
                samples.push(u32::try_from((end - begin).as_nanos()).unwrap_or(u32::MAX));
                begin = end;
            }
            Ok(samples)
        },
    )
}

/// Runs `work` on `workers` threads that start at the same moment, once all of them are prepared.
fn together<S: Send, T: Send>(
    proxies: &Processes,
    workers: usize,
    prepare: impl Fn() -> Result<S, BenchError> + Sync,
    work: impl Fn(S) -> Result<T, BenchError> + Sync,
) -> Result<Outcome<T>, BenchError> {
    let barrier = Barrier::new(workers + 1);
    let worker = || {
        let prepared = prepare();
        // Also when it failed: the others wait.
        barrier.wait();
        barrier.wait();
        work(prepared?)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        barrier.wait();
        let cpu = proxies.cpu();
        let begin = Instant::now();
        barrier.wait();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let results = joined.collect::<Result<_, _>>()?;
        let elapsed = begin.elapsed();
        Ok(Outcome { results, elapsed, cpu: proxies.cpu()?.saturating_sub(cpu?) })
    })
}
