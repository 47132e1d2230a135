//! The services that are measured: four, on consecutive ports.

use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use crate::socket;

/// First port, unless another is named.
pub const DEFAULT_PORT: u16 = 7000;

/// What the fortune service says.
pub const FORTUNE: &[u8; 120] =
    b"A day for firm decisions!!!!!  Or is it?  Measure three times, quote the median, and say what the spread was. -- Bench.\n";

/// Bytes per read and write of bulk transfers.
pub const CHUNK: usize = 256 * 1024;

/// Of a thread that serves one connection. It needs little, and there may be thousands.
const STACK: usize = 64 * 1024;

/// One of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Sends [`FORTUNE`] at once and closes: the server speaks first.
    Fortune,
    /// Sends back what it receives.
    Echo,
    /// Sends as fast as it can until the client closes.
    Source,
    /// Receives until the client ends its direction, then answers with the number of bytes (64 bits, big-endian).
    Sink,
}

impl Service {
    /// All, in the order of their ports.
    pub const ALL: [Self; 4] = [Self::Fortune, Self::Echo, Self::Source, Self::Sink];

    /// The service's port where the first is at `base`.
    pub fn port(self, base: u16) -> u16 {
        base + self as u16
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fortune => "fortune",
            Self::Echo => "echo",
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }

    fn serve(self, connection: &TcpStream) -> io::Result<()> {
        match self {
            Self::Fortune => (&*connection).write_all(FORTUNE),
            Self::Echo => echo(connection),
            Self::Source => source(connection),
            Self::Sink => sink(connection),
        }
    }
}

/// Binds the four services from port `base` on, at all addresses of both families.
///
/// # Errors
/// A port is in use or may not be used.
pub fn bind(base: u16) -> io::Result<Vec<(Service, TcpListener)>> {
    let bind = |service: Service| {
        let listener = socket::listener(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), service.port(base)))?;
        listener.set_nonblocking(false)?;
        Ok((service, listener))
    };
    Service::ALL.into_iter().map(bind).collect()
}

/// Serves until a listener fails.
///
/// # Errors
/// A listener cannot accept any more.
pub fn serve(listeners: Vec<(Service, TcpListener)>) -> io::Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (service, listener) in listeners {
            let acceptors = if service == Service::Fortune { cores } else { 1 };
            for _ in 0..acceptors {
                let listener = listener.try_clone()?;
                threads.push(scope.spawn(move || accept(service, &listener)));
            }
        }
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })
}

fn accept(service: Service, listener: &TcpListener) -> io::Result<()> {
    loop {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        // A client that goes away is its own business.
        if service == Service::Fortune {
            let _ = service.serve(&connection);
        } else {
            let serve = move || drop(service.serve(&connection));
            thread::Builder::new().stack_size(STACK).spawn(serve)?;
        }
    }
}

fn echo(mut connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            length => connection.write_all(&buffer[..length])?,
        }
    }
}

fn source(mut connection: &TcpStream) -> io::Result<()> {
    let chunk = vec![b'x'; CHUNK];
    loop {
        connection.write_all(&chunk)?;
    }
}

fn sink(mut connection: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0_u64;
    loop {
        match connection.read(&mut buffer)? {
            0 => break,
            length => received += length as u64,
        }
    }
    connection.write_all(&received.to_be_bytes())?;
    connection.shutdown(Shutdown::Write)
}
