//! Hosts that are far apart.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::libc::{self, c_int};
use nix::poll::{PollFd, PollFlags, ppoll};

use crate::host::Host;
use crate::interrupt::wait_if_interrupted;

/// Where the kernel makes TUN devices.
const DEVICE: &str = "/dev/net/tun";

/// Packets on their way. Further ones wait in the devices' queues, which drop what they have no room for.
const MOST_PACKETS: usize = 16 * 1024;

/// Larger than any packet of a device whose MTU is 1500.
const PACKET: usize = 2048;

/// Two hosts that are far apart while this is held: every packet between them arrives half a round trip after it was
/// sent, in order and not earlier. All their other ways stay as short as they are.
///
/// Each host has a route to the other's addresses into a TUN device, and a thread of this process carries packets
/// from one device to the other. Devices and routes go with this value or with the process. What passes there is in
/// no [`Capture`](crate::Capture).
#[derive(Debug)]
pub struct Distance {
    /// Closing it ends the carrier.
    end: Option<UnixStream>,
    carrier: Option<JoinHandle<io::Result<()>>>,
}

/// A packet on its way.
struct Packet {
    due: Instant,
    /// Which of the two devices it goes out of.
    to: usize,
    bytes: Vec<u8>,
}

/// What carries packets between two devices.
struct Carrier {
    devices: [File; 2],
    /// Readable when it is time to end.
    end: UnixStream,
    delay: Duration,
    /// In the order in which they are due, because all take the same time.
    on_their_way: VecDeque<Packet>,
}

impl Distance {
    /// Puts `round_trip` between two hosts of a lab.
    pub fn between(one: &Host, other: &Host, round_trip: Duration) -> Result<Self> {
        let devices = [lead(one, other)?, lead(other, one)?];
        let (end, ended) = UnixStream::pair().context("making a pair of sockets")?;
        let mut carrier =
            Carrier { devices, end: ended, delay: round_trip / 2, on_their_way: VecDeque::new() };
        let carrier = thread::spawn(move || carrier.run());
        Ok(Self { end: Some(end), carrier: Some(carrier) })
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        drop(self.end.take());
        let carried = self.carrier.take().map(JoinHandle::join);
        wait_if_interrupted();
        if let Some(Ok(Err(error))) = carried {
            eprintln!("the way between two distant hosts was cut: {error}");
        }
    }
}

/// Leads what `from` sends to `to` into a device, and returns its end.
fn lead(from: &Host, to: &Host) -> Result<File> {
    let device = format!("to-{}", to.name());
    let file = from
        .in_namespace(|| make_device(&device))
        .with_context(|| format!("making the device {device} on {}", from.name()))?;
    let route = |(near, far)| format!("route add {far} dev {device} src {near}");
    let mut lines = vec![format!("link set {device} addrgenmode none"), format!("link set {device} up")];
    lines.extend(from.addresses().into_iter().zip(to.addresses()).map(route));
    from.configure(&lines)?;
    Ok(file)
}

/// A TUN device of this thread's namespace that takes and gives bare IP packets, and lasts as long as it is open.
fn make_device(name: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
    let file = file.with_context(|| format!("opening {DEVICE}; it comes with `modprobe tun`"))?;
    // SAFETY: plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads and writes one `ifreq`.
    unsafe { set_interface(file.as_raw_fd(), (&raw const request).cast()) }?;
    Ok(file)
}

nix::ioctl_write_ptr!(
    /// linux/if_tun.h, `TUNSETIFF`. It takes a pointer to an `ifreq`, whatever its number says.
    set_interface,
    b'T',
    202,
    c_int
);

impl Carrier {
    /// Carries until it is time to end, or a device is gone. What is on its way at the end arrives at once.
    fn run(&mut self) -> io::Result<()> {
        let mut buffer = [0; PACKET];
        loop {
            let wait = self.deliver()?;
            let listening =
                if self.on_their_way.len() < MOST_PACKETS { PollFlags::POLLIN } else { PollFlags::empty() };
            let [one, other] = &self.devices;
            let mut watched =
                [(one.as_fd(), listening), (other.as_fd(), listening), (self.end.as_fd(), PollFlags::POLLIN)]
                    .map(|(file, events)| PollFd::new(file, events));
            ppoll(&mut watched, wait.map(Into::into), None)?;
            let [one, other, end] = watched.map(|file| file.any().unwrap_or(true));
            if end {
                return self.on_their_way.iter().try_for_each(|packet| self.write(packet));
            }
            for (from, readable) in [one, other].into_iter().enumerate() {
                if readable {
                    self.take(from, &mut buffer)?;
                }
            }
        }
    }

    /// Hands over what is due, and returns how long the next one has to wait.
    fn deliver(&mut self) -> io::Result<Option<Duration>> {
        while let Some(packet) = self.on_their_way.front() {
            let wait = packet.due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                return Ok(Some(wait));
            }
            self.write(packet)?;
            self.on_their_way.pop_front();
        }
        Ok(None)
    }

    /// Takes what has been sent into a device, as long as there is room.
    fn take(&mut self, from: usize, buffer: &mut [u8]) -> io::Result<()> {
        while self.on_their_way.len() < MOST_PACKETS {
            let length = match (&self.devices[from]).read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let due = Instant::now() + self.delay;
            self.on_their_way.push_back(Packet { due, to: 1 - from, bytes: buffer[..length].to_vec() });
        }
        Ok(())
    }

    fn write(&self, packet: &Packet) -> io::Result<()> {
        (&self.devices[packet.to]).write_all(&packet.bytes)
    }
}
