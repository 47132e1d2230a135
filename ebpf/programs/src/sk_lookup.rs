//! `sk_lookup`: a plain connection from another host to a strict service, or from a host of the mesh that rules could
//! refuse the service, finds no listener, and is refused by the kernel; everything else passes untouched.
//!
//! Attached to the network namespace of the agent. Since Linux 5.9.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use murmesh_common::{Admission, Counter, UNKNOWN_SOURCE, VerdictKind, admission};

use crate::{context::Lookup, maps::count, surroundings::Asked};

#[sk_lookup]
pub fn murmesh_sk_lookup(context: SkLookupContext) -> u32 {
    let Some(arrival) = Lookup::new(&context).arrival() else { return SK_PASS };
    let asked = Asked(arrival);
    let rule = match admission(&asked.0, &asked) {
        Admission::Admitted => return SK_PASS,
        Admission::Strict => 0,
        Admission::Denied => UNKNOWN_SOURCE,
    };
    count(Counter::PlaintextRefused);
    asked.report(VerdictKind::PlaintextRefused, rule);
    SK_DROP
}
