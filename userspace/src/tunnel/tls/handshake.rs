//! The handshake, by rustls' unbuffered interface, and the session that comes out of it.

use std::{io, sync::Arc};

use rustls::{
    CipherSuite, ClientConfig, ExtractedSecrets, NamedGroup, ProtocolVersion, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    server::{Acceptor, ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, UnbufferedConnectionCommon, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{MAX_PLAINTEXT, Opener, RecordError, Sealer};
use crate::tunnel::PROTOCOL;

/// Bytes that the other side may have in flight in a handshake: two certificate chains and a post-quantum share fit
/// several times.
const BUFFER: usize = 64 * 1024;

/// Room for one read.
const READ: usize = 8 * 1024;

/// Handshake message `key_update`, RFC 8446 section 4.6.3.
const KEY_UPDATE: u8 = 24;

/// Records under one key. AES-GCM allows 2^24.5 full ones (RFC 8446 section 5.5).
const RECORDS_PER_KEY: u64 = 1 << 23;

/// An established session.
pub struct Session {
    /// For what is sent.
    pub sealer: Sealer,
    /// For what arrives.
    pub opener: Opener,
    schedule: Schedule,
    records_per_key: u64,
}

/// What a handshake yields.
pub struct Established {
    /// The session.
    pub session: Session,
    /// What the two have agreed on.
    pub agreed: Agreed,
    /// The other side's verified certificate chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Decrypted bytes that came with the other side's last handshake message.
    pub received: Vec<u8>,
    /// Bytes after them that are not decrypted yet.
    pub undecrypted: Vec<u8>,
}

/// What the two sides of a handshake have agreed on, as rustls calls it; `None` never comes of one that has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The version of TLS.
    pub version: Option<ProtocolVersion>,
    /// How the key was agreed on.
    pub key_exchange: Option<NamedGroup>,
    /// What protects the records.
    pub cipher: Option<CipherSuite>,
}

/// rustls' key schedule, for key updates.
enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Session {
    fn new(secrets: ExtractedSecrets, schedule: Schedule) -> Result<Self, RecordError> {
        let (sealer, opener) = (Sealer::new(secrets.tx)?, Opener::new(secrets.rx)?);
        Ok(Self { sealer, opener, schedule, records_per_key: RECORDS_PER_KEY })
    }

    /// Replaces a key after fewer records than it is good for.
    #[cfg(test)]
    pub fn limit_records_per_key(&mut self, records: u64) {
        self.records_per_key = records;
    }

    /// How many records the current keys have sealed and opened.
    #[cfg(test)]
    pub fn records_under_keys(&self) -> [u64; 2] {
        [self.sealer.sequence(), self.opener.sequence()]
    }

    /// The next record is sealed with the next key, which the other side expects after [`KEY_UPDATE_MESSAGE`].
    ///
    /// # Errors
    /// The key schedule fails.
    pub fn update_sealer(&mut self) -> Result<(), RecordError> {
        let secrets = match &mut self.schedule {
            Schedule::Client(schedule) => schedule.update_tx_secret(),
            Schedule::Server(schedule) => schedule.update_tx_secret(),
        };
        self.sealer = Sealer::new(secrets.map_err(|_| RecordError::Key)?)?;
        Ok(())
    }

    /// Handles a handshake message after the handshake. Returns whether the other side asks for a key update.
    ///
    /// # Errors
    /// It is none that may come now.
    pub fn handle_handshake(&mut self, message: &[u8]) -> Result<bool, RecordError> {
        match message {
            [KEY_UPDATE, 0, 0, 1, request @ (0 | 1)] => {
                let secrets = match &mut self.schedule {
                    Schedule::Client(schedule) => schedule.update_rx_secret(),
                    Schedule::Server(schedule) => schedule.update_rx_secret(),
                };
                self.opener = Opener::new(secrets.map_err(|_| RecordError::Key)?)?;
                Ok(*request == 1)
            }
            _ => Err(RecordError::ContentType),
        }
    }

    /// Whether the key has been used enough, and a key update is due.
    #[inline]
    pub fn is_worn(&self) -> bool {
        self.sealer.sequence() >= self.records_per_key
    }
}

/// A key update message that asks for none in return.
pub const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// Does the client's side of the handshake.
///
/// # Errors
/// The connection breaks, the server does not speak the tunnel protocol, or one side does not accept the other.
pub async fn connect(
    stream: &mut TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<Established> {
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    let (received, undecrypted) = drive(stream, &mut connection, Vec::new()).await?;
    let (chain, agreed) = facts(&connection)?;
    let (secrets, schedule) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    let session = Session::new(secrets, Schedule::Client(schedule)).map_err(invalid)?;
    Ok(Established { session, agreed, chain, received, undecrypted })
}

/// Does the server's side of the handshake, with the configuration that `choose` has for the server name in the
/// ClientHello, and while its permit is held.
///
/// # Errors
/// The connection breaks, the client does not speak the tunnel protocol, or one side does not accept the other.
pub async fn accept<Permit>(
    stream: &mut TcpStream,
    choose: impl AsyncFnOnce(Option<&str>) -> io::Result<(Permit, Arc<ServerConfig>)>,
) -> io::Result<Established> {
    let mut incoming = Vec::new();
    while !is_whole_record(&incoming) {
        receive(stream, &mut incoming).await?;
    }
    let (_permit, config) = choose(server_name(&incoming).as_deref()).await?;
    let mut connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let (received, undecrypted) = drive(stream, &mut connection, incoming).await?;
    let (chain, agreed) = facts(&connection)?;
    let (secrets, schedule) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    let session = Session::new(secrets, Schedule::Server(schedule)).map_err(invalid)?;
    Ok(Established { session, agreed, chain, received, undecrypted })
}

/// The server name in a ClientHello, if it is one and has one; what is wrong with it the handshake will say.
fn server_name(hello: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut &*hello).ok()?;
    Some(acceptor.accept().ok()??.client_hello().server_name()?.to_owned())
}

/// What the loop does next, when rustls has been asked.
enum Step {
    Again,
    Send,
    Receive,
    Done,
}

/// A side of the handshake, as far as the loop can tell.
trait Handshake {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Whether `bytes` have a whole handshake record, or what is none: rustls will say so.
fn is_whole_record(bytes: &[u8]) -> bool {
    const HANDSHAKE: u8 = 22;
    match bytes {
        [HANDSHAKE, _, _, high, low, content @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            length > MAX_PLAINTEXT || content.len() >= length
        }
        [] | [HANDSHAKE, ..] => false,
        _ => true,
    }
}

/// Appends what arrives next to `incoming`.
async fn receive(stream: &mut TcpStream, incoming: &mut Vec<u8>) -> io::Result<()> {
    if incoming.len() >= BUFFER {
        return Err(invalid("a handshake of more than 64 KiB"));
    }
    incoming.reserve(READ);
    match stream.read_buf(incoming).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Runs the handshake to its end, beginning with what is in `incoming`. Returns decrypted bytes that came early, and
/// what is not decrypted.
async fn drive(
    stream: &mut TcpStream,
    connection: &mut impl Handshake,
    mut incoming: Vec<u8>,
) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut outgoing, mut received) = (Vec::new(), Vec::new());
    loop {
        let step = match step(connection, &mut incoming, &mut outgoing, &mut received) {
            Ok(step) => step,
            Err(error) => {
                // rustls has made an alert that tells the other side why. Asking for more than that would have it
                // look at the same bytes again.
                if let Ok(Step::Again) = step(connection, &mut incoming, &mut outgoing, &mut received) {
                    let _ = stream.write_all(&outgoing).await;
                }
                return Err(invalid(error));
            }
        };
        match step {
            Step::Again => {}
            Step::Send => {
                stream.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Step::Receive => receive(stream, &mut incoming).await?,
            Step::Done => return Ok((received, incoming)),
        }
    }
}

fn step(
    connection: &mut impl Handshake,
    incoming: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    received: &mut Vec<u8>,
) -> Result<Step, rustls::Error> {
    let UnbufferedStatus { mut discard, state, .. } = connection.process(incoming);
    let step = state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut data) => {
            encode(&mut data, outgoing);
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Send)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Receive),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                received.extend_from_slice(record.payload);
            }
            Ok(Step::Again)
        }
        _ => Err(rustls::Error::General("the other side ended the handshake".to_owned())),
    });
    incoming.drain(..discard);
    step
}

/// Appends an encoded record to `outgoing`.
fn encode<Data>(data: &mut rustls::unbuffered::EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) {
    use rustls::unbuffered::{EncodeError, InsufficientSizeError};
    let begin = outgoing.len();
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut [])
    else {
        return;
    };
    outgoing.resize(begin + required_size, 0);
    // It fits: the size is the one that was asked for.
    let _ = data.encode(&mut outgoing[begin..]);
}

/// The other side's chain, and what was agreed on, once it is certain that both speak the tunnel protocol: a server
/// without ALPN would do the handshake all the same.
fn facts<Data>(
    connection: &UnbufferedConnectionCommon<Data>,
) -> io::Result<(Vec<CertificateDer<'static>>, Agreed)> {
    if connection.alpn_protocol() != Some(PROTOCOL.as_bytes()) {
        return Err(invalid(rustls::Error::NoApplicationProtocol));
    }
    let agreed = Agreed {
        version: connection.protocol_version(),
        key_exchange: connection.negotiated_key_exchange_group().map(|group| group.name()),
        cipher: connection.negotiated_cipher_suite().map(|suite| suite.suite()),
    };
    Ok((connection.peer_certificates().unwrap_or_default().to_vec(), agreed))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
