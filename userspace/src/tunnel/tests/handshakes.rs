//! Handshakes with a stock implementation, and those that must fail.

use std::{
    io,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{AlertDescription, ClientConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{connection, hosts, open, stock};
use crate::{
    admission::Refused,
    identity::{Identity, SpiffeId, Subject, fixture, tls},
    tunnel::{DialError, Received, TunnelError, answer, dial, tls::RecordError},
};

/// The roots of two meshes have names of their own, also where the meshes have one name.
const OTHER_MESH: &str = "UnknownIssuer";
const OTHER_MESH_ALERT: AlertDescription = AlertDescription::UnknownCA;

/// `client` dials with our code and expects `expected`, a stock server answers as `service`. Returns the errors of
/// both.
async fn dial_stock(client: &Identity, expected: &SpiffeId, service: &Identity) -> (DialError, io::Error) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(tls::tunnel_server(service).unwrap());
    let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    let (ours, theirs) =
        tokio::join!(dial(address, tls::tunnel_client(client, expected).unwrap(), None, None), accepted);
    (ours.err().unwrap(), theirs.err().unwrap())
}

fn is_alert(error: &io::Error, expected: AlertDescription) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::AlertReceived(alert)) if *alert == expected)
}

#[tokio::test]
async fn an_opener_tells_a_server_of_another_mesh_why_it_leaves() {
    let ((client, _), (_, stranger)) = (hosts(), hosts());
    let (ours, theirs) = dial_stock(&client, &stranger.id, &stranger).await;
    assert!(ours.to_string().contains(OTHER_MESH), "{ours}");
    assert!(is_alert(&theirs, OTHER_MESH_ALERT), "{theirs}");
}

#[tokio::test]
async fn an_opener_tells_another_host_of_the_mesh_why_it_leaves() {
    let authority = fixture::authority();
    let [client, service, other] = ["one", "two", "other"].map(|node| fixture::host(&authority, node));
    let (ours, theirs) = dial_stock(&client, &service.id, &other).await;
    assert!(matches!(&ours, DialError::AnotherService(_)), "{ours}");
    assert!(is_alert(&theirs, AlertDescription::BadCertificate), "{theirs}");
}

#[tokio::test]
async fn an_acceptor_tells_a_client_of_another_mesh_why_it_leaves() {
    let (_, service) = hosts();
    let (mut stranger, _) = hosts();
    stranger.bundle = service.bundle.clone();
    let (connected, accepted) = connection().await;
    let config = tls::tunnel_client(&stranger, &service.id).unwrap();
    let client = async {
        let mut stream = TlsConnector::from(config).connect(stock::name(), connected).await.unwrap();
        stream.read_u8().await.unwrap_err()
    };
    let ours = answer(accepted, async |_| Ok(((), tls::tunnel_server(&service).unwrap())));
    let (ours, theirs) = tokio::join!(ours, client);
    let ours = ours.err().unwrap();
    assert!(ours.to_string().contains(OTHER_MESH), "{ours}");
    assert!(is_alert(&theirs, OTHER_MESH_ALERT), "{theirs}");
}

/// In TLS 1.3 the client is done before the server has seen its certificate.
#[tokio::test]
async fn an_opener_that_is_refused_after_its_handshake_learns_why() {
    let (_, service) = hosts();
    let (mut stranger, _) = hosts();
    stranger.bundle = service.bundle.clone();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(tls::tunnel_server(&service).unwrap());
    let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    let config = tls::tunnel_client(&stranger, &service.id).unwrap();
    let (ours, _refused) = tokio::join!(dial(address, config, None, None), accepted);
    let error = ours.unwrap().receive().await.unwrap_err();
    let expected = RecordError::Alert(OTHER_MESH_ALERT);
    assert!(matches!(&error, TunnelError::Tls(found) if *found == expected), "{error}");
}

#[tokio::test]
async fn something_that_is_no_tls_is_refused() {
    let (_, service) = hosts();
    let (mut connected, accepted) = connection().await;
    connected.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error =
        answer(accepted, async |_| Ok(((), tls::tunnel_server(&service).unwrap()))).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

/// Does a stock client's handshake by hand. Returns the connection, and the last flight with OPEN behind it, unsent.
async fn last_flight(client: &Identity, service: &SpiffeId, stream: &mut TcpStream) -> Vec<u8> {
    let config = tls::tunnel_client(client, service).unwrap();
    let mut session = rustls::ClientConnection::new(config, stock::name()).unwrap();
    let mut received = [0; 16 * 1024];
    loop {
        let mut flight = Vec::new();
        if !session.is_handshaking() {
            io::Write::write_all(&mut session.writer(), &stock::encoded(&open())).unwrap();
        }
        while session.wants_write() {
            session.write_tls(&mut flight).unwrap();
        }
        if !session.is_handshaking() {
            return flight;
        }
        stream.write_all(&flight).await.unwrap();
        let length = stream.read(&mut received).await.unwrap();
        session.read_tls(&mut &received[..length]).unwrap();
        session.process_new_packets().unwrap();
    }
}

#[tokio::test]
async fn a_frame_may_come_together_with_the_last_message_of_the_handshake() {
    let (client, service) = hosts();
    for held_back in [0, 1, 20] {
        let (mut connected, accepted) = connection().await;
        let config = tls::tunnel_server(&service).unwrap();
        let ours = async {
            let mut tunnel = answer(accepted, async |_| Ok(((), config))).await.unwrap();
            tunnel.receive().await.unwrap()
        };
        let theirs = async {
            let flight = last_flight(&client, &service.id, &mut connected).await;
            let (now, later) = flight.split_at(flight.len() - held_back);
            connected.write_all(now).await.unwrap();
            // The other end has what was written when it sleeps again, and it has nothing else to do.
            tokio::task::yield_now().await;
            connected.write_all(later).await.unwrap();
        };
        let (received, ()) = tokio::join!(ours, theirs);
        assert_eq!(received, Received::Frame(open()));
    }
}

/// Why an acceptor refuses who does that.
async fn refused(service: &Identity, attack: impl AsyncFnOnce(TcpStream)) -> Refused {
    let (connected, accepted) = connection().await;
    let ours = answer(accepted, async |_| Ok(((), tls::tunnel_server(service).unwrap())));
    let (ours, ()) = tokio::join!(ours, attack(connected));
    Refused::of(&ours.err().unwrap())
}

/// Why it refuses who says that and goes.
async fn refused_for(service: &Identity, bytes: &[u8]) -> Refused {
    refused(service, async |mut stream| stream.write_all(bytes).await.unwrap()).await
}

/// Why it refuses a stock client with this configuration.
async fn refused_with(service: &Identity, config: ClientConfig) -> Refused {
    refused(service, async |stream| {
        if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(stock::name(), stream).await {
            stream.read_u8().await.unwrap_err();
        }
    })
    .await
}

#[tokio::test]
async fn each_way_to_be_no_host_of_the_mesh_has_its_reason() {
    let authority = fixture::authority();
    let service = fixture::host(&authority, "fcs00");
    let hello = fixture::tls12_hello();
    assert_eq!(refused_for(&service, b"GET / HTTP/1.1\r\n\r\n").await, Refused::NotTls);
    assert_eq!(refused_for(&service, &hello).await, Refused::NotTls, "TLS 1.2");
    assert_eq!(refused_for(&service, &hello[..40]).await, Refused::Ended, "half a ClientHello");
    assert_eq!(refused_for(&service, &[22, 3, 1, 0xff, 0xff]).await, Refused::NotTls, "too long a record");
    assert_eq!(refused_for(&service, &[]).await, Refused::Ended);

    let config = |identity: Identity| {
        let identity = Identity { bundle: service.bundle.clone(), ..identity };
        Arc::unwrap_or_clone(tls::tunnel_client(&identity, &service.id).unwrap())
    };
    let node = "fcc00".parse().unwrap();
    let made = |made| fixture::issue_to(&authority, Subject::Host("fcc00".parse().unwrap()), &node, made);
    let (now, hours) = (SystemTime::now(), Duration::from_secs(2 * 3600));
    assert_eq!(refused_with(&service, config(made(now - hours))).await, Refused::Expired);
    assert_eq!(refused_with(&service, config(made(now + hours))).await, Refused::NotYetValid);
    let stranger = fixture::host(&fixture::authority(), "fcc00");
    assert_eq!(refused_with(&service, config(stranger)).await, Refused::OtherAuthority);
    let server = fixture::server(&authority, "murmesh00");
    assert_eq!(refused_with(&service, config(server)).await, Refused::Certificate);
    for other in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut config = config(made(now));
        config.alpn_protocols = other;
        assert_eq!(refused_with(&service, config).await, Refused::OtherProtocol);
    }
    let mut anonymous = config(made(now));
    anonymous.client_auth_cert_resolver = Arc::new(fixture::Anonymous);
    assert_eq!(refused_with(&service, anonymous).await, Refused::NoCertificate);
    let elsewhere = tls::tunnel_client(&made(now), &stranger_id()).unwrap();
    assert_eq!(refused_with(&service, Arc::unwrap_or_clone(elsewhere)).await, Refused::ByOther);
}

/// Of a host that is not there.
fn stranger_id() -> SpiffeId {
    SpiffeId::host("mesh.test".parse().unwrap(), "elsewhere".parse().unwrap())
}
