//! TLS records, with the key that two agents of one mesh negotiate on this machine.

use anyhow::{Context as _, Result};
use divan::{Bencher, black_box, counter::BytesCount};
use murmesh::{
    identity::{
        Authority, HostKey, Identity, SpiffeId,
        authority::{DEFAULT_LIFETIME, VerifiedRequest},
        tls,
    },
    tunnel::frame::HEADER_LENGTH,
};
use rustls::{ClientConnection, ServerConnection};

use crate::record::{ContentType, HEADER, MAX_PLAINTEXT, OVERHEAD, Opener, Sealer, record_length};

/// Bytes of a stream in one record: an interactive message, and as much as fits beside the header of its frame.
const PAYLOADS: [usize; 2] = [64, MAX_PLAINTEXT - HEADER_LENGTH];

#[divan::bench(args = PAYLOADS)]
fn seal(bencher: Bencher<'_, '_>, payload: usize) {
    let (mut sealer, _) = keys().expect("two agents of one mesh");
    let mut record = record(payload);
    bencher.counter(BytesCount::new(payload)).bench_local(|| {
        sealer.seal(ContentType::ApplicationData, black_box(&mut record)).expect("room for the record");
    });
}

/// One of many connections at a time: each has been at rest for so long that its key is not ready.
#[divan::bench]
fn seal_after_rest(bencher: Bencher<'_, '_>) {
    let mut sealers: Vec<_> = (0..200).map(|_| keys().expect("two agents of one mesh").0).collect();
    let mut record = record(PAYLOADS[0]);
    let mut next = 0;
    bencher.counter(BytesCount::new(PAYLOADS[0])).bench_local(|| {
        next = (next + 1) % sealers.len();
        let sealer = &mut sealers[next];
        sealer.seal(ContentType::ApplicationData, black_box(&mut record)).expect("room for the record");
    });
}

#[divan::bench(args = PAYLOADS)]
fn open(bencher: Bencher<'_, '_>, payload: usize) {
    let (mut sealer, mut opener) = keys().expect("two agents of one mesh");
    let sealed = || {
        let mut record = record(payload);
        sealer.seal(ContentType::ApplicationData, &mut record).expect("room for the record");
        record
    };
    bencher.counter(BytesCount::new(payload)).with_inputs(sealed).bench_local_refs(|record| {
        let header = *record.first_chunk::<HEADER>().expect("a header");
        let length = record_length(header).expect("a record");
        opener.open(&mut record[..length]).expect("the sealer's next record")
    });
}

/// Room for a record around a frame.
fn record(payload: usize) -> Vec<u8> {
    vec![7; HEADER_LENGTH + payload + OVERHEAD]
}

/// One direction of a tunnel's session, at both of its ends.
fn keys() -> Result<(Sealer, Opener)> {
    let authority = Authority::create("mesh.test".parse()?)?;
    let (client, service) = (host(&authority, "fcc00")?, host(&authority, "fcs00")?);
    let name = "fcs00".try_into()?;
    let mut opener = ClientConnection::new(tls::tunnel_client(&client, &service.id)?, name)?;
    let mut acceptor = ServerConnection::new(tls::tunnel_server(&service)?)?;
    while opener.is_handshaking() || acceptor.is_handshaking() {
        let mut wire = Vec::new();
        opener.write_tls(&mut wire)?;
        acceptor.read_tls(&mut wire.as_slice())?;
        acceptor.process_new_packets()?;
        wire.clear();
        acceptor.write_tls(&mut wire)?;
        opener.read_tls(&mut wire.as_slice())?;
        opener.process_new_packets()?;
    }
    let (sent, received) = (opener.dangerous_extract_secrets()?.tx, acceptor.dangerous_extract_secrets()?.rx);
    Ok((Sealer::new(sent)?, Opener::new(received)?))
}

fn host(authority: &Authority, node: &str) -> Result<Identity> {
    let key = HostKey::generate()?;
    let request = VerifiedRequest::parse(&key.certificate_request()?)?;
    let id = SpiffeId::host(authority.trust_domain().clone(), node.parse()?);
    let leaf = authority.sign(&request, &id, DEFAULT_LIFETIME)?;
    Identity::new(&key, vec![leaf], vec![authority.root().clone()]).context("making an identity")
}
