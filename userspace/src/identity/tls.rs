//! TLS as the mesh speaks it: 1.3 only, both ends named by SPIFFE ids, no resumption.
//!
//! Threats: rustls does not verify a client certificate again when a session is resumed, so an expired or
//! revoked one would be accepted; therefore tickets and session storage are off on both sides. Names in
//! certificates are checked against the identity that the caller expects, never against a host name.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Identity, IdentityError, Kind, SpiffeId, TrustDomain, peer_identity};

/// ALPN of the tunnel between agents.
pub const TUNNEL_ALPN: &[u8] = b"murmesh/1";
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

/// For dialling the agent `expected`, which must prove to be exactly that.
/// No server name is sent: any [`ServerName`] will do when connecting.
///
/// # Errors
/// When the identity or its bundle is unusable.
pub fn tunnel_client(identity: &Identity, expected: &SpiffeId) -> Result<Arc<ClientConfig>, IdentityError> {
    client(Some(identity), &identity.bundle, Expected::Exactly(expected.clone()), TUNNEL_ALPN)
}

/// For accepting tunnels: the caller must be a host of our trust domain.
///
/// # Errors
/// When the identity or its bundle is unusable.
pub fn tunnel_server(identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = HostVerifier::new(&identity.bundle, identity.id.trust_domain.clone(), true)?;
    let config =
        server_builder(verifier)?.with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    Ok(finish_server(config, TUNNEL_ALPN))
}

/// For calling a server of the mesh as `identity`.
///
/// # Errors
/// When the identity or its bundle is unusable.
pub fn api_client(identity: &Identity) -> Result<Arc<ClientConfig>, IdentityError> {
    let expected = Expected::AnyServer(identity.id.trust_domain.clone());
    client(Some(identity), &identity.bundle, expected, API_ALPN)
}

/// For calling a server of the mesh without a certificate of one's own, to renew one.
///
/// # Errors
/// When the bundle is unusable.
pub fn renewal_client(
    trust_domain: &TrustDomain,
    bundle: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, IdentityError> {
    client(None, bundle, Expected::AnyServer(trust_domain.clone()), API_ALPN)
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
    finish_client(None, verifier, API_ALPN)
}

/// For the server's interface: a client certificate is optional here and demanded by each call that needs one.
///
/// # Errors
/// When the bundle is unusable.
pub fn api_server(
    trust_domain: &TrustDomain,
    bundle: &[CertificateDer<'static>],
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = HostVerifier::new(bundle, trust_domain.clone(), false)?;
    Ok(finish_server(server_builder(verifier)?.with_cert_resolver(certificate), API_ALPN))
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
) -> Result<Arc<ClientConfig>, IdentityError> {
    finish_client(identity, ServerVerifier { roots: Roots::Bundle(root_store(bundle)?), expected }, alpn)
}

fn finish_client(
    identity: Option<&Identity>,
    verifier: ServerVerifier,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, IdentityError> {
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
    Ok(Arc::new(config))
}

fn server_builder(
    verifier: HostVerifier,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, IdentityError> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier)))
}

fn finish_server(mut config: ServerConfig, alpn: &[u8]) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

fn root_store(bundle: &[CertificateDer<'static>]) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for root in bundle {
        roots.add(root.clone()).map_err(|error| IdentityError::Bundle(error.to_string()))?;
    }
    Ok(roots)
}

#[derive(Debug)]
enum Expected {
    Exactly(SpiffeId),
    AnyServer(TrustDomain),
}

impl Expected {
    fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(expected) => id == expected,
            Self::AnyServer(trust_domain) => id.kind == Kind::Server && id.trust_domain == *trust_domain,
        }
    }
}

#[derive(Debug)]
enum Roots {
    Bundle(RootCertStore),
    Fingerprint([u8; 32]),
}

/// Verifies the accepting side for the side that dials.
#[derive(Debug)]
struct ServerVerifier {
    roots: Roots,
    expected: Expected,
}

impl ServerVerifier {
    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = provider().signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(leaf)?;
        match &self.roots {
            Roots::Bundle(roots) => {
                verify_server_cert_signed_by_trust_anchor(&leaf, roots, others, now, algorithms)
            }
            Roots::Fingerprint(expected) => {
                let root = others
                    .iter()
                    .find(|certificate| fingerprint(certificate) == *expected)
                    .ok_or(CertificateError::UnknownIssuer)?;
                let mut roots = RootCertStore::empty();
                roots.add(root.clone().into_owned())?;
                verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &[], now, algorithms)
            }
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_chain(end_entity, intermediates, now)?;
        if self.expected.admits(&certified_id(end_entity)?) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the dialling side for the side that accepts: a host of our trust domain.
#[derive(Debug)]
struct HostVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
    mandatory: bool,
}

impl HostVerifier {
    fn new(
        bundle: &[CertificateDer<'static>],
        trust_domain: TrustDomain,
        mandatory: bool,
    ) -> Result<Self, IdentityError> {
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(root_store(bundle)?), provider())
            .build()
            .map_err(|error| IdentityError::Bundle(error.to_string()))?;
        Ok(Self { chain, trust_domain, mandatory })
    }
}

impl ClientCertVerifier for HostVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let id = certified_id(end_entity)?;
        if id.kind == Kind::Host && id.trust_domain == self.trust_domain {
            Ok(verified)
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn certified_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    peer_identity(std::slice::from_ref(certificate))
        .map(|peer| peer.id)
        .map_err(|_| CertificateError::NotValidForName.into())
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
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
