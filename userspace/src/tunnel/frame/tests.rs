use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What was found in a whole buffer, data joined up.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Frame(Frame),
    Data(Vec<u8>),
}

fn encode(items: &[Item]) -> Vec<u8> {
    let mut wire = Vec::new();
    for item in items {
        match item {
            Item::Frame(frame) => wire.extend_from_slice(frame.encode(&mut [0; MAX_CONTROL])),
            Item::Data(data) => {
                let mut frame = [&[0; HEADER_LENGTH], data.as_slice()].concat();
                write_data_header(&mut frame);
                wire.extend(frame);
            }
        }
    }
    wire
}

/// Decodes `wire` in pieces of the given sizes, cyclically, and checks what every call must keep.
fn decode(wire: &[u8], pieces: &[usize]) -> (Vec<Item>, Result<bool, FrameError>) {
    let mut decoder = Decoder::new();
    let (mut items, mut rest, mut pieces) = (Vec::new(), wire, pieces.iter().cycle());
    while !rest.is_empty() {
        let (mut piece, after) = rest.split_at((*pieces.next().expect("a cycle")).clamp(1, rest.len()));
        rest = after;
        loop {
            let (event, consumed) = match decoder.next(piece) {
                Ok(found) => found,
                Err(error) => {
                    assert_eq!(decoder.next(piece), Err(error), "an error is final");
                    return (items, Err(error));
                }
            };
            assert!(consumed <= piece.len());
            piece = &piece[consumed..];
            match event {
                Event::Frame(frame) => items.push(Item::Frame(frame)),
                Event::Data(data) => {
                    assert!(!data.is_empty() && data.len() <= consumed);
                    items.push(Item::Data(data.to_vec()));
                }
                Event::Incomplete => {
                    assert!(piece.is_empty(), "Incomplete consumes everything");
                    break;
                }
            }
        }
    }
    (items, Ok(decoder.is_between_frames()))
}

/// The specification written the slow way: looks at the whole buffer, frame by frame.
fn reference(mut wire: &[u8]) -> (Vec<Item>, Result<bool, FrameError>) {
    let mut items = Vec::new();
    while !wire.is_empty() {
        let Some((header, rest)) = wire.split_first_chunk() else { return (items, Ok(false)) };
        let header = match Header::decode(*header) {
            Ok(header) => header,
            Err(error) => return (items, Err(error)),
        };
        let present = rest.len().min(header.length);
        let (payload, rest) = rest.split_at(present);
        if header.kind == Kind::Data && present > 0 {
            items.push(Item::Data(payload.to_vec()));
        }
        if present < header.length {
            return (items, Ok(false));
        }
        match (header.kind, payload) {
            (Kind::Data, _) => {}
            (Kind::Open, _) => match Open::decode(payload) {
                Ok(open) => items.push(Item::Frame(Frame::Open(open))),
                Err(error) => return (items, Err(error)),
            },
            (Kind::Accepted, _) => items.push(Item::Frame(Frame::Accepted)),
            (Kind::End, _) => items.push(Item::Frame(Frame::End)),
            (Kind::Refused, reason) => {
                items.push(Item::Frame(Frame::Refused(RefusalReason::from_number(reason[0]))));
            }
            (Kind::Reset, reason) => {
                items.push(Item::Frame(Frame::Reset(ResetReason::from_number(reason[0]))));
            }
        }
        wire = rest;
    }
    (items, Ok(true))
}

/// Joins neighbouring data, because where a payload is cut carries no meaning.
fn joined(items: Vec<Item>) -> Vec<Item> {
    let mut joined: Vec<Item> = Vec::new();
    for item in items {
        match (joined.last_mut(), item) {
            (Some(Item::Data(data)), Item::Data(more)) => data.extend(more),
            (_, item) => joined.push(item),
        }
    }
    joined
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

/// Two addresses of one family.
fn open() -> impl Strategy<Value = Open> {
    (address(), address())
        .prop_filter("one family", |(destination, client)| destination.is_ipv4() == client.is_ipv4())
        .prop_map(|(destination, client)| Open { destination, client })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        open().prop_map(Frame::Open),
        Just(Frame::Accepted),
        any::<u8>().prop_map(|number| Frame::Refused(RefusalReason::from_number(number))),
        Just(Frame::End),
        any::<u8>().prop_map(|number| Frame::Reset(ResetReason::from_number(number))),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![frame().prop_map(Item::Frame), vec(any::<u8>(), 1..300).prop_map(Item::Data)]
}

/// Bytes that reach deep into the decoder: valid frames with a few bytes changed and the end cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    (vec(item(), 0..8), vec((any::<prop::sample::Index>(), any::<u8>()), 0..3), any::<prop::sample::Index>())
        .prop_map(|(items, changes, end)| {
            let mut wire = encode(&items);
            if !wire.is_empty() {
                changes.iter().for_each(|(place, byte)| *place.get_mut(&mut wire) = *byte);
                wire.truncate(end.index(wire.len()) + 1);
            }
            wire
        })
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    vec(1..100_usize, 1..6)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_at_any_split(items in vec(item(), 0..12), pieces in pieces()) {
        let (decoded, end) = decode(&encode(&items), &pieces);
        prop_assert_eq!(joined(decoded), joined(items));
        prop_assert_eq!(end, Ok(true));
    }

    #[test]
    fn the_decoder_agrees_with_the_reference_on_damaged_input(wire in damaged(), pieces in pieces()) {
        let (decoded, end) = decode(&wire, &pieces);
        let (expected, expected_end) = reference(&wire);
        prop_assert_eq!(joined(decoded), joined(expected));
        prop_assert_eq!(end, expected_end);
    }

    #[test]
    fn the_decoder_agrees_with_the_reference_on_arbitrary_bytes(
        wire in vec(prop_oneof![0..8_u8, any::<u8>()], 0..200),
        pieces in pieces(),
    ) {
        let (decoded, end) = decode(&wire, &pieces);
        let (expected, expected_end) = reference(&wire);
        prop_assert_eq!(joined(decoded), joined(expected));
        prop_assert_eq!(end, expected_end);
    }

    #[test]
    fn a_header_that_decodes_encodes_to_the_same_bytes(bytes: [u8; HEADER_LENGTH]) {
        if let Ok(header) = Header::decode(bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn an_accepted_stream_state_never_lets_a_direction_speak_after_its_end(
        sent in vec((any::<bool>(), frame()), 0..40),
    ) {
        let mut state = StreamState::new();
        for (by_opener, frame) in sent {
            let sender = if by_opener { Side::Opener } else { Side::Acceptor };
            let before = state;
            match state.control(sender, &frame) {
                Ok(()) => prop_assert_ne!(before.phase(sender), Phase::Ended),
                Err(_) => prop_assert_eq!(state, before),
            }
            prop_assert!(state.is_idle() == (state.phase(Side::Acceptor) == Phase::Idle));
        }
    }
}

#[test]
fn memory_does_not_depend_on_the_peer() {
    assert!(size_of::<Decoder>() <= 96, "{} bytes", size_of::<Decoder>());
    assert_eq!(size_of::<StreamState>(), 2);
}

#[test]
fn a_mapped_address_is_sent_as_ipv4_and_refused_otherwise() {
    let mapped = "[::ffff:10.0.0.1]:80".parse().expect("an address");
    let mut buffer = [0; MAX_CONTROL];
    let wire = Frame::Open(Open { destination: mapped, client: mapped }).encode(&mut buffer);
    let v4 = "10.0.0.1:80".parse().expect("an address");
    let expected = Frame::Open(Open { destination: v4, client: v4 });
    assert_eq!(Decoder::new().next(wire), Ok((Event::Frame(expected), wire.len())));

    let mut payload = vec![6_u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1, 0, 80];
    payload.extend_from_within(..);
    let wire = [&[1, 0, 0, 38], payload.as_slice()].concat();
    assert_eq!(Decoder::new().next(&wire), Err(FrameError::MappedAddress));
}

#[test]
fn lengths_that_a_kind_cannot_have_are_refused_by_the_header_alone() {
    for bytes in
        [[4, 0, 0, 0], [4, 0, 0xff, 0xfd], [4, 0xff, 0xff, 0xff], [1, 0, 0, 15], [2, 0, 0, 1], [3, 0, 0, 0]]
    {
        assert!(matches!(Decoder::new().next(&bytes), Err(FrameError::Length { .. })), "{bytes:?}");
    }
    for kind in [0, 7, 22, 0xff] {
        assert_eq!(Decoder::new().next(&[kind, 0, 0, 0]), Err(FrameError::UnknownKind(kind)));
    }
    assert_eq!(Header::decode([4, 0, 0xff, 0xfc]), Ok(Header { kind: Kind::Data, length: MAX_DATA }));
}

#[test]
fn a_tunnel_is_idle_again_after_both_directions_ended() {
    let address = "10.0.0.1:80".parse().expect("an address");
    let open = Frame::Open(Open { destination: address, client: address });
    let reset = Frame::Reset(ResetReason::ByPeer);
    let mut state = StreamState::new();
    for (answer, client_end, service_end) in [
        (Frame::Accepted, Frame::End, Some(Frame::End)),
        (Frame::Accepted, reset, Some(reset)),
        (Frame::Refused(RefusalReason::Denied), reset, None),
    ] {
        state.control(Side::Opener, &open).expect("OPEN on an idle tunnel");
        state.data(Side::Opener).expect("data without waiting for the answer");
        assert!(state.data(Side::Acceptor).is_err(), "the acceptor must answer first");
        state.control(Side::Acceptor, &answer).expect("an answer");
        state.control(Side::Opener, &client_end).expect("the client's end");
        assert!(state.data(Side::Opener).is_err(), "data after the end");
        if let Some(end) = service_end {
            assert!(!state.is_idle());
            state.data(Side::Acceptor).expect("half-close leaves the other direction open");
            state.control(Side::Acceptor, &end).expect("the service's end");
        }
        assert!(state.is_idle());
    }
}

#[test]
fn addresses_of_two_families_are_refused() {
    let header = [Kind::Open as u8, 0, 0, 7 + 19];
    assert_eq!(Header::decode(header), Err(FrameError::Length { kind: Kind::Open, length: 26 }));
}
