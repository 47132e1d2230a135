//! The tunnel's frames.

use std::fmt;
use std::net::SocketAddr;

use divan::{Bencher, black_box, counter::ItemsCount};
use murmesh::tunnel::frame::{
    Decoder, Event, Frame, HEADER_LENGTH, MAX_CONTROL, MAX_DATA, Open, write_data_header,
};

struct Case {
    name: &'static str,
    frame: Frame,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

fn control_frames() -> [Case; 3] {
    let address = |ip: [u16; 8]| SocketAddr::from((ip, 8181));
    let client = address([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
    let destination = address([0xfd00, 0, 0, 0, 0, 0, 0, 2]);
    let v4 = Open {
        destination: SocketAddr::from(([10, 99, 0, 2], 8181)),
        client: SocketAddr::from(([10, 99, 0, 1], 40_000)),
    };
    [
        Case { name: "OPEN, IPv4", frame: Frame::Open(v4) },
        Case { name: "OPEN, IPv6", frame: Frame::Open(Open { destination, client }) },
        Case { name: "END", frame: Frame::End },
    ]
}

#[divan::bench(args = control_frames())]
fn encode_control(bencher: Bencher<'_, '_>, case: &Case) {
    let mut buffer = [0; MAX_CONTROL];
    bencher.bench_local(|| black_box(&case.frame).encode(black_box(&mut buffer)).len());
}

#[divan::bench(args = control_frames())]
fn decode_control(bencher: Bencher<'_, '_>, case: &Case) {
    let mut buffer = [0; MAX_CONTROL];
    let wire = case.frame.encode(&mut buffer);
    let mut decoder = Decoder::new();
    bencher.bench_local(|| match decoder.next(black_box(wire)) {
        Ok((Event::Frame(frame), _)) => frame,
        other => unreachable!("a control frame was sent, not {other:?}"),
    });
}

/// Frames with payloads of so many bytes. The decoder copies no payload, so that frames are counted and not bytes.
#[divan::bench(args = [64, 16 * 1024 - HEADER_LENGTH, MAX_DATA])]
fn decode_data(bencher: Bencher<'_, '_>, payload: usize) {
    const FRAMES: usize = 16;
    let mut wire = vec![0; FRAMES * (HEADER_LENGTH + payload)];
    wire.chunks_exact_mut(HEADER_LENGTH + payload).for_each(write_data_header);
    let mut decoder = Decoder::new();
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        let mut rest = black_box(&wire[..]);
        for _ in 0..FRAMES {
            let (event, consumed) = decoder.next(rest).expect("frames within the limits");
            black_box(event);
            rest = &rest[consumed..];
        }
        assert!(rest.is_empty());
    });
}
