//! From which address of this host its services are dialled.
//!
//! A connection takes a local port for as long as it lasts, and for one service an address has as many as
//! `net.ipv4.ip_local_port_range` says: 28 232 by default. Where those of the usual address are all taken, others of
//! loopback are used. The service does not see them: it is shown the client's address.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::{TcpSocket, TcpStream};

use crate::socket;

/// Addresses beside the usual one, of 127.0.0.0/8. IPv6 has only one.
const MORE: u8 = 32;

/// One worker's choice.
#[derive(Default)]
pub struct Sources {
    /// That from which a port was had last: 0 is the usual one.
    current: Cell<u8>,
}

impl Sources {
    /// Connects a socket that `make` has made to `destination`, an address of this host; another one from each further
    /// address, until one has a port.
    ///
    /// # Errors
    /// As `make`, or nobody answers, or no address has a port.
    pub async fn connect(
        &self,
        destination: SocketAddr,
        make: impl Fn() -> io::Result<TcpSocket>,
    ) -> io::Result<TcpStream> {
        let first = self.current.get();
        for step in 0..=MORE {
            let number = (first + step) % (MORE + 1);
            let Some(source) = source(number, destination.ip()) else { continue };
            let socket = make()?;
            if !source.is_unspecified() {
                socket::bind_address(&socket, source)?;
            }
            match socket.connect(destination).await {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                connected => {
                    self.current.set(number);
                    return connected;
                }
            }
        }
        Err(socket::explain_ports(io::ErrorKind::AddrNotAvailable.into(), destination))
    }

    /// Begins with the usual address again, which may have ports by now.
    pub fn reset(&self) {
        self.current.set(0);
    }
}

/// The address with this number; unspecified for the one that the kernel chooses.
fn source(number: u8, destination: IpAddr) -> Option<IpAddr> {
    match (number, destination) {
        (0, IpAddr::V4(_)) => Some(Ipv4Addr::UNSPECIFIED.into()),
        (0, IpAddr::V6(_)) => Some(Ipv6Addr::UNSPECIFIED.into()),
        (number, IpAddr::V4(_)) => Some(Ipv4Addr::new(127, 0, 0, number).into()),
        (1, IpAddr::V6(_)) => Some(Ipv6Addr::LOCALHOST.into()),
        (_, IpAddr::V6(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_does_not_answer_is_asked_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let gone = listener.local_addr().expect("an address");
        drop(listener);
        let (sources, made) = (Sources::default(), Cell::new(0));
        let make = || {
            made.set(made.get() + 1);
            TcpSocket::new_v4()
        };
        let error = sources.connect(gone, make).await.expect_err("nobody listens");
        assert_eq!((error.kind(), made.get()), (io::ErrorKind::ConnectionRefused, 1));
    }

    #[tokio::test]
    async fn each_number_is_an_address_of_its_own_and_a_reset_begins_with_the_usual_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let destination = listener.local_addr().expect("an address");
        let sources = Sources::default();
        let from = async || {
            let stream = sources.connect(destination, TcpSocket::new_v4).await.expect("a connection");
            stream.local_addr().expect("an address").ip()
        };
        sources.current.set(MORE);
        assert_eq!(from().await, Ipv4Addr::new(127, 0, 0, MORE));
        sources.reset();
        assert_eq!(from().await, Ipv4Addr::LOCALHOST);
        assert_eq!(source(1, Ipv6Addr::LOCALHOST.into()), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(source(2, Ipv6Addr::LOCALHOST.into()), None);
    }
}
