//! Many connections that are open at once, each of which can tell that it reaches from end to end.

use std::io::{self, Read as _, Write as _};
use std::iter::once;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::socket::{Dial, errno};

/// Arguments of `keep`.
#[derive(Args)]
pub struct Keep {
    /// Where to listen, on IPv4 and IPv6.
    port: u16,
}

impl Keep {
    /// Gives back every byte of every connection, until killed.
    pub fn run(self) -> Result<()> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)).context("bind")?;
        println!("listening");
        let mut kept: Vec<TcpStream> = Vec::new();
        loop {
            let descriptors = once(listener.as_fd()).chain(kept.iter().map(|stream| stream.as_fd()));
            let mut waiting: Vec<_> =
                descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
            poll(&mut waiting, PollTimeout::NONE)?;
            let ready: Vec<bool> = waiting.iter().map(|waiting| waiting.any() == Some(true)).collect();
            let mut streams = ready[1..].iter();
            kept.retain_mut(|stream| streams.next() != Some(&true) || give_back(stream).is_ok());
            if ready[0] {
                kept.push(listener.accept().context("accept")?.0);
            }
        }
    }
}

/// One byte that is there, or the end.
fn give_back(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

/// Arguments of `hold`.
#[derive(Args)]
pub struct Hold {
    destination: SocketAddr,
    /// How many connections.
    connections: usize,
    /// As many of these as can be made.
    #[arg(long)]
    at_most: bool,
}

impl Hold {
    /// Opens the connections, and prints `open`, how many there are, and why there are no more; at a line on stdin makes
    /// sure that each of them still works, and ends.
    pub fn run(self) -> Result<()> {
        let (mut streams, mut reason) = (Vec::new(), String::new());
        while streams.len() < self.connections {
            match self.open() {
                Ok(stream) => streams.push(stream),
                Err(error) if self.at_most => {
                    reason = errno(&error);
                    break;
                }
                Err(error) => bail!("connection {}: {}", streams.len(), errno(&error)),
            }
        }
        println!("open {} {reason}", streams.len());
        drop(io::stdin().lines().next());
        for stream in &mut streams {
            stream.write_all(b"y")?;
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            expect(stream, b'y').with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    }

    fn open(&self) -> io::Result<TcpStream> {
        let mut stream = Dial::default().connect(self.destination)?;
        stream.write_all(b"x")?;
        expect(&mut stream, b'x')?;
        Ok(stream)
    }
}

fn expect(stream: &mut TcpStream, wanted: u8) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    if byte == [wanted] { Ok(()) } else { Err(io::Error::other("another byte came back")) }
}
