//! The tunnel's other end, as an ordinary user of rustls would write it.

use std::{
    future::poll_fn,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{hosts, numbers};
use crate::{
    identity::tls,
    tunnel::{
        Tunnel, answer, dial,
        frame::{Decoder, Event, Frame, HEADER_LENGTH, MAX_CONTROL, MAX_DATA, Side, write_data_header},
    },
};

/// A name that nobody looks at.
pub fn name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::LOCALHOST.into())
}

/// Our end, which is `side`, and a stock one.
pub async fn tunnel(side: Side) -> (Tunnel, TlsStream<TcpStream>) {
    let (client, service) = hosts();
    let to_service = tls::tunnel_client(&client, &service.id).unwrap();
    let at_service = tls::tunnel_server(&service).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = async { listener.accept().await.unwrap().0 };
    match side {
        Side::Opener => {
            let accepted = async { TlsAcceptor::from(at_service).accept(accepted.await).await };
            let (ours, stock) = tokio::join!(dial(address, to_service, None, None), accepted);
            (*ours.unwrap(), stock.unwrap().into())
        }
        Side::Acceptor => {
            let connected = async {
                let stream = TcpStream::connect(address).await.unwrap();
                TlsConnector::from(to_service).connect(name(), stream).await
            };
            let accepted = async { answer(accepted.await, async |_| Ok(((), at_service))).await };
            let (ours, stock) = tokio::join!(accepted, connected);
            (*ours.unwrap(), stock.unwrap().into())
        }
    }
}

/// `frame` as it goes into TLS.
pub fn encoded(frame: &Frame) -> Vec<u8> {
    frame.encode(&mut [0; MAX_CONTROL]).to_vec()
}

pub async fn send(stock: &mut TlsStream<TcpStream>, frame: &Frame) {
    stock.write_all(&encoded(frame)).await.unwrap();
    stock.flush().await.unwrap();
}

pub async fn expect(stock: &mut TlsStream<TcpStream>, frame: &Frame) {
    let mut received = encoded(frame);
    received.fill(0);
    stock.read_exact(&mut received).await.unwrap();
    assert_eq!(received, encoded(frame));
}

/// Sends `content` and END in frames of random lengths while it receives up to END. With `new_keys_after`, keys are
/// replaced whenever about so many bytes were sent. Returns what it received.
pub async fn exchange(
    stock: &mut TlsStream<TcpStream>,
    content: &[u8],
    new_keys_after: Option<usize>,
) -> Vec<u8> {
    let mut exchange = Exchange {
        sending: frames(content),
        sent: 0,
        sent_under_key: 0,
        new_keys_after,
        lengths: numbers(5),
        decoder: Decoder::new(),
        received: Vec::new(),
        ended: false,
    };
    poll_fn(|context| exchange.poll(context, stock)).await;
    exchange.received
}

fn frames(content: &[u8]) -> Vec<u8> {
    let (mut frames, mut rest) = (Vec::new(), content);
    for length in numbers(3).map(|number| 1 + number as usize % MAX_DATA) {
        let (payload, after) = rest.split_at(length.min(rest.len()));
        if payload.is_empty() {
            break;
        }
        let begin = frames.len();
        frames.extend_from_slice(&[0; HEADER_LENGTH]);
        frames.extend_from_slice(payload);
        write_data_header(&mut frames[begin..]);
        rest = after;
    }
    frames.extend(encoded(&Frame::End));
    frames
}

struct Exchange<Lengths> {
    sending: Vec<u8>,
    sent: usize,
    sent_under_key: usize,
    new_keys_after: Option<usize>,
    lengths: Lengths,
    decoder: Decoder,
    received: Vec<u8>,
    ended: bool,
}

impl<Lengths: Iterator<Item = u64>> Exchange<Lengths> {
    fn poll(&mut self, context: &mut Context<'_>, stock: &mut TlsStream<TcpStream>) -> Poll<()> {
        let sent = self.poll_send(context, stock);
        ready!(self.poll_receive(context, stock));
        sent
    }

    fn poll_send(&mut self, context: &mut Context<'_>, stock: &mut TlsStream<TcpStream>) -> Poll<()> {
        while self.sent < self.sending.len() {
            let rest = &self.sending[self.sent..];
            let length = 1 + self.lengths.next().unwrap() as usize % 40_000;
            let bytes = &rest[..length.min(rest.len())];
            let sent = ready!(Pin::new(&mut *stock).poll_write(context, bytes)).unwrap();
            self.sent += sent;
            self.count(sent, stock);
        }
        Pin::new(stock).poll_flush(context).map(Result::unwrap)
    }

    fn count(&mut self, sent: usize, stock: &mut TlsStream<TcpStream>) {
        self.sent_under_key += sent;
        if self.new_keys_after.is_some_and(|limit| self.sent_under_key >= limit) {
            self.sent_under_key = 0;
            // This asks for new keys in the other direction, too.
            let asked = match stock {
                TlsStream::Client(stock) => stock.get_mut().1.refresh_traffic_keys(),
                TlsStream::Server(stock) => stock.get_mut().1.refresh_traffic_keys(),
            };
            asked.unwrap();
        }
    }

    fn poll_receive(&mut self, context: &mut Context<'_>, stock: &mut TlsStream<TcpStream>) -> Poll<()> {
        let mut buffer = [0; 20_000];
        while !self.ended {
            let mut space = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut *stock).poll_read(context, &mut space)).unwrap();
            let mut bytes = space.filled();
            assert!(!bytes.is_empty(), "the tunnel was closed in the middle of the stream");
            while !bytes.is_empty() {
                let (event, consumed) = self.decoder.next(bytes).unwrap();
                match event {
                    Event::Data(data) => self.received.extend_from_slice(data),
                    Event::Frame(frame) => self.ended = frame == Frame::End,
                    Event::Incomplete => {}
                }
                bytes = &bytes[consumed..];
            }
        }
        Poll::Ready(())
    }
}
