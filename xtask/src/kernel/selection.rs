//! Which integration tests run in an emulated machine.

/// Those that touch the kernel: what hooks decide and rewrite, what discovery and the closing of sockets hear from it,
/// and what programs see of all that. Others are about servers, certificates and load, which no kernel changes, or hold
/// a bound on time that emulation cannot: all 169 would take hours.
const KERNEL: &[&str] = &["fortune::fortunes_come_through_the_mesh"];

/// What shows within two minutes that all hooks load and attach, and that the main job is done.
const QUICK: &[&str] = &["fortune::fortunes_come_through_the_mesh"];

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

    /// The chosen ones of `tests`.
    pub fn of(&self, tests: Vec<String>) -> Vec<String> {
        tests.into_iter().filter(|test| self.has(test)).collect()
    }

    fn has(&self, test: &str) -> bool {
        match self {
            Self::Kernel => KERNEL.iter().any(|name| test.starts_with(name)),
            Self::Quick => QUICK.contains(&test),
            Self::Named(filters) => filters.iter().any(|filter| test.contains(filter)),
        }
    }
}
