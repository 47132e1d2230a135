use crate::tunnel::frame::{
    Decoder, Event, Frame, FrameError, HEADER_LENGTH, MAX_CONTROL, Side, StreamState,
};

/// Bytes from a hostile host of the mesh: however they are cut, the decoder finds the same frames, data and error in
/// them. The first byte of the input is the size of the pieces, the rest is the byte stream.
pub fn tunnel_frame(input: &[u8]) {
    let Some((&piece, wire)) = input.split_first() else { return };
    let whole = decode(wire, usize::MAX);
    assert_eq!(decode(wire, usize::from(piece).max(1)), whole);

    let mut state = StreamState::new();
    for frame in &whole.frames {
        let encoded = frame.encode(&mut [0; MAX_CONTROL]).to_vec();
        assert_eq!(Decoder::new().next(&encoded), Ok((Event::Frame(*frame), encoded.len())));
        for sender in [Side::Opener, Side::Acceptor] {
            let before = state;
            if state.control(sender, frame).is_err() {
                assert_eq!(state, before);
            }
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Decoded {
    frames: Vec<Frame>,
    data: Vec<u8>,
    error: Option<FrameError>,
    between_frames: bool,
}

fn decode(wire: &[u8], piece: usize) -> Decoded {
    let mut decoder = Decoder::new();
    let mut decoded = Decoded::default();
    for mut rest in wire.chunks(piece.min(wire.len().max(1))) {
        loop {
            let (event, consumed) = match decoder.next(rest) {
                Ok(found) => found,
                Err(error) => return Decoded { error: Some(error), ..decoded },
            };
            rest = &rest[consumed..];
            match event {
                Event::Frame(frame) => {
                    assert!(consumed <= MAX_CONTROL);
                    decoded.frames.push(frame);
                }
                Event::Data(data) => {
                    assert!(!data.is_empty() && consumed <= data.len() + HEADER_LENGTH);
                    decoded.data.extend_from_slice(data);
                }
                Event::Incomplete => break assert!(rest.is_empty()),
            }
        }
    }
    Decoded { between_frames: decoder.is_between_frames(), ..decoded }
}
