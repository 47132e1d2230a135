//! Names of users, as the system's databases have them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use nix::unistd::{Uid, User};

use crate::{
    identity::WorkloadName,
    policy::{Component, IdentityPattern, Policy},
};

/// Looks names up, and remembers them: a database may be slow.
#[derive(Debug, Default)]
pub struct Users(Mutex<HashMap<u32, WorkloadName>>);

impl Users {
    /// What a user of this host is called as a workload.
    pub fn name(&self, uid: u32) -> WorkloadName {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(uid).or_insert_with(|| look_up(uid)).clone()
    }

    /// Forgets names: they may have been changed.
    pub fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The users of whom rules speak by name, and `others`, with the numbers that they have on this host.
    pub fn named<'a>(
        &self,
        policy: &'a Policy,
        others: impl IntoIterator<Item = &'a WorkloadName>,
    ) -> BTreeMap<u32, WorkloadName> {
        let in_rules = policy.rules().values().filter_map(|rule| match &rule.source {
            IdentityPattern::Workload(_, Component::Exactly(name)) => Some(name),
            _ => None,
        });
        let uids = in_rules.chain(others).filter_map(|name| Some((self.uid(name)?, name.clone())));
        uids.collect()
    }

    /// The number of a user that is called so.
    fn uid(&self, name: &WorkloadName) -> Option<u32> {
        let user = name.as_str().strip_prefix("user-")?;
        let uid = match user.parse() {
            Ok(uid) => uid,
            Err(_) => User::from_name(&unescape(user)?).ok()??.uid.as_raw(),
        };
        (self.name(uid) == *name).then_some(uid)
    }
}

fn look_up(uid: u32) -> WorkloadName {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| WorkloadName::of_user(&user.name).ok());
    name.unwrap_or_else(|| WorkloadName::of_uid(uid))
}

/// The way back from how [`WorkloadName`] writes what is no letter, digit, '.' or '-'.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => match rest.next()? {
                b'_' => b'_',
                high => u8::from_str_radix(&format!("{}{}", char::from(high), char::from(rest.next()?)), 16)
                    .ok()?,
            },
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_users_lead_to_one_another() {
        let users = Users::default();
        assert_eq!(users.name(0).as_str(), "user-root");
        let uid = |text: &str| users.uid(&text.parse().expect("a name"));
        assert_eq!(uid("user-root"), Some(0));
        assert_eq!(uid("user-0"), None, "it has a name");
        assert_eq!(uid("user-4000000000"), Some(4_000_000_000));
        assert_eq!(uid("user-nobody-has-this-name"), None);
        assert_eq!(uid("root.service"), None);
    }

    #[test]
    fn what_is_escaped_is_read_back() {
        for name in ["www-data", "a.b", "under_score", "domain\\user", "4711"] {
            let escaped = WorkloadName::of_user(name).expect("a name");
            let user = escaped.as_str().strip_prefix("user-").expect("a user");
            assert_eq!(unescape(user).as_deref(), Some(name));
        }
    }
}
