//! Whom a cgroup belongs to, told by its path.
//!
//! Only root makes cgroups outside of the trees that systemd delegates, and what is inside of one belongs to whom the
//! outermost cgroup that is no slice says: nobody gets the name of a unit by making a cgroup of that name in a tree of
//! their own, and neither does a container whose manager keeps it outside of the slices.

use std::{ffi::OsStr, path::Path};

use crate::identity::WorkloadName;

/// Below it are the sessions of users, and what their own service managers run.
pub const USER_SLICE: &str = "user.slice";

/// Who the processes of a cgroup are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// All of them are this workload.
    Workload(WorkloadName),
    /// All of them are this user, by whatever user ids they run: a session may have others, of `sudo` or of
    /// `/etc/subuid`.
    User(u32),
    /// Each is the user that it runs as.
    Caller,
}

/// Of the cgroup at `path`, which is relative to the directory whose cgroups are followed. `None` if its name cannot be
/// written.
pub fn of(path: &Path) -> Option<Owner> {
    if let Ok(session) = path.strip_prefix(USER_SLICE) {
        return Some(user_of_slice(session).map_or(Owner::Caller, Owner::User));
    }
    let Some(outermost) = path.iter().find(|name| extension(name) != Some("slice")) else {
        return Some(Owner::Caller);
    };
    let name = outermost.to_str()?;
    let is_unit = matches!(extension(outermost), Some("service" | "scope"));
    let workload = if is_unit { WorkloadName::of_unit(name) } else { WorkloadName::of_cgroup(name) };
    Some(Owner::Workload(workload.ok()?))
}

fn extension(name: &OsStr) -> Option<&str> {
    Path::new(name).extension()?.to_str()
}

/// systemd makes `user-UID.slice` for each user who has a session.
fn user_of_slice(session: &Path) -> Option<u32> {
    session.iter().next()?.to_str()?.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(path: &str) -> Owner {
        of(Path::new(path)).expect("a name")
    }

    fn workload(name: &str) -> Owner {
        Owner::Workload(name.parse().expect("a name"))
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
            assert_eq!(owner(path), workload(name), "{path}");
        }
    }

    #[test]
    fn a_unit_inside_of_a_container_outside_of_all_slices_is_the_container() {
        for (path, name) in [
            ("lxc.payload.web/system.slice/nginx.service", "cgroup-lxc.payload.web"),
            ("docker/0123/nginx.service", "cgroup-docker"),
            ("machine.slice/mine/nginx.service", "cgroup-mine"),
            ("mine/user.slice/user-0.slice/session-1.scope", "cgroup-mine"),
        ] {
            assert_eq!(owner(path), workload(name), "{path}");
        }
    }

    #[test]
    fn whatever_runs_in_the_sessions_of_a_user_is_that_user() {
        for path in [
            "user.slice/user-1000.slice",
            "user.slice/user-1000.slice/session-3.scope",
            "user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
            "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-0123.scope",
        ] {
            assert_eq!(owner(path), Owner::User(1000), "{path}");
        }
    }

    #[test]
    fn in_slices_alone_it_is_the_user_of_each_process() {
        for path in ["", "system.slice", "system.slice/a.slice", "user.slice", "user.slice/session-3.scope"] {
            assert_eq!(owner(path), Owner::Caller, "{path}");
        }
    }
}
