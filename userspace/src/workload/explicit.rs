//! Workloads that the operator of a host defines, where units and users are not the right ones.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use nix::unistd::{Group, User};

use super::owner::{self, Owner};
use crate::identity::WorkloadName;

const SYNTAX: &str = "use NAME=SELECTOR[,SELECTOR], where a selector is unit:UNIT or cgroup:PATH, and user:NAME, uid:NUMBER, \
                      group:NAME or gid:NUMBER; or NAME=exe:PATH";

/// One of them: `NAME=SELECTOR[,SELECTOR]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explicit {
    name: WorkloadName,
    selects: Selects,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Selects {
    /// What the kernel tells of a process as it connects.
    Processes(Place, Option<Person>),
    /// Whoever runs this file when the agent looks.
    Program(PathBuf),
}

/// As whom its processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Person {
    Uid(u32),
    Gid(u32),
}

/// Where its processes are, the least specific first.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Anywhere,
    Unit(String),
    /// Relative to the directory whose cgroups are followed.
    Cgroup(PathBuf),
}

/// Who is who in a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// Everybody but these.
    pub owner: Owner,
    /// Users who are a workload of their own here.
    pub by_uid: BTreeMap<u32, WorkloadName>,
    /// Groups that are one, whoever the user is.
    pub by_gid: BTreeMap<u32, WorkloadName>,
}

/// How the processes of a host are named: as the operator says, else by their unit or user.
#[derive(Debug, Default)]
pub struct Naming {
    /// The most specific first.
    explicit: Vec<(Place, Option<Person>, WorkloadName)>,
    programs: BTreeMap<PathBuf, WorkloadName>,
}

impl Naming {
    /// With `explicit` workloads. Of two that select the same the first counts.
    pub fn new(workloads: Vec<Explicit>) -> Self {
        let mut naming = Self::default();
        for Explicit { name, selects } in workloads {
            match selects {
                Selects::Processes(place, person) => naming.explicit.push((place, person, name)),
                Selects::Program(path) => _ = naming.programs.entry(path).or_insert(name),
            }
        }
        naming.explicit.sort_by_key(|(place, person, _)| Reverse((place.rank(), person.is_some())));
        naming
    }

    /// The workload of whoever runs `program`, which is only asked for if any workload is told by that. It is what the
    /// file was called when the process started it, and a process may run another one a moment later: good for a name,
    /// and not for what must be refused.
    pub fn of_program(&self, program: impl FnOnce() -> Option<PathBuf>) -> Option<WorkloadName> {
        if self.programs.is_empty() {
            return None;
        }
        self.programs.get(&program()?).cloned()
    }

    /// Those in the cgroup at `path`, as `owner::of`.
    pub fn of(&self, path: &Path) -> Option<Members> {
        let automatic = owner::of(path);
        let unit = match &automatic {
            Some(Owner::Workload(unit)) => Some(unit),
            _ => None,
        };
        let (mut by_uid, mut by_gid) = (BTreeMap::new(), BTreeMap::new());
        for (_, person, name) in self.explicit.iter().filter(|(place, ..)| place.has(path, unit)) {
            let name = name.clone();
            match person {
                Some(Person::Uid(uid)) => _ = by_uid.entry(*uid).or_insert(name),
                Some(Person::Gid(gid)) => _ = by_gid.entry(*gid).or_insert(name),
                None => return Some(Members { owner: Owner::Workload(name), by_uid, by_gid }),
            }
        }
        Some(Members { owner: automatic?, by_uid, by_gid })
    }
}

impl Place {
    fn rank(&self) -> (u8, usize) {
        match self {
            Self::Anywhere => (0, 0),
            Self::Unit(_) => (1, 0),
            Self::Cgroup(path) => (2, path.iter().count()),
        }
    }

    fn has(&self, path: &Path, unit: Option<&WorkloadName>) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Unit(wanted) => WorkloadName::of_unit(wanted).is_ok_and(|wanted| unit == Some(&wanted)),
            Self::Cgroup(above) => path.starts_with(above),
        }
    }
}

impl Explicit {
    /// Whether it is told by the program that a process runs, which takes looking into that.
    pub fn is_of_program(&self) -> bool {
        matches!(self.selects, Selects::Program(_))
    }
}

impl FromStr for Explicit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, selectors) = text.split_once('=').ok_or_else(|| format!("{text:?}: {SYNTAX}"))?;
        let name: WorkloadName =
            name.parse().map_err(|error: crate::identity::NameError| error.to_string())?;
        if name.is_automatic() {
            return Err(format!(
                "{name} is what a unit, a user or a cgroup is called by itself: choose a name without such a beginning or end"
            ));
        }
        if let Some(path) = selectors.strip_prefix("exe:") {
            return Ok(Self { name, selects: Selects::Program(program(path)?) });
        }
        let (mut place, mut person) = (None, None);
        for selector in selectors.split(',') {
            let (kind, value) = selector.split_once(':').ok_or_else(|| format!("{selector:?}: {SYNTAX}"))?;
            let taken = match kind {
                "unit" => place.replace(unit(value)?).is_some(),
                "cgroup" => place.replace(cgroup(value)?).is_some(),
                "user" => person.replace(Person::Uid(user(value)?)).is_some(),
                "uid" => person.replace(Person::Uid(number(value)?)).is_some(),
                "group" => person.replace(Person::Gid(group(value)?)).is_some(),
                "gid" => person.replace(Person::Gid(number(value)?)).is_some(),
                _ => return Err(format!("{selector:?}: {SYNTAX}")),
            };
            if taken {
                return Err(format!("{text:?} has two selectors of one kind: {SYNTAX}"));
            }
        }
        Ok(Self { name, selects: Selects::Processes(place.unwrap_or(Place::Anywhere), person) })
    }
}

fn program(path: &str) -> Result<PathBuf, String> {
    let found = Path::new(path).canonicalize();
    let path = found.map_err(|error| format!("exe:{path}: {error}; name a program of this host"))?;
    if path.is_file() { Ok(path) } else { Err(format!("exe:{} is not a file", path.display())) }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not the number of a user or group"))
}

fn unit(name: &str) -> Result<Place, String> {
    let is_unit = name.ends_with(".service") || name.ends_with(".scope");
    if is_unit {
        Ok(Place::Unit(name.to_owned()))
    } else {
        Err(format!("{name:?} is no service and no scope"))
    }
}

/// Users make cgroups in their own slices as they like.
fn cgroup(path: &str) -> Result<Place, String> {
    let path = Path::new(path.trim_start_matches('/'));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if path.as_os_str().is_empty() || !is_plain {
        return Err(format!(
            "{} is not the path of a cgroup, such as system.slice/web.service/worker",
            path.display()
        ));
    }
    if path.starts_with(owner::USER_SLICE) {
        return Err(format!(
            "{}: in their slices users make cgroups themselves, select by user: instead",
            path.display()
        ));
    }
    Ok(Place::Cgroup(path.to_owned()))
}

fn user(name: &str) -> Result<u32, String> {
    let user =
        User::from_name(name).map_err(|error| format!("user {name:?} cannot be looked up: {error}"))?;
    user.map(|user| user.uid.as_raw()).ok_or_else(|| format!("there is no user {name:?} on this host"))
}

fn group(name: &str) -> Result<u32, String> {
    let group =
        Group::from_name(name).map_err(|error| format!("group {name:?} cannot be looked up: {error}"))?;
    group.map(|group| group.gid.as_raw()).ok_or_else(|| format!("there is no group {name:?} on this host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(explicit: &[&str]) -> Naming {
        Naming::new(explicit.iter().map(|text| text.parse().expect("a workload")).collect())
    }

    /// What a process of user 33 is called in `path`, and one of another user.
    fn called(naming: &Naming, path: &str) -> (String, String) {
        let Members { owner, by_uid, .. } = naming.of(Path::new(path)).expect("a name");
        let others = match owner {
            Owner::Workload(name) => name.to_string(),
            Owner::User(uid) => format!("user {uid}"),
            Owner::Caller => "caller".to_owned(),
        };
        (by_uid.get(&33).map_or_else(|| others.clone(), ToString::to_string), others)
    }

    #[test]
    fn the_most_specific_selector_names_a_process() {
        let naming = naming(&[
            "web-users=uid:33",
            "shop=unit:shop.service",
            "shop-web=unit:shop.service,uid:33",
            "worker=cgroup:/system.slice/shop.service/worker",
        ]);
        for (path, www, other) in [
            ("", "web-users", "caller"),
            ("user.slice/user-7.slice/session-1.scope", "web-users", "user 7"),
            ("system.slice/other.service", "web-users", "other.service"),
            ("system.slice/shop.service", "shop-web", "shop"),
            ("system.slice/shop.service/worker/1", "worker", "worker"),
            ("system.slice/shop.service/workers", "shop-web", "shop"),
            ("docker/shop.service", "web-users", "cgroup-docker"),
        ] {
            assert_eq!(called(&naming, path), (www.to_owned(), other.to_owned()), "{path}");
        }
    }

    #[test]
    fn what_selects_nothing_in_particular_is_refused() {
        for wrong in [
            "shop",
            "shop=",
            "shop=web.service",
            "shop=unit:web",
            "shop=uid:x",
            "shop=uid:1,uid:2",
            "shop=uid:1,gid:2",
            "shop=gid:x",
            "shop=group:nobody-has-this-name",
            "shop=exe:/no/such/program",
            "shop=exe:/",
            "shop=unit:a.service,cgroup:a",
            "shop=user:nobody-has-this-name",
            "shop=cgroup:/",
            "shop=cgroup:a/../b",
            "shop=cgroup:user.slice/user-1000.slice/mine",
            "web.service=uid:1",
            "user-alice=uid:1",
            "cgroup-docker=uid:1",
            "a b=uid:1",
        ] {
            assert!(wrong.parse::<Explicit>().is_err(), "{wrong}");
        }
        let selects = |text: &str| text.parse::<Explicit>().expect("a workload").selects;
        assert_eq!(selects("shop=user:root"), Selects::Processes(Place::Anywhere, Some(Person::Uid(0))));
        assert_eq!(selects("shop=group:root"), Selects::Processes(Place::Anywhere, Some(Person::Gid(0))));
    }

    #[test]
    fn groups_are_told_where_no_more_specific_selector_tells_all() {
        let naming = naming(&["web-users=uid:33", "backup=gid:34", "shop=unit:shop.service"]);
        let groups = |path: &str| naming.of(Path::new(path)).expect("a name").by_gid;
        let backup = || BTreeMap::from([(34, "backup".parse().expect("a name"))]);
        assert_eq!(groups("user.slice/user-7.slice/session-1.scope"), backup());
        assert_eq!(groups("system.slice/other.service"), backup());
        assert_eq!(groups("system.slice/shop.service"), BTreeMap::new());
    }

    #[test]
    fn a_program_is_asked_for_only_where_one_is_named() {
        let naming = naming(&["shell=exe:/proc/self/exe"]);
        let own = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
        assert_eq!(naming.of_program(|| own), "shell".parse().ok());
        assert_eq!(naming.of_program(|| Some("/other".into())), None);
        assert_eq!(Naming::default().of_program(|| unreachable!("nobody is told by it")), None);
    }
}
