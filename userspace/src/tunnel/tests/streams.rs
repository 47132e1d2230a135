//! Streams between an application and a stock implementation, and what is left of the tunnel after them.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
};

use super::{connection, numbers, open, stock, tunnel};
use crate::{
    flows::FlowId,
    proxy::{
        Rules,
        live::Live,
        relay::{Totals, relay},
        watchdog::Watchdog,
    },
    tunnel::{
        Outgoing, Payload, Received, Tunnel,
        frame::{Frame, ResetReason, Side},
    },
};

const LENGTH: usize = 5_000_000;

/// Fewer records than the content needs.
const UNDER_ONE_KEY: u64 = 100;

/// How often keys are replaced, by each of the two.
#[derive(Clone, Copy, Default)]
struct KeyUpdates {
    ours_after_records: Option<u64>,
    theirs_after_bytes: Option<usize>,
}

/// Some megabytes both ways at once, through our relay and a stock implementation.
async fn exchange(side: Side, updates: KeyUpdates) {
    let (mut ours, mut theirs) = stock::tunnel(side).await;
    updates.ours_after_records.into_iter().for_each(|records| ours.limit_records_per_key(records));
    // They ask for new keys in the other direction, too.
    let theirs_ask = updates.theirs_after_bytes.map(|bytes| bytes as u64);
    let stock_opens = side == Side::Acceptor;
    if stock_opens {
        stock::send(&mut theirs, &open()).await;
        assert_eq!(ours.receive().await.unwrap(), Received::Frame(open()));
        ours.send(&Frame::Accepted).await.unwrap();
        stock::expect(&mut theirs, &Frame::Accepted).await;
    } else {
        ours.send(&open()).await.unwrap();
        stock::expect(&mut theirs, &open()).await;
        stock::send(&mut theirs, &Frame::Accepted).await;
    }

    let (program, mut application) = connection().await;
    let (from_program, from_stock) = (content(1), content(2));
    let (watchdog, live) = (Watchdog::default(), Live::default());
    let caller = "spiffe://mesh.test/host/fcc00".parse().unwrap();
    let destination = ([10, 0, 0, 2], 80).into();
    let found = Rules::default().find(&caller, &"fcs00".parse().unwrap(), destination).unwrap();
    let place = live.enter(found.into(), FlowId::of(&Arc::default()));
    let (played, (totals, relayed), received_by_stock) = tokio::join!(
        play(program, &from_program),
        relay(&mut application, &mut ours, &watchdog, &place, None, None),
        stock::exchange(&mut theirs, &from_stock, updates.theirs_after_bytes)
    );
    relayed.unwrap();
    assert!(
        played == from_stock && received_by_stock == from_program,
        "the bytes are not those that were sent"
    );
    assert_eq!(totals, Totals { sent: LENGTH as u64, received: LENGTH as u64 });
    assert!(ours.comes_to_rest());
    let [sealed, opened] = ours.records_under_keys();
    assert_eq!(sealed < UNDER_ONE_KEY, updates.ours_after_records.or(theirs_ask).is_some(), "{sealed}");
    assert_eq!(opened < UNDER_ONE_KEY, theirs_ask.is_some(), "{opened}");
}

fn content(seed: u64) -> Vec<u8> {
    numbers(seed).flat_map(u64::to_le_bytes).take(LENGTH).collect()
}

/// Sends `content` in pieces of random lengths while it receives to the end.
async fn play(mut program: TcpStream, content: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = program.split();
    let mut received = Vec::new();
    let send = async {
        let (mut rest, mut lengths) = (content, numbers(7));
        while !rest.is_empty() {
            let length = 1 + lengths.next().unwrap() as usize % 300_000;
            let (piece, after) = rest.split_at(length.min(rest.len()));
            writer.write_all(piece).await.unwrap();
            rest = after;
        }
        writer.shutdown().await.unwrap();
    };
    let ((), end) = tokio::join!(send, reader.read_to_end(&mut received));
    end.unwrap();
    received
}

#[tokio::test]
async fn an_opener_exchanges_megabytes_with_a_stock_server() {
    exchange(Side::Opener, KeyUpdates::default()).await;
}

#[tokio::test]
async fn an_acceptor_exchanges_megabytes_with_a_stock_client() {
    exchange(Side::Acceptor, KeyUpdates::default()).await;
}

#[tokio::test]
async fn keys_are_replaced_while_megabytes_are_exchanged() {
    for side in [Side::Opener, Side::Acceptor] {
        let ours = KeyUpdates { ours_after_records: Some(5), ..KeyUpdates::default() };
        let theirs = KeyUpdates { theirs_after_bytes: Some(100_000), ..KeyUpdates::default() };
        let both = KeyUpdates { ours_after_records: Some(5), theirs_after_bytes: Some(100_000) };
        for updates in [ours, theirs, both] {
            exchange(side, updates).await;
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_both_ways_leaves_both_ends_idle() {
    let (mut opener, mut acceptor) = tunnel().await;
    opener.send(&open()).await.unwrap();
    opener.send(&Frame::End).await.unwrap();
    assert_eq!(acceptor.receive().await.unwrap(), Received::Frame(open()));
    assert!(!acceptor.is_idle() && !opener.is_idle());
    acceptor.send(&Frame::Accepted).await.unwrap();
    acceptor.send(&Frame::End).await.unwrap();
    opener.drain().await.unwrap();
    acceptor.drain().await.unwrap();
    assert!(acceptor.is_idle() && opener.is_idle());
}

/// An opener and an acceptor that has accepted its stream and not told yet.
async fn accepted() -> (Tunnel, Tunnel) {
    let (mut opener, mut acceptor) = tunnel().await;
    opener.send(&open()).await.unwrap();
    acceptor.receive().await.unwrap();
    acceptor.accept().unwrap();
    (opener, acceptor)
}

#[tokio::test]
async fn accepted_travels_with_the_first_bytes_and_an_end_with_the_last() {
    let (mut opener, mut acceptor) = accepted().await;
    let (mut program, mut application) = connection().await;
    program.write_all(b"fortune").await.unwrap();
    program.shutdown().await.unwrap();
    while !application.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        // The runtime hears of the end when it has nothing else to do.
        tokio::task::yield_now().await;
    }

    let (mut reader, _writer) = application.split();
    let payload = poll_fn(|context| Payload::poll_read(&mut reader, context)).await.unwrap().unwrap();
    assert!(payload.is_last() && payload.length() == 7);
    let mut outgoing = acceptor.seal(payload).unwrap();
    poll_fn(|context| acceptor.poll_send(context, &mut outgoing)).await.unwrap();
    assert!(!acceptor.may_send() && acceptor.held().unwrap().is_none());
    assert_eq!(opener.receive().await.unwrap(), Received::Frame(Frame::Accepted));
    assert_eq!(opener.receive().await.unwrap(), Received::Data);
    opener.consume(7);
    assert_eq!(opener.receive().await.unwrap(), Received::Frame(Frame::End));
}

#[tokio::test]
async fn accepted_can_be_told_without_bytes_and_only_once() {
    let (mut opener, mut acceptor) = accepted().await;
    let mut outgoing = acceptor.held().unwrap().unwrap();
    poll_fn(|context| acceptor.poll_send(context, &mut outgoing)).await.unwrap();
    assert_eq!(opener.receive().await.unwrap(), Received::Frame(Frame::Accepted));
    assert!(acceptor.held().unwrap().is_none());
    acceptor.send(&Frame::End).await.unwrap();
    assert_eq!(opener.receive().await.unwrap(), Received::Frame(Frame::End));
}

/// Sends data until the other end would have to read. Returns what is left of it.
async fn fill(tunnel: &mut Tunnel) -> Outgoing {
    let (program, mut application) = connection().await;
    let (mut reader, _writer) = application.split();
    loop {
        // Never blocks: the buffers of a loopback connection hold a byte.
        program.try_write(&[0; 100_000]).unwrap();
        let payload = poll_fn(|context| Payload::poll_read(&mut reader, context)).await.unwrap().unwrap();
        let mut outgoing = tunnel.seal(payload).unwrap();
        let sent = poll_fn(|context| tunnel.poll_send(context, &mut outgoing));
        // Nobody reads, so what does not fit at once does not fit at all.
        if tokio::time::timeout(Duration::from_millis(100), sent).await.is_err() {
            return outgoing;
        }
    }
}

#[tokio::test]
async fn a_tunnel_whose_last_frame_was_not_sent_is_not_idle() {
    let (mut opener, mut acceptor) = tunnel().await;
    opener.send(&open()).await.unwrap();
    acceptor.receive().await.unwrap();
    acceptor.send(&Frame::Accepted).await.unwrap();
    acceptor.send(&Frame::End).await.unwrap();
    while opener.receive().await.unwrap() != Received::Frame(Frame::End) {}

    fill(&mut opener).await;
    // By the frames that were made, both directions have ended.
    let mut reset = opener.control(&Frame::Reset(ResetReason::ByPeer)).unwrap();
    let sent = poll_fn(|context| Poll::Ready(opener.poll_send(context, &mut reset))).await;
    assert!(sent.is_pending());
    drop(reset);
    assert!(!opener.is_idle());
}
