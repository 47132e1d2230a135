//! Names of users, as the system's databases have them.
//!
//! To ask a database may take long, or fail: that is done where nobody waits who carries connections. Everybody else
//! reads what it said last, and keeps to it while it fails.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io, mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use nix::unistd::{Uid, User};
use tokio::sync::Notify;
use tracing::warn;

use crate::{
    identity::WorkloadName,
    limited_log::LimitedLog,
    policy::{Component, IdentityPattern, Policy},
};

/// Users that are remembered.
const MAX_USERS: usize = 4096;

/// A database may fail for each of many users.
static NO_ANSWER: LimitedLog = LimitedLog::new();

/// What knows users by name and number.
pub trait Database: Send + Sync + std::fmt::Debug {
    /// The name of a user; `None` if there is none with this number.
    ///
    /// # Errors
    /// It cannot tell now.
    fn name(&self, uid: u32) -> io::Result<Option<String>>;

    /// The number of a user; `None` if there is none of this name.
    ///
    /// # Errors
    /// It cannot tell now.
    fn uid(&self, name: &str) -> io::Result<Option<u32>>;
}

/// What this system is configured to ask (nsswitch.conf(5)).
#[derive(Debug)]
struct System;

/// What the database said of the users that were asked for.
#[derive(Debug)]
pub struct Users {
    database: Box<dyn Database>,
    known: ArcSwap<Known>,
    wanted: Mutex<Wanted>,
    /// Says that something is wanted that is not known.
    missing: Notify,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Known {
    names: HashMap<u32, WorkloadName>,
    /// Of the workloads that are users in their names: which. `None` for a user who does not exist.
    uids: HashMap<WorkloadName, Option<u32>>,
}

#[derive(Debug, Default)]
struct Wanted {
    /// Since the database was asked last.
    names: BTreeSet<u32>,
    uids: BTreeSet<WorkloadName>,
}

/// Users of whom rules speak.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NamedUsers {
    /// With their numbers.
    pub users: BTreeMap<u32, WorkloadName>,
    /// For some it is not known yet whether there is such a user: whoever is not among `users` may be one of them.
    pub incomplete: bool,
}

impl Default for Users {
    fn default() -> Self {
        Self::new(Box::new(System))
    }
}

impl Users {
    /// As `database` has them.
    pub fn new(database: Box<dyn Database>) -> Self {
        Self { database, known: ArcSwap::default(), wanted: Mutex::default(), missing: Notify::new() }
    }

    /// What a user of this host is called as a workload. `None`, and asked for, if that is not known yet.
    pub fn name(&self, uid: u32) -> Option<WorkloadName> {
        let name = self.known.load().names.get(&uid).cloned();
        if self.wanted().names.insert(uid) && name.is_none() {
            self.missing.notify_one();
        }
        name
    }

    /// The users of whom rules speak by name, and `others`. Those before are forgotten.
    pub fn named<'a>(
        &self,
        policy: &'a Policy,
        others: impl IntoIterator<Item = &'a WorkloadName>,
    ) -> NamedUsers {
        let in_rules = policy.rules().values().filter_map(|rule| match &rule.source {
            IdentityPattern::Workload(_, Component::Exactly(name)) => Some(name),
            _ => None,
        });
        let names = in_rules.chain(others).filter(|name| user_name(name).is_some());
        let names: BTreeSet<_> = names.cloned().collect();
        let (known, mut named) = (self.known.load(), NamedUsers::default());
        for name in &names {
            match known.uids.get(name) {
                Some(Some(uid)) => _ = named.users.insert(*uid, name.clone()),
                Some(None) => {}
                None => named.incomplete = true,
            }
        }
        self.wanted().uids = names;
        if named.incomplete {
            self.missing.notify_one();
        }
        named
    }

    /// Until something is asked for that is not known.
    pub async fn missing(&self) {
        self.missing.notified().await;
    }

    /// The same as [`Self::name`], from the database if need be, which may take long.
    pub fn look_up(&self, uid: u32) -> Option<WorkloadName> {
        if let Some(name) = self.name(uid) {
            return Some(name);
        }
        let name = self.ask_name(uid)?;
        self.known.rcu(|known| {
            let mut known = Known::clone(known);
            if known.names.len() >= MAX_USERS {
                known.names.clear();
            }
            known.names.insert(uid, name.clone());
            known
        });
        Some(name)
    }

    /// Asks for what is wanted and not known, and for the rest `again`. Returns whether anything is known otherwise now.
    /// May take long.
    pub fn refresh(&self, again: bool) -> bool {
        let (mut names, uids) = {
            let mut wanted = self.wanted();
            (mem::take(&mut wanted.names), wanted.uids.clone())
        };
        let before = self.known.load_full();
        if before.names.len() + names.len() <= MAX_USERS {
            names.extend(before.names.keys());
        }
        let names = names.into_iter().filter_map(|uid| {
            let known = before.names.get(&uid).cloned();
            Some((uid, asked(known, again, || self.ask_name(uid))?))
        });
        let uids = uids.into_iter().filter_map(|name| {
            let known = before.uids.get(&name).copied();
            let uid = asked(known, again, || self.ask_uid(&name))?;
            Some((name, uid))
        });
        let now = Known { names: names.collect(), uids: uids.collect() };
        let is_changed = *before != now;
        self.known.store(now.into());
        is_changed
    }

    /// `None` if the database does not answer.
    fn ask_name(&self, uid: u32) -> Option<WorkloadName> {
        let name = self.answer(self.database.name(uid), &uid)?;
        let name = name.and_then(|name| WorkloadName::of_user(&name).ok());
        Some(name.unwrap_or_else(|| WorkloadName::of_uid(uid)))
    }

    /// The number of the user that a workload is called after, if there is one. `None` if the database does not answer.
    fn ask_uid(&self, workload: &WorkloadName) -> Option<Option<u32>> {
        let user = user_name(workload)?;
        let uid = match (user.parse(), unescape(user)) {
            (Ok(uid), _) => Some(uid),
            (Err(_), Some(name)) => self.answer(self.database.uid(&name), &name)?,
            (Err(_), None) => None,
        };
        let Some(uid) = uid else { return Some(None) };
        Some((self.ask_name(uid)? == *workload).then_some(uid))
    }

    fn answer<T>(&self, answer: io::Result<T>, user: &dyn std::fmt::Display) -> Option<T> {
        if let Err(error) = &answer
            && let Some(withheld) = NO_ANSWER.permit()
        {
            warn!(
                %user,
                withheld,
                "the system's database of users does not answer, what it said before holds: {error}; see nsswitch.conf(5)"
            );
        }
        answer.ok()
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database for System {
    fn name(&self, uid: u32) -> io::Result<Option<String>> {
        Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name))
    }

    fn uid(&self, name: &str) -> io::Result<Option<u32>> {
        Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
    }
}

/// What is `known`, unless there is a newer answer.
fn asked<T>(known: Option<T>, again: bool, ask: impl FnOnce() -> Option<T>) -> Option<T> {
    if again || known.is_none() { ask().or(known) } else { known }
}

/// The part of a workload's name that is a user's.
fn user_name(workload: &WorkloadName) -> Option<&str> {
    workload.as_str().strip_prefix("user-")
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
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    };

    use super::*;
    use crate::policy::{Action, Rule, RuleId};

    /// Knows alice, unless it is down.
    #[derive(Debug, Default)]
    struct Directory(Arc<AtomicBool>);

    impl Database for Directory {
        fn name(&self, uid: u32) -> io::Result<Option<String>> {
            let is_up = self.0.load(Relaxed);
            if is_up {
                Ok((uid == 1000).then(|| "alice".to_owned()))
            } else {
                Err(io::ErrorKind::TimedOut.into())
            }
        }

        fn uid(&self, name: &str) -> io::Result<Option<u32>> {
            let is_up = self.0.load(Relaxed);
            if is_up { Ok((name == "alice").then_some(1000)) } else { Err(io::ErrorKind::TimedOut.into()) }
        }
    }

    fn name(text: &str) -> WorkloadName {
        text.parse().expect("a name")
    }

    fn policy(sources: &[&str]) -> Policy {
        let mut policy = Policy::default();
        for (number, source) in (1..).zip(sources) {
            policy.put_rule(Rule {
                id: RuleId::new(number).expect("not 0"),
                action: Action::Deny,
                source: source.parse().expect("a pattern"),
                destination: "*".parse().expect("a pattern"),
                dry_run: false,
            });
        }
        policy
    }

    #[test]
    fn names_and_numbers_of_users_lead_to_one_another() {
        let users = Users::default();
        assert_eq!(users.look_up(0), Some(name("user-root")));
        let uid = |text: &str| users.ask_uid(&name(text)).expect("an answer");
        assert_eq!(uid("user-root"), Some(0));
        assert_eq!(uid("user-0"), None, "it has a name");
        assert_eq!(uid("user-4000000000"), Some(4_000_000_000));
        assert_eq!(uid("user-nobody-has-this-name"), None);
    }

    #[test]
    fn nobody_waits_for_the_database_and_what_it_said_holds_while_it_is_down() {
        let is_up = Arc::new(AtomicBool::new(true));
        let users = Users::new(Box::new(Directory(is_up.clone())));
        let policy = policy(&["host/a/user-alice", "host/a/user-bob", "host/a/web.service"]);
        assert_eq!(users.name(1000), None);
        assert!(users.named(&policy, []).incomplete);
        assert!(users.refresh(false));
        let named = NamedUsers { users: [(1000, name("user-alice"))].into(), incomplete: false };
        assert_eq!((users.name(1000), users.named(&policy, [])), (Some(name("user-alice")), named));
        assert!(!users.refresh(true), "nothing is new");

        is_up.store(false, Relaxed);
        assert!(!users.refresh(true));
        assert_eq!(users.named(&policy, []).users.len(), 1);
        assert_eq!((users.name(1000), users.look_up(1001)), (Some(name("user-alice")), None));
    }

    #[test]
    fn what_is_escaped_is_read_back() {
        for name in ["www-data", "a.b", "under_score", "domain\\user", "4711"] {
            let escaped = WorkloadName::of_user(name).expect("a name");
            assert_eq!(user_name(&escaped).and_then(unescape).as_deref(), Some(name));
        }
    }
}
