//! TLS as the mesh speaks it: 1.3 only, both ends named by SPIFFE ids, no resumption.
//!
//! Threats: rustls does not verify a client certificate again when a session is resumed, so an expired or
//! revoked one would be accepted; therefore tickets and session storage are off on both sides. Names in
//! certificates are checked against the identity that the caller expects, never against a host name.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};

use super::verify::{CallerVerifier, Dialling, Expected, Roots, ServerVerifier, root_store};
use super::{Identity, IdentityError, SpiffeId, TrustDomain};
use crate::tunnel::PROTOCOL;

/// Behind the port of a service.
const SERVICE_SUFFIX: &str = ".murmesh";

/// ALPN of the server's interface: HTTP/2.
pub const API_ALPN: &[u8] = b"h2";

/// The one crypto provider: X25519MLKEM768 first, and AES-128-GCM first where the CPU has AES instructions.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        if !has_aes() {
            suites.rotate_right(1);
        }
        Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
    });
    PROVIDER.clone()
}

/// For dialling the service or the agent `expected`, which must prove to be exactly that. The tunnel makes its own
/// records, so this and its counterpart are the configurations whose traffic secrets rustls may give out.
///
/// # Errors
/// When the identity or its bundle is unusable.
pub fn tunnel_client(identity: &Identity, expected: &SpiffeId) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config =
        client(Some(identity), &identity.bundle, Expected::Exactly(expected.clone()), PROTOCOL.as_bytes())?;
    config.enable_secret_extraction = true;
    config.enable_sni = true;
    Ok(Arc::new(config))
}

/// What says, in a handshake, that the service on `port` is wanted.
///
/// Threats: it is sent in clear. Whoever reads it could tell the port from a plain connection too, and learns nothing
/// of workloads.
pub fn service_name(port: u16) -> ServerName<'static> {
    let name = ServerName::try_from(format!("p{port}{SERVICE_SUFFIX}"));
    name.unwrap_or_else(|_| ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()))
}

/// The port in a name that [`service_name`] made.
pub fn service_port(name: &str) -> Option<u16> {
    name.strip_prefix('p')?.strip_suffix(SERVICE_SUFFIX)?.parse().ok()
}

/// For accepting tunnels: the caller must be a host of our trust domain, or a workload of one.
///
/// # Errors
/// When the identity or its bundle is unusable.
pub fn tunnel_server(identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier =
        CallerVerifier::new(&identity.bundle, identity.id.trust_domain.clone(), Dialling::Caller, true)?;
    let config =
        server_builder(verifier)?.with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    let mut config = finish_server(config, PROTOCOL.as_bytes());
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// For calling a server of the mesh as `identity`.
///
/// # Errors
/// When the identity or its bundle is unusable.
pub fn api_client(identity: &Identity) -> Result<Arc<ClientConfig>, IdentityError> {
    let expected = Expected::AnyServer(identity.id.trust_domain.clone());
    client(Some(identity), &identity.bundle, expected, API_ALPN).map(Arc::new)
}

/// For calling a server of the mesh without a certificate of one's own, to renew one.
///
/// # Errors
/// When the bundle is unusable.
pub fn renewal_client(
    trust_domain: &TrustDomain,
    bundle: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, IdentityError> {
    client(None, bundle, Expected::AnyServer(trust_domain.clone()), API_ALPN).map(Arc::new)
}

/// For joining: the server must present a root with this SHA-256 `fingerprint` and be certified by it.
///
/// # Errors
/// When TLS cannot be configured.
pub fn join_client(
    trust_domain: &TrustDomain,
    fingerprint: [u8; 32],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let verifier = ServerVerifier {
        roots: Roots::Fingerprint(fingerprint),
        expected: Expected::AnyServer(trust_domain.clone()),
    };
    finish_client(None, verifier, API_ALPN).map(Arc::new)
}

/// For the server's interface: a client certificate, of a host or of another server, is optional here and demanded by each
/// call that needs one.
///
/// # Errors
/// When the bundle is unusable.
pub fn api_server(
    trust_domain: &TrustDomain,
    bundle: &[CertificateDer<'static>],
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = CallerVerifier::new(bundle, trust_domain.clone(), Dialling::Member, false)?;
    Ok(Arc::new(finish_server(server_builder(verifier)?.with_cert_resolver(certificate), API_ALPN)))
}

/// SHA-256 of a certificate's DER: the fingerprint that join tokens carry.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    super::token::sha256(certificate)
}

fn client(
    identity: Option<&Identity>,
    bundle: &[CertificateDer<'static>],
    expected: Expected,
    alpn: &[u8],
) -> Result<ClientConfig, IdentityError> {
    finish_client(identity, ServerVerifier { roots: Roots::Bundle(root_store(bundle)?), expected }, alpn)
}

fn finish_client(
    identity: Option<&Identity>,
    verifier: ServerVerifier,
    alpn: &[u8],
) -> Result<ClientConfig, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

fn server_builder(
    verifier: CallerVerifier,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, IdentityError> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier)))
}

fn finish_server(mut config: ServerConfig, alpn: &[u8]) -> ServerConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::fixture::{authority, host, issue, server};
    use crate::identity::{Subject, peer_identity};
    use rustls::{ClientConnection, NamedGroup, ServerConnection};
    use std::time::{Duration, SystemTime};

    /// Carries the handshake between the two in memory.
    fn handshake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let mut client = ClientConnection::new(client, "unused.test".try_into().unwrap())?;
        let mut server = ServerConnection::new(server)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            server.read_tls(&mut flight.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut flight = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut flight).unwrap();
            }
            client.read_tls(&mut flight.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok((client, server))
    }

    fn tunnel(
        from: &Identity,
        expected: &SpiffeId,
        to: &Identity,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        handshake(tunnel_client(from, expected).unwrap(), tunnel_server(to).unwrap())
    }

    #[test]
    fn a_tunnel_is_post_quantum_and_both_ends_are_known() {
        let authority = authority();
        let (one, two) = (host(&authority, "fcc00"), host(&authority, "fcs00"));
        let (client, server) = tunnel(&one, &two.id, &two).unwrap();
        assert_eq!(client.alpn_protocol(), Some(PROTOCOL.as_bytes()));
        assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(peer_identity(server.peer_certificates().unwrap()).unwrap().id, one.id.into());
        assert_eq!(peer_identity(client.peer_certificates().unwrap()).unwrap().id, two.id.into());
    }

    #[test]
    fn another_host_of_the_same_mesh_is_not_the_expected_one() {
        let authority = authority();
        let (one, two, other) = (host(&authority, "one"), host(&authority, "two"), host(&authority, "other"));
        assert!(tunnel(&one, &two.id, &other).is_err());
    }

    #[test]
    fn the_name_of_a_service_tells_its_port() {
        for port in [1, 8181, u16::MAX] {
            assert_eq!(service_port(&service_name(port).to_str()), Some(port));
        }
        for wrong in ["p.murmesh", "8181.murmesh", "p8181", "p65536.murmesh", "p8181.murmesh.org"] {
            assert_eq!(service_port(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_workload_reaches_exactly_the_service_that_it_wants() {
        let authority = authority();
        let workload = |node: &str, name: &str| {
            let subject = Subject::Workload(node.parse().unwrap(), name.parse().unwrap());
            issue(&authority, subject, Duration::from_secs(60))
        };
        let (caller, web, database) =
            (workload("one", "user-root"), workload("two", "web.service"), workload("two", "db.service"));
        let (_, accepted) = tunnel(&caller, &web.id, &web).unwrap();
        assert_eq!(
            peer_identity(accepted.peer_certificates().unwrap()).unwrap().id,
            caller.id.clone().into()
        );
        assert!(tunnel(&caller, &database.id, &web).is_err(), "the right host, the wrong service");
        let service = issue(&authority, Subject::Service("web".parse().unwrap()), Duration::from_secs(60));
        assert!(tunnel(&service, &web.id, &web).is_err(), "a service calls as a workload");
    }

    #[test]
    fn neither_end_accepts_another_mesh_of_the_same_name() {
        let (ours, theirs) = (authority(), authority());
        let (one, foreigner) = (host(&ours, "one"), host(&theirs, "two"));
        assert!(tunnel(&one, &foreigner.id, &foreigner).is_err());
        let mut disguised = host(&theirs, "two");
        disguised.bundle = vec![ours.root().clone()];
        assert!(tunnel(&disguised, &one.id, &one).is_err());
    }

    #[test]
    fn a_server_is_no_host() {
        let authority = authority();
        let (one, server) = (host(&authority, "one"), server(&authority, "two"));
        assert!(tunnel(&server, &one.id, &one).is_err());
        assert!(
            tunnel(&one, &SpiffeId::host(one.id.trust_domain.clone(), "two".parse().unwrap()), &server)
                .is_err()
        );
    }

    #[test]
    fn an_expired_certificate_is_refused_at_both_ends() {
        let authority = authority();
        let (one, expired) = (
            host(&authority, "one"),
            issue(&authority, Subject::Host("two".parse().unwrap()), Duration::ZERO),
        );
        // A certificate is valid through the whole second in which it ends (RFC 5280 section 4.1.2.5).
        let end = expired.not_after + Duration::from_secs(1);
        std::thread::sleep(end.duration_since(SystemTime::now()).unwrap_or_default());
        assert!(tunnel(&one, &expired.id, &expired).is_err());
        assert!(tunnel(&expired, &one.id, &one).is_err());
    }

    #[test]
    fn a_caller_without_a_certificate_gets_no_tunnel() {
        let authority = authority();
        let (one, expected) =
            (host(&authority, "one"), Expected::AnyServer(authority.trust_domain().clone()));
        let anonymous = client(None, &one.bundle, expected, PROTOCOL.as_bytes()).unwrap();
        assert!(handshake(anonymous.into(), tunnel_server(&one).unwrap()).is_err());
    }
}
