//! How a session ends, and what is no part of it.

use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::{TlsStream, rustls::ClientConnection};

use super::{open, stock, tunnel};
use crate::tunnel::{
    Received, Tunnel, TunnelError,
    frame::{Frame, HEADER_LENGTH, Side, write_data_header},
    tls::{ContentType, OVERHEAD, RecordError},
};

/// A stock client's TCP connection, and OPEN in a record that is not sent.
fn sealed_open(stock: TlsStream<TcpStream>) -> (TcpStream, Vec<u8>) {
    let TlsStream::Client(stock) = stock else { panic!("a client was asked for") };
    let (stream, mut session) = stock.into_inner();
    let mut record = Vec::new();
    std::io::Write::write_all(&mut session.writer(), &stock::encoded(&open())).unwrap();
    session.write_tls(&mut record).unwrap();
    (stream, record)
}

async fn tls_error(ours: &mut Tunnel) -> RecordError {
    match ours.receive().await {
        Err(TunnelError::Tls(error)) => error,
        other => panic!("an error of TLS was expected: {other:?}"),
    }
}

#[tokio::test]
async fn a_close_between_streams_is_no_error() {
    let (mut ours, mut theirs) = stock::tunnel(Side::Acceptor).await;
    theirs.shutdown().await.unwrap();
    assert_eq!(ours.receive().await.unwrap(), Received::Closed);
    let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
    drop(theirs);
    assert_eq!(ours.receive().await.unwrap(), Received::Closed);
}

#[tokio::test]
async fn a_close_in_the_middle_of_a_stream_is_an_error() {
    let (mut ours, mut theirs) = stock::tunnel(Side::Acceptor).await;
    stock::send(&mut theirs, &open()).await;
    theirs.shutdown().await.unwrap();
    assert_eq!(ours.receive().await.unwrap(), Received::Frame(open()));
    assert!(matches!(ours.receive().await, Err(TunnelError::Closed)));
}

#[tokio::test]
async fn what_comes_after_a_close_is_not_looked_at() {
    let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
    let TlsStream::Client(theirs) = theirs else { panic!("a client was asked for") };
    let (mut stream, mut session) = theirs.into_inner();
    session.send_close_notify();
    let mut records = Vec::new();
    session.write_tls(&mut records).unwrap();
    records.extend_from_slice(b"garbage");
    stream.write_all(&records).await.unwrap();
    assert_eq!(ours.receive().await.unwrap(), Received::Closed);
    assert_eq!(ours.receive().await.unwrap(), Received::Closed);
}

#[tokio::test]
async fn half_a_record_is_an_error() {
    for kept in [1, 4, 5, 20] {
        let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
        let (mut stream, record) = sealed_open(theirs);
        stream.write_all(&record[..kept]).await.unwrap();
        drop(stream);
        assert!(matches!(ours.receive().await, Err(TunnelError::Closed)));
    }
}

#[tokio::test]
async fn a_record_that_was_changed_on_the_way_is_an_error() {
    for changed in [5, 12, usize::MAX] {
        let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
        let (mut stream, mut record) = sealed_open(theirs);
        let changed = changed.min(record.len() - 1);
        record[changed] ^= 1;
        stream.write_all(&record).await.unwrap();
        assert_eq!(tls_error(&mut ours).await, RecordError::Forged);
    }
}

#[tokio::test]
async fn a_record_that_comes_twice_is_an_error() {
    let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
    let (mut stream, record) = sealed_open(theirs);
    stream.write_all(&record.repeat(2)).await.unwrap();
    assert_eq!(ours.receive().await.unwrap(), Received::Frame(open()));
    assert_eq!(tls_error(&mut ours).await, RecordError::Forged);
}

#[tokio::test]
async fn garbage_after_the_handshake_is_an_error() {
    let plaintext_alert = [21, 3, 3, 0, 2, 2, 40];
    let oversize = [23, 3, 3, 0xff, 0xff, 0];
    let cases: [(&[u8], RecordError); 3] = [
        (b"GET / HTTP/1.1", RecordError::Header(b'G', u16::from_be_bytes(*b"ET"))),
        (&plaintext_alert, RecordError::Header(21, 0x0303)),
        (&oversize, RecordError::Length(0xffff)),
    ];
    for (garbage, expected) in cases {
        let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
        let (mut stream, _) = sealed_open(theirs);
        stream.write_all(garbage).await.unwrap();
        assert_eq!(tls_error(&mut ours).await, expected);
    }
}

#[tokio::test]
async fn a_frame_out_of_order_is_an_error() {
    let (mut ours, mut theirs) = stock::tunnel(Side::Acceptor).await;
    stock::send(&mut theirs, &Frame::End).await;
    assert!(matches!(ours.receive().await, Err(TunnelError::Protocol(_))));
}

/// Each costs more to take than to send.
#[tokio::test]
async fn a_flood_of_key_updates_ends_the_session() {
    let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
    let TlsStream::Client(theirs) = theirs else { panic!("a client was asked for") };
    let (mut stream, mut session) = theirs.into_inner();
    let mut records = Vec::new();
    for _ in 0..=32 {
        session.refresh_traffic_keys().unwrap();
    }
    while session.wants_write() {
        session.write_tls(&mut records).unwrap();
    }
    stream.write_all(&records).await.unwrap();
    assert_eq!(tls_error(&mut ours).await, RecordError::Barren);
}

/// Data between them makes a flood no cheaper.
#[tokio::test]
async fn as_many_key_updates_may_come_as_records_of_data_and_not_many_more() {
    for (updates, expected) in [(1, None), (2, Some(RecordError::Barren))] {
        let (mut ours, theirs) = stock::tunnel(Side::Acceptor).await;
        let TlsStream::Client(theirs) = theirs else { panic!("a client was asked for") };
        let (mut stream, mut session) = theirs.into_inner();
        let mut records = Vec::new();
        let mut say = |session: &mut ClientConnection, content: &[u8]| {
            std::io::Write::write_all(&mut session.writer(), content).unwrap();
            while session.wants_write() {
                session.write_tls(&mut records).unwrap();
            }
        };
        say(&mut session, &stock::encoded(&open()));
        for _ in 0..40 {
            for _ in 0..updates {
                session.refresh_traffic_keys().unwrap();
            }
            let mut data = vec![b'a'; HEADER_LENGTH + 1];
            write_data_header(&mut data);
            say(&mut session, &data);
        }
        say(&mut session, &stock::encoded(&Frame::End));
        stream.write_all(&records).await.unwrap();
        assert_eq!(ours.receive().await.unwrap(), Received::Frame(open()));
        let ended = loop {
            match ours.receive().await {
                Ok(Received::Data) => ours.consume(ours.data().map(|piece| piece.len()).sum()),
                Ok(other) => {
                    assert_eq!(other, Received::Frame(Frame::End));
                    break None;
                }
                Err(TunnelError::Tls(error)) => break Some(error),
                Err(other) => panic!("an error of TLS was expected: {other:?}"),
            }
        };
        assert_eq!(ended, expected, "{updates} for each record of data");
    }
}

#[tokio::test]
async fn a_flood_of_empty_records_ends_the_session() {
    let (mut ours, theirs) = tunnel().await;
    let (mut stream, mut session) = theirs.into_parts();
    let mut empty = || {
        let mut record = vec![0; OVERHEAD];
        session.sealer.seal(ContentType::ApplicationData, &mut record).unwrap();
        record
    };
    let records: Vec<u8> = (0..=32).flat_map(|_| empty()).collect();
    stream.write_all(&records).await.unwrap();
    assert_eq!(tls_error(&mut ours).await, RecordError::Barren);
}
