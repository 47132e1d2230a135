//! What agents ask, up to where the store comes in.

use prost::Message;

use super::mesh::{held, named, verified};
use super::plaintext;
use crate::api::v1;
use crate::catalog::Report;
use crate::identity::SpiffeId;

/// A message to the server; the first byte of the input says to which call. What is taken is within all limits, and the
/// same when it is written and read again.
pub fn api_request(input: &[u8]) {
    let Some((call, message)) = input.split_first() else { return };
    match call % 6 {
        0 => with(message, |join: v1::JoinRequest| {
            _ = (named(&join.node), verified(&join.certificate_request))
        }),
        1 => {
            with(message, |renew: v1::RenewRequest| {
                _ = (named(&renew.node), verified(&renew.certificate_request));
            });
        }
        2 => {
            with(message, |sign: v1::SignWorkloadRequest| {
                _ = (sign.spiffe_id.parse::<SpiffeId>(), verified(&sign.certificate_request));
            });
        }
        3 => with(message, report),
        4 => with(message, clear),
        _ => with(message, |confirm: v1::ConfirmRequest| _ = (held(confirm.roots), held(confirm.issuers))),
    }
}

fn with<M: Message + Default>(message: &[u8], take: impl FnOnce(M)) {
    if let Ok(message) = M::decode(message) {
        take(message);
    }
}

fn report(message: v1::HostReport) {
    let Ok(mut report) = Report::try_from(message) else { return };
    assert_eq!(Report::try_from(v1::HostReport::from(&report)).as_ref(), Ok(&report));
    let is_within = report.check().is_ok();
    let whole = report.clone();
    assert_eq!(report.truncate().is_ok(), is_within);
    assert!(report.check().is_ok());
    assert!(!is_within || report == whole);
}

fn clear(report: v1::PlaintextReport) {
    if plaintext::check(&report).is_ok() {
        let merged = plaintext::merged(&plaintext::by_clock(report, 1_000_000), None);
        assert_eq!(plaintext::check(&merged), Ok(()));
    }
}
