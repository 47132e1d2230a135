//! Which integration tests run in an emulated machine.

use anyhow::{Result, bail};

/// Those that touch the kernel, each by the beginning of its name: what hooks decide and rewrite, what is heard from the
/// kernel about listeners, processes and connections, how connections are closed from outside, what is left when an agent
/// dies, and what it puts back; and what needs a kernel with encrypted volumes. The others are about servers, certificates,
/// many connections, and what agents do after bounded times: no kernel changes these, and emulation takes hours for them,
/// or longer than the bounds.
const KERNEL: &[&str] = &[
    "access_log::the_access_log_names",
    "addresses::",
    "agent_stop::a_clean_stop",
    "agent_stop::after_kill_9",
    "at_rest::check_tells",
    "attacks::",
    "cgroup_made_anew::",
    "containers::",
    "encrypted_volume::",
    "enforcement::",
    "exemptions::",
    "fail_closed::a_destination",
    "fail_open::",
    "fortune::fortunes_come_through_the_mesh",
    "full_map::",
    "going_strict::connections_in_clear",
    "going_strict::status_tells",
    "half_close::the_answer",
    "health::a_lone_instance",
    "hooks::",
    "in_clear::",
    "instances::without_a_healthy_instance",
    "live_streams::a_rule_cuts",
    "local::",
    "neighbours::",
    "observe::a_connection_in_clear",
    "observe::a_refused_connection",
    "observe_mode::",
    "paths::",
    "policy::a_denied_connection",
    "records::",
    "reset::a_reset_by_the_service_reaches_the_client",
    "server_first::",
    "service_lifecycle::",
    "wire::nothing_is_readable",
    "workload_identity::another_user",
];

/// What shows within two minutes that all hooks load and attach, and that the main job is done.
const QUICK: &[&str] = &["fortune::fortunes_come_through_the_mesh", "hooks::"];

/// A choice of tests.
pub enum Selection<'a> {
    /// All that touch the kernel.
    Kernel,
    /// The few that every change is tested with.
    Quick,
    /// Those whose name contains one of these.
    Named(&'a [String]),
}

impl<'a> Selection<'a> {
    /// Tests whose name contains one of `filters`; without any, those that touch the kernel.
    pub fn new(filters: &'a [String]) -> Self {
        if filters.is_empty() { Self::Kernel } else { Self::Named(filters) }
    }

    /// The chosen ones of `tests`. Each part of the choice must choose something.
    pub fn of(&self, tests: Vec<String>) -> Result<Vec<String>> {
        let wanted: Vec<&str> = match self {
            Self::Kernel => KERNEL.to_vec(),
            Self::Quick => QUICK.to_vec(),
            Self::Named(filters) => filters.iter().map(String::as_str).collect(),
        };
        if let Some(nothing) = wanted.iter().find(|name| !tests.iter().any(|test| self.has(test, name))) {
            bail!("no integration test has a name with {nothing}");
        }
        Ok(tests.into_iter().filter(|test| wanted.iter().any(|name| self.has(test, name))).collect())
    }

    fn has(&self, test: &str, name: &str) -> bool {
        match self {
            Self::Kernel | Self::Quick => test.starts_with(name),
            Self::Named(_) => test.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selection;

    #[test]
    fn a_filter_that_chooses_nothing_is_an_error() {
        let tests = || vec!["fortune::one".to_owned(), "wire::two".to_owned()];
        let filters = ["one".to_owned()];
        assert_eq!(Selection::new(&filters).of(tests()).unwrap(), ["fortune::one"]);
        let filters = ["one".to_owned(), "three".to_owned()];
        assert!(Selection::new(&filters).of(tests()).is_err());
        assert!(Selection::Quick.of(tests()).is_err());
    }
}
