//! Numbers for sources and destinations that rules cannot tell apart, and the verdicts between them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use murmesh_common::{self as kernel, CLASS_CHANGES, Owner, UserKey, VerdictKey, WorkloadEntry};

use super::denials::Closed;
use super::{CLOSED, Full, Tables, Who, kernel_verdict};
use crate::identity::WorkloadName;
use crate::policy::{
    Destination, DestinationClass, DestinationPattern, IdentityPattern, Policy, SourceClass,
};
use crate::workload::Cgroup;

/// The cgroups in which the user of a process tells who it is, and no user is anything else.
const BY_USER: u32 = 1;

/// The numbers given so far, by the patterns that cover a class: the same patterns have the same number, whatever
/// becomes of the rules. A number that is no longer used is never given again.
#[derive(Debug)]
pub struct Numbers {
    last: u32,
    sources: HashMap<Vec<IdentityPattern>, Given>,
    destinations: HashMap<(bool, Vec<DestinationPattern>), Given>,
    groups: HashMap<Closed, Given>,
    /// Of cgroups by what is not told by the class of their own.
    scopes: HashMap<Scope, Given>,
}

/// Who is told apart in a cgroup.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Scope {
    /// Every user.
    AllUsers(BTreeMap<u32, WorkloadName>),
    /// These users.
    Users(BTreeMap<u32, WorkloadName>),
    /// These groups.
    Groups(BTreeMap<u32, WorkloadName>),
}

#[derive(Debug)]
struct Given {
    number: u32,
    used: bool,
}

impl Numbers {
    /// Starting with numbers that no entry of `present` has.
    pub fn beyond(present: &Tables) -> Self {
        let workloads =
            present.workloads.values().flat_map(|entry| [entry.class, entry.by_user, entry.by_group]);
        let sources = workloads.chain(present.users.values().copied());
        let endpoints = present.endpoints.values().map(|endpoint| endpoint.destination.class);
        let destinations = endpoints.chain(present.egress.values().map(|destination| destination.class));
        let pairs = present.verdicts.keys().flat_map(|key| [key.source, key.destination]);
        let groups = present.addresses.values().filter_map(|owner| Owner::group(*owner));
        let groups = groups.chain(present.denials.keys().map(|key| key.group));
        let numbers = sources.chain(destinations).chain(pairs).chain(groups);
        let last = numbers.filter(|number| *number != CLASS_CHANGES).max().unwrap_or(0).max(BY_USER);
        Self {
            last,
            sources: HashMap::new(),
            destinations: HashMap::new(),
            groups: HashMap::new(),
            scopes: HashMap::new(),
        }
    }

    fn source(&mut self, policy: &Policy, class: &SourceClass) -> u32 {
        give(&mut self.sources, policy.source_patterns(class).cloned().collect(), &mut self.last)
    }

    fn destination(&mut self, policy: &Policy, class: &DestinationClass) -> u32 {
        let patterns = policy.destination_patterns(class).cloned().collect();
        give(&mut self.destinations, (class.is_outside(), patterns), &mut self.last)
    }

    /// Of the hosts that could be refused `closed`.
    pub fn group(&mut self, closed: Closed) -> kernel::Group {
        give(&mut self.groups, closed, &mut self.last)
    }

    /// Of the users of a cgroup; 0 if they are all the same.
    fn users(&mut self, cgroup: &Cgroup) -> u32 {
        let scope = match (&cgroup.workload, cgroup.by_uid.is_empty()) {
            (Some(_), true) => return 0,
            (None, true) => return BY_USER,
            (Some(_), false) => Scope::Users(cgroup.by_uid.clone()),
            (None, false) => Scope::AllUsers(cgroup.by_uid.clone()),
        };
        give(&mut self.scopes, scope, &mut self.last)
    }

    /// Of the groups of a cgroup; 0 if none tells who a process is.
    fn groups(&mut self, cgroup: &Cgroup) -> u32 {
        if cgroup.by_gid.is_empty() {
            return 0;
        }
        give(&mut self.scopes, Scope::Groups(cgroup.by_gid.clone()), &mut self.last)
    }

    /// Forgets what was not asked for since the last call.
    pub fn forget_unused(&mut self) {
        self.scopes.retain(|_, given| std::mem::take(&mut given.used));
        self.sources.retain(|_, given| std::mem::take(&mut given.used));
        self.destinations.retain(|_, given| std::mem::take(&mut given.used));
        self.groups.retain(|_, given| std::mem::take(&mut given.used));
    }
}

fn give<K: std::hash::Hash + Eq>(given: &mut HashMap<K, Given>, key: K, last: &mut u32) -> u32 {
    let entry = given.entry(key).or_insert_with(|| {
        *last += 1;
        Given { number: *last, used: true }
    });
    entry.used = true;
    entry.number
}

/// The sources on this host.
pub struct Sources {
    /// Of which no rule speaks in particular: number 0.
    others: SourceClass,
    numbered: BTreeMap<u32, SourceClass>,
    /// In a fixed order, so that the same are left out each time that there is no room.
    pub workloads: BTreeMap<u64, WorkloadEntry>,
    pub users: HashMap<UserKey, kernel::SourceClass>,
}

impl Sources {
    pub fn new(who: &Who<'_>, numbers: &mut Numbers) -> Self {
        let others = who.policy.source_class(&who.policy.source(who.node, None, []));
        let mut sources =
            Self { others, numbered: BTreeMap::new(), workloads: BTreeMap::new(), users: HashMap::new() };
        let mut known = HashMap::new();
        let mut class = |name, numbers: &mut Numbers| {
            *known.entry(name).or_insert_with(|| sources.class(who, name, numbers))
        };
        let (mut workloads, mut users, mut told) = (BTreeMap::new(), HashMap::new(), HashSet::new());
        for (id, cgroup) in who.cgroups {
            let (by_user, by_group) = (numbers.users(cgroup), numbers.groups(cgroup));
            let own = cgroup.workload.as_ref().map_or(0, |name| class(name, numbers));
            let entry = WorkloadEntry { class: own, by_user, by_group };
            workloads.insert(*id, entry);
            if !told.insert(entry) {
                continue;
            }
            // Who is nobody in particular needs no entry where the others are nobody either.
            let mut users_differ = false;
            let mut tell = |uid, name| {
                let class = class(name, numbers);
                if class != own {
                    users.insert(UserKey { scope: by_user, id: uid }, class);
                    users_differ = true;
                }
            };
            cgroup.by_uid.iter().for_each(|(uid, name)| tell(*uid, name));
            let others = who.users.iter().filter(|(uid, _)| !cgroup.by_uid.contains_key(uid));
            others.filter(|_| cgroup.workload.is_none()).for_each(|(uid, name)| tell(*uid, name));
            for (gid, name) in &cgroup.by_gid {
                let class = class(name, numbers);
                if users_differ || class != own {
                    users.insert(UserKey { scope: by_group, id: *gid }, class);
                }
            }
        }
        (sources.workloads, sources.users) = (workloads, users);
        sources
    }

    /// The classes that verdicts are needed for.
    pub fn numbers(&self) -> impl Iterator<Item = kernel::SourceClass> {
        self.numbered.keys().copied()
    }

    fn class(&mut self, who: &Who<'_>, name: &WorkloadName, numbers: &mut Numbers) -> kernel::SourceClass {
        let ports = who.listening.get(name).into_iter().flatten().copied();
        let class = who.policy.source_class(&who.policy.source(who.node, Some(name.clone()), ports));
        if class == self.others {
            return 0;
        }
        let number = numbers.source(who.policy, &class);
        self.numbered.insert(number, class);
        number
    }
}

/// Destinations that rules can tell apart, in the order in which they were added.
pub struct Destinations<'a> {
    policy: &'a Policy,
    indexes: HashMap<DestinationClass, usize>,
    classes: Vec<DestinationClass>,
}

/// What the kernel half is told of destinations.
pub struct Judged {
    /// In the order of the [`Destinations`].
    pub destinations: Vec<kernel::Destination>,
    pub verdicts: HashMap<VerdictKey, kernel::Verdict>,
    pub full: Option<Full>,
}

impl<'a> Destinations<'a> {
    pub fn new(policy: &'a Policy) -> Self {
        Self { policy, indexes: HashMap::new(), classes: Vec::new() }
    }

    pub fn add(&mut self, destination: &Destination) -> usize {
        let class = self.policy.destination_class(destination);
        if let Some(index) = self.indexes.get(&class) {
            return *index;
        }
        self.classes.push(class.clone());
        self.indexes.insert(class, self.classes.len() - 1);
        self.classes.len() - 1
    }

    /// Where the verdicts about a destination do not fit, nobody gets there.
    pub fn judge(&self, sources: &Sources, numbers: &mut Numbers, room: usize) -> Judged {
        let (own, mut wanted, mut left_out) = (self.own_verdicts(sources), 0, false);
        let mut judged = Judged { destinations: Vec::new(), verdicts: HashMap::new(), full: None };
        for (class, own) in self.classes.iter().zip(own) {
            let verdict = kernel_verdict(self.policy.judge(&sources.others, class));
            wanted += own.len();
            if own.is_empty() {
                judged.destinations.push(kernel::Destination { class: 0, flags: 0, verdict });
            } else if judged.verdicts.len() + own.len() > room {
                judged.destinations.push(CLOSED);
                left_out = true;
            } else {
                let number = numbers.destination(self.policy, class);
                let flags = kernel::Destination::BY_SOURCE;
                judged.destinations.push(kernel::Destination { class: number, flags, verdict });
                let key = |source| VerdictKey { source, destination: number };
                judged.verdicts.extend(own.into_iter().map(|(source, verdict)| (key(source), verdict)));
            }
        }
        judged.full = left_out.then_some(Full {
            map: "VERDICTS",
            room,
            wanted,
            consequence: "connections to what the others are about are refused",
            option: "--max-verdicts",
        });
        judged
    }

    /// For each destination the sources that have a verdict of their own. Asked for are only pairs that rules speak
    /// of: there are far fewer of them than sources times destinations.
    fn own_verdicts(&self, sources: &Sources) -> Vec<Vec<(u32, kernel::Verdict)>> {
        let (common, about) = (self.policy.source_patterns(&sources.others), self.about());
        let common: HashSet<_> = common.collect();
        let mut spoken_of = HashMap::<_, HashSet<_>>::new();
        for rule in self.policy.rules().values() {
            spoken_of.entry(&rule.source).or_default().insert(&rule.destination);
        }
        let mut own = vec![Vec::new(); self.classes.len()];
        for (number, source) in &sources.numbered {
            let particular = self.policy.source_patterns(source).filter(|pattern| !common.contains(pattern));
            let patterns = particular.filter_map(|pattern| spoken_of.get(pattern)).flatten();
            let indexes: BTreeSet<usize> =
                patterns.filter_map(|pattern| about.get(pattern)).flatten().copied().collect();
            for index in indexes {
                let verdict = kernel_verdict(self.policy.judge(source, &self.classes[index]));
                let others = kernel_verdict(self.policy.judge(&sources.others, &self.classes[index]));
                if verdict != others {
                    own[index].push((*number, verdict));
                }
            }
        }
        own
    }

    /// The destinations that each pattern covers.
    fn about(&self) -> HashMap<&DestinationPattern, Vec<usize>> {
        let mut about = HashMap::<_, Vec<usize>>::new();
        for (index, class) in self.classes.iter().enumerate() {
            for pattern in self.policy.destination_patterns(class) {
                about.entry(pattern).or_default().push(index);
            }
        }
        about
    }
}
