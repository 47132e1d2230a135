//! Who is accepted at the other end of a TLS connection: a chain to one of our roots, and the right SPIFFE id.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::tls::{fingerprint, provider};
use super::{IdentityError, SpiffeId, Subject, TrustDomain, peer_identity};

/// Who must be at the other end.
#[derive(Debug)]
pub(super) enum Expected {
    Exactly(SpiffeId),
    /// Any server of the mesh.
    AnyServer(TrustDomain),
}

impl Expected {
    fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(expected) => id == expected,
            Self::AnyServer(trust_domain) => {
                matches!(id.subject, Subject::Server(_)) && id.trust_domain == *trust_domain
            }
        }
    }
}

/// What a chain must end in.
#[derive(Debug)]
pub(super) enum Roots {
    Bundle(RootCertStore),
    /// The SHA-256 of a root that the other end presents with its chain.
    Fingerprint([u8; 32]),
}

/// Verifies the accepting side for the side that dials.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Roots,
    pub(super) expected: Expected,
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
                // It may have signed the root that signs now, and not the leaf itself.
                verify_server_cert_signed_by_trust_anchor(&leaf, &roots, others, now, algorithms)
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
        let id = certified_id(end_entity)?;
        if self.expected.admits(&id) {
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

/// Who may dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialling {
    /// A host, or a server.
    Member,
    /// A host, or one of its workloads.
    Caller,
}

impl Dialling {
    fn admits(self, subject: &Subject) -> bool {
        match subject {
            Subject::Host(_) => true,
            Subject::Workload(..) => self == Self::Caller,
            Subject::Server(_) => self == Self::Member,
            Subject::Service(_) => false,
        }
    }
}

/// Verifies the dialling side for the side that accepts: it must be of our trust domain.
#[derive(Debug)]
pub(super) struct CallerVerifier {
    dialling: Dialling,
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
    mandatory: bool,
}

impl CallerVerifier {
    pub(super) fn new(
        bundle: &[CertificateDer<'static>],
        trust_domain: TrustDomain,
        dialling: Dialling,
        mandatory: bool,
    ) -> Result<Self, IdentityError> {
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(root_store(bundle)?), provider())
            .build()
            .map_err(|error| IdentityError::Bundle(error.to_string()))?;
        Ok(Self { dialling, chain, trust_domain, mandatory })
    }
}

impl ClientCertVerifier for CallerVerifier {
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
        if self.dialling.admits(&id.subject) && id.trust_domain == self.trust_domain {
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

fn certified_id(certificate: &CertificateDer<'_>) -> Result<Arc<SpiffeId>, Error> {
    peer_identity(std::slice::from_ref(certificate))
        .map(|peer| peer.id)
        .map_err(|_| CertificateError::NotValidForName.into())
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

pub(super) fn root_store(bundle: &[CertificateDer<'static>]) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for root in bundle {
        roots.add(root.clone()).map_err(|error| IdentityError::Bundle(error.to_string()))?;
    }
    Ok(roots)
}
