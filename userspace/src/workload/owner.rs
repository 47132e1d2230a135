//! Whom a cgroup belongs to, told by its path.
//!
//! Only root makes cgroups outside of the trees that systemd delegates, and what is inside of one belongs to whom the
//! outermost unit says: nobody gets the name of a unit by making a cgroup of that name in a tree of their own.

use std::path::Path;

use crate::identity::WorkloadName;

/// Below it are the sessions of users, and what their own service managers run.
const USER_SLICE: &str = "user.slice";

/// The unit that the cgroup at `path`, below `root`, belongs to. `Some(None)` if none does, or one that is made for
/// a user's session: there the user of a process tells who it is. `None` if it has no name that can be written.
pub fn of(root: &Path, path: &Path) -> Option<Option<WorkloadName>> {
    let relative = path.strip_prefix(root).ok()?;
    let mut components = relative.iter();
    let unit = if relative.starts_with(USER_SLICE) {
        None
    } else {
        components.find(|component| {
            matches!(Path::new(component).extension(), Some(kind) if kind == "service" || kind == "scope")
        })
    };
    match unit {
        None => Some(None),
        Some(unit) => Some(Some(WorkloadName::of_unit(unit.to_str()?).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(path: &str) -> Option<String> {
        of(Path::new("/root"), &Path::new("/root").join(path)).expect("a name").map(|name| name.to_string())
    }

    #[test]
    fn the_outermost_unit_is_the_owner() {
        for (path, name) in [
            ("system.slice/nginx.service", "nginx.service"),
            ("system.slice/nginx.service/worker", "nginx.service"),
            ("system.slice/docker-0123.scope/init", "docker-0123.scope"),
            ("system.slice/system-getty.slice/getty@tty1.service", "getty_40tty1.service"),
            ("fake.service/nginx.service", "fake.service"),
            ("init.scope", "init.scope"),
        ] {
            assert_eq!(owner(path).as_deref(), Some(name), "{path}");
        }
    }

    #[test]
    fn elsewhere_and_in_the_sessions_of_users_it_is_the_user() {
        for path in [
            "",
            "system.slice",
            "mine/tests",
            "user.slice/user-1000.slice/session-3.scope",
            "user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
        ] {
            assert_eq!(owner(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_not_below_our_directory_is_not_ours() {
        assert_eq!(of(Path::new("/root"), Path::new("/other/nginx.service")), None);
    }
}
