//! Names of the things that have identities: trust domains, hosts, workloads, services.
//!
//! Source: the SPIFFE-ID standard, sections 2.1 (trust domain) and 2.2 (path): a segment of a path is made of
//! letters, digits, '.', '-' and '_'.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// SPIFFE-ID section 2.3: an id is at most 2048 bytes, of which the trust domain may take 255.
const MAX_TRUST_DOMAIN: usize = 255;
/// RFC 1035 section 2.3.4.
const MAX_LABEL: usize = 63;
/// A cgroup's name has at most 255 bytes (NAME_MAX), and an escaped byte takes three.
const MAX_WORKLOAD: usize = 3 * 255;

/// Beginnings of the names of workloads that are no units. No unit has a name with one of these that ends in what
/// units end in and stands for something else: users' names have no '.', and cgroups that are called so are units.
const USER: &str = "user-";
const CGROUP: &str = "cgroup-";

/// Why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a trust domain.
    #[error(
        "{0:?} is not a trust domain: use 1 to 255 lower-case letters, digits, '.', '-' and '_', such as mesh.example.org"
    )]
    TrustDomain(String),
    /// Not a node name.
    #[error(
        "{0:?} is not a node name: use 1 to 63 lower-case letters, digits and '-', with no '-' at either end (--node)"
    )]
    Node(String),
    /// Not the name of a service.
    #[error(
        "{0:?} is not the name of a service: use 1 to 63 lower-case letters, digits and '-', with no '-' at either end"
    )]
    Service(String),
    /// Not the name of a workload.
    #[error(
        "{0:?} is not the name of a workload: use letters, digits, '.' and '-'; '_' is written '__' and any other byte '_' and two hexadecimal digits, so that getty@tty1.service is getty_40tty1.service"
    )]
    Workload(String),
    /// Not a SPIFFE id of this kind of mesh.
    #[error(
        "{0:?} is not an identity: expected spiffe://TRUST-DOMAIN/host/NODE, …/host/NODE/WORKLOAD, …/service/NAME or …/server/NODE"
    )]
    SpiffeId(String),
}

/// The name of a mesh: everything it certifies is below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the trust domain itself, which its root certificate bears.
    pub fn root_uri(&self) -> String {
        format!("{}{self}", super::spiffe::SCHEME)
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = (1..=MAX_TRUST_DOMAIN).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::TrustDomain(excerpt(text))) }
    }
}

/// The name of a host in its mesh, cheap to clone: one lower-case DNS label (RFC 1035 section 2.3.1, RFC 1123 section 2.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The node name that this machine's host name suggests: its first label, in lower case.
    ///
    /// # Errors
    /// When the host name cannot be read or its first label is no node name.
    pub fn of_this_machine() -> Result<Self, NameError> {
        let name = nix::unistd::gethostname().unwrap_or_default();
        let name = name.to_string_lossy().to_ascii_lowercase();
        name.split('.').next().unwrap_or_default().parse()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_label(text) { Ok(Self(text.into())) } else { Err(NameError::Node(excerpt(text))) }
    }
}

/// The name that an administrator gave to a service: one lower-case DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_label(text) { Ok(Self(text.to_owned())) } else { Err(NameError::Service(excerpt(text))) }
    }
}

/// What a host calls one of its workloads: its systemd unit, else its cgroup or its user. Letters, digits, '.' and '-' stand for
/// themselves, '_' is written `__`, and any other byte `_` and two hexadecimal digits: two units never have one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadName(String);

impl WorkloadName {
    /// The workload of a systemd unit, such as `nginx.service`.
    ///
    /// # Errors
    /// When the name is empty or has more than 255 bytes.
    pub fn of_unit(unit: &str) -> Result<Self, NameError> {
        let name: String = unit.bytes().map(escape).collect();
        name.parse()
    }

    /// The workload of a user outside of all units: `user-NAME`. A '.' is escaped too, so that no user has the
    /// name of a unit, and the first of nothing but digits, so that none has that of a user without a name.
    ///
    /// # Errors
    /// When the name is empty or has more than 250 bytes.
    pub fn of_user(user: &str) -> Result<Self, NameError> {
        let all_digits = user.bytes().all(|byte| byte.is_ascii_digit());
        let escaped = user.bytes().enumerate().map(|(index, byte)| match byte {
            b'.' => hexadecimal(byte),
            _ if all_digits && index == 0 => hexadecimal(byte),
            _ => escape(byte),
        });
        let name = escaped.collect::<String>();
        if name.is_empty() { Err(NameError::Workload(name)) } else { format!("{USER}{name}").parse() }
    }

    /// The workload of a cgroup that is no unit: `cgroup-NAME`, which no unit is called.
    ///
    /// # Errors
    /// When the name is empty or has more than 250 bytes.
    pub fn of_cgroup(name: &str) -> Result<Self, NameError> {
        let escaped = name.bytes().map(escape).collect::<String>();
        if escaped.is_empty() {
            Err(NameError::Workload(escaped))
        } else {
            format!("{CGROUP}{escaped}").parse()
        }
    }

    /// Whether a unit, a user or a cgroup can be called so by itself.
    pub fn is_automatic(&self) -> bool {
        let is_unit = [".service", ".scope"].into_iter().any(|kind| self.0.ends_with(kind));
        is_unit || self.0.starts_with(USER) || self.0.starts_with(CGROUP)
    }

    /// The workload of a user that has no name.
    pub fn of_uid(uid: u32) -> Self {
        Self(format!("{USER}{uid}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkloadName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = (1..=MAX_WORKLOAD).contains(&text.len()) && !matches!(text, "." | "..");
        if valid && is_escaped(text.as_bytes()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Workload(excerpt(text)))
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// As much of a wrong name as an error message should carry.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_label(text: &str) -> bool {
    (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn escape(byte: u8) -> String {
    match byte {
        b'_' => "__".to_owned(),
        byte if stands_for_itself(byte) => char::from(byte).to_string(),
        byte => hexadecimal(byte),
    }
}

fn hexadecimal(byte: u8) -> String {
    format!("_{byte:02x}")
}

fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')
}

fn is_escaped(mut bytes: &[u8]) -> bool {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    loop {
        bytes = match bytes {
            [] => return true,
            [b'_', b'_', rest @ ..] => rest,
            [b'_', high, low, rest @ ..] if digit(high) && digit(low) => rest,
            [byte, rest @ ..] if stands_for_itself(*byte) => rest,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_and_users_have_names_that_are_easy_to_read() {
        let unit = |text| WorkloadName::of_unit(text).unwrap().to_string();
        assert_eq!(unit("nginx.service"), "nginx.service");
        assert_eq!(unit("getty@tty1.service"), "getty_40tty1.service");
        assert_eq!(unit("my_app.service"), "my__app.service");
        let user = |text| WorkloadName::of_user(text).unwrap().to_string();
        assert_eq!((user("alice"), user("www-data")), ("user-alice".to_owned(), "user-www-data".to_owned()));
        assert_eq!(WorkloadName::of_uid(1000).to_string(), "user-1000");
    }

    #[test]
    fn a_user_never_has_the_name_of_a_unit_or_of_another_user() {
        let names = [
            WorkloadName::of_unit("user-alice.service"),
            WorkloadName::of_user("alice.service"),
            WorkloadName::of_user("1000"),
            Ok(WorkloadName::of_uid(1000)),
        ];
        assert_eq!(names.into_iter().map(Result::unwrap).collect::<HashSet<_>>().len(), 4);
        assert!(WorkloadName::of_user("").is_err() && WorkloadName::of_unit("").is_err());
    }

    #[test]
    fn a_workload_written_in_another_way_is_refused() {
        for text in ["", ".", "..", "a/b", "a@b", "a_", "a_4", "a_4G", "a_4F", "a b", "*", "é"] {
            assert!(text.parse::<WorkloadName>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn two_units_never_have_one_name(one in "[a_@.4]{1,6}", other in "[a_@.4]{1,6}") {
            if let (Ok(first), Ok(second)) = (WorkloadName::of_unit(&one), WorkloadName::of_unit(&other)) {
                prop_assert_eq!(first == second, one == other);
            }
        }

        #[test]
        fn every_unit_has_a_name_that_parses(unit in "[ -~é]{1,64}") {
            if unit != "." && unit != ".." {
                let name = WorkloadName::of_unit(&unit).unwrap();
                prop_assert_eq!(name.as_str().parse::<WorkloadName>().unwrap(), name);
            }
        }
    }
}
