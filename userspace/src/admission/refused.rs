//! Why a connection to one of Murmesh's own ports was refused, and how many were for each reason.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustls::{CertificateError, Error};

/// A reason. There are these and no others, so that they can be the labels of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many connections as may be wait for the other side to prove who it is.
    #[error("too many connections have not proved yet who they are")]
    TooMany,
    /// As many do as may be of one source.
    #[error("too many connections from there have not proved yet who they are")]
    TooManyOfSource,
    /// Its source, or all of them, began as many in this second as may be.
    #[error("too many connections were begun in this second")]
    TooOften,
    /// Its host has as many connections as it may have.
    #[error("its host has as many connections as one may have")]
    TooManyOfHost,
    /// There are as many connections as may be.
    #[error("there are as many connections as there may be")]
    Full,
    /// It did not prove in time who it is.
    #[error("it did not prove in time who it is")]
    TimedOut,
    /// It sent more than it may before that.
    #[error("it sent more than it may before it has proved who it is")]
    TooMuch,
    /// It went before that, or was broken.
    #[error("it ended before it had proved who it is")]
    Ended,
    /// What it says is no TLS 1.3, or not as it must be.
    #[error("it does not speak TLS 1.3")]
    NotTls,
    /// It speaks TLS, and something else in it than what is spoken here (ALPN).
    #[error("it speaks another protocol")]
    OtherProtocol,
    /// It has no certificate.
    #[error("it has no certificate")]
    NoCertificate,
    /// Its certificate is of another authority.
    #[error("its certificate is of another authority")]
    OtherAuthority,
    /// Its certificate has ended.
    #[error("its certificate has ended")]
    Expired,
    /// Its certificate has not begun.
    #[error("its certificate has not begun")]
    NotYetValid,
    /// Something else is wrong with its certificate, such as who it is for.
    #[error("its certificate is not accepted")]
    Certificate,
    /// Its host was removed from the mesh.
    #[error("its host was removed from the mesh")]
    Removed,
    /// It does not accept this host.
    #[error("it does not accept the certificate of this host")]
    ByOther,
    /// It was accepted, and did not keep to the protocol.
    #[error("it broke the protocol")]
    BrokeProtocol,
    /// This host lacks what it takes.
    #[error("this host lacks what it takes")]
    Local,
}

/// A reason, and what there is to say about it.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// Why.
    pub reason: Refused,
    /// In words.
    pub detail: String,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 19] = [
        Self::TooMany,
        Self::TooManyOfSource,
        Self::TooOften,
        Self::TooManyOfHost,
        Self::Full,
        Self::TimedOut,
        Self::TooMuch,
        Self::Ended,
        Self::NotTls,
        Self::OtherProtocol,
        Self::NoCertificate,
        Self::OtherAuthority,
        Self::Expired,
        Self::NotYetValid,
        Self::Certificate,
        Self::Removed,
        Self::ByOther,
        Self::BrokeProtocol,
        Self::Local,
    ];

    /// In one word, as status and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooManyOfSource => "too_many_of_source",
            Self::TooOften => "too_often",
            Self::TooManyOfHost => "too_many_of_host",
            Self::Full => "full",
            Self::TimedOut => "timed_out",
            Self::TooMuch => "too_much",
            Self::Ended => "ended",
            Self::NotTls => "not_tls",
            Self::OtherProtocol => "other_protocol",
            Self::NoCertificate => "no_certificate",
            Self::OtherAuthority => "other_authority",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Certificate => "certificate",
            Self::Removed => "removed",
            Self::ByOther => "by_other",
            Self::BrokeProtocol => "broke_protocol",
            Self::Local => "local",
        }
    }

    /// Why a handshake failed.
    pub fn of(error: &io::Error) -> Self {
        let cause = error.get_ref();
        if let Some(reason) = cause.and_then(|cause| cause.downcast_ref::<Self>()) {
            return *reason;
        }
        if let Some(refusal) = cause.and_then(|cause| cause.downcast_ref::<Refusal>()) {
            return refusal.reason;
        }
        match (cause.and_then(|cause| cause.downcast_ref()), error.kind()) {
            (Some(error), _) => Self::of_tls(error),
            (None, io::ErrorKind::TimedOut) => Self::TimedOut,
            (None, io::ErrorKind::InvalidData) => Self::NotTls,
            (None, io::ErrorKind::Other) => Self::Local,
            (None, _) => Self::Ended,
        }
    }

    /// Why a connection broke that had been accepted; `None` where it only ended.
    pub fn after_acceptance(error: &io::Error) -> Option<Self> {
        match Self::of(error) {
            Self::TooMuch => Some(Self::TooMuch),
            Self::NotTls | Self::BrokeProtocol => Some(Self::BrokeProtocol),
            _ => None,
        }
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::NoApplicationProtocol => Self::OtherProtocol,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(_) => Self::ByOther,
            Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer => Self::OtherAuthority,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                _ => Self::Certificate,
            },
            _ => Self::NotTls,
        }
    }
}

/// How many connections were refused, by reason, since the start.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Refused::ALL.len()]);

impl Refusals {
    /// One more.
    pub fn add(&self, reason: Refused) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }

    /// How many for each reason, with those for which there were none.
    pub fn all(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().map(|reason| (reason, self.0[reason as usize].load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn each_reason_has_a_name_and_a_counter_of_its_own() {
        let refusals = Refusals::default();
        for (times, reason) in Refused::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| refusals.add(reason));
        }
        let counted: Vec<_> = refusals.all().map(|(_, count)| count).collect();
        assert_eq!(counted, (0..Refused::ALL.len() as u64).collect::<Vec<_>>());
        let names: HashSet<_> = Refused::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Refused::ALL.len());
    }

    #[test]
    fn a_failed_handshake_has_the_reason_of_its_error() {
        let tls = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, reason) in [
            (tls(CertificateError::UnknownIssuer.into()), Refused::OtherAuthority),
            (tls(CertificateError::Expired.into()), Refused::Expired),
            (tls(CertificateError::NotValidYet.into()), Refused::NotYetValid),
            (tls(CertificateError::NotValidForName.into()), Refused::Certificate),
            (tls(Error::NoApplicationProtocol), Refused::OtherProtocol),
            (tls(Error::NoCertificatesPresented), Refused::NoCertificate),
            (tls(Error::AlertReceived(AlertDescription::UnknownCA)), Refused::ByOther),
            (tls(Error::DecryptError), Refused::NotTls),
            (io::ErrorKind::TimedOut.into(), Refused::TimedOut),
            (io::ErrorKind::UnexpectedEof.into(), Refused::Ended),
            (io::ErrorKind::ConnectionReset.into(), Refused::Ended),
            (io::Error::other("no certificate"), Refused::Local),
            (io::Error::other(Refused::Full), Refused::Full),
            (io::Error::other(Refusal { reason: Refused::Removed, detail: String::new() }), Refused::Removed),
        ] {
            assert_eq!(Refused::of(&error), reason, "{error:?}");
        }
    }

    #[test]
    fn a_connection_that_was_accepted_is_refused_only_for_what_it_sent() {
        let misbehaved = io::Error::new(io::ErrorKind::InvalidData, Error::DecryptError);
        assert_eq!(Refused::after_acceptance(&misbehaved), Some(Refused::BrokeProtocol));
        let too_much = io::Error::other(Refused::TooMuch);
        assert_eq!(Refused::after_acceptance(&too_much), Some(Refused::TooMuch));
        assert_eq!(Refused::after_acceptance(&io::ErrorKind::ConnectionReset.into()), None);
        assert_eq!(Refused::after_acceptance(&io::ErrorKind::TimedOut.into()), None);
    }
}
