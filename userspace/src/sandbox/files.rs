//! Files that a daemon may write and run, by Landlock (Linux 5.13 and later; see landlock(7)).

use std::{env, fmt, path::PathBuf};

use landlock::{
    ABI, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use nix::libc;

use super::Needs;

/// What is limited is what this version knows; kernels with an earlier one limit less.
const VERSION: ABI = ABI::V3;

/// How far this process is kept from writing files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confinement {
    /// To its own directories.
    Enforced,
    /// The same, as far as the kernel can.
    Partial,
    /// The kernel has no Landlock.
    Unsupported,
    /// It has to look into other processes, which Landlock forbids with the rest.
    NotWanted,
    /// So many processes had taken over one from the other that no more rules can be added; theirs hold.
    Inherited,
    /// Something failed.
    Failed(String),
}

impl fmt::Display for Confinement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced => formatter.write_str("own directories only (Landlock)"),
            Self::Partial => {
                formatter.write_str("own directories only, as far as this kernel can (Landlock)")
            }
            Self::Unsupported => formatter.write_str("not limited: this kernel has no Landlock"),
            Self::NotWanted => formatter.write_str("not limited: a workload is told by its program"),
            Self::Inherited => formatter.write_str("as the agent before (Landlock)"),
            Self::Failed(reason) => write!(formatter, "not limited: {reason}"),
        }
    }
}

/// Limits this thread, and those that it starts, to what `needs` says.
pub fn confine(needs: &Needs) -> Confinement {
    if needs.looks_into_processes {
        return Confinement::NotWanted;
    }
    match restrict(needs) {
        Ok(RulesetStatus::FullyEnforced) => Confinement::Enforced,
        Ok(RulesetStatus::PartiallyEnforced) => Confinement::Partial,
        Ok(RulesetStatus::NotEnforced) => Confinement::Unsupported,
        Err(error) if is_too_deep(&error) => Confinement::Inherited,
        Err(error) => Confinement::Failed(error.to_string()),
    }
}

fn restrict(needs: &Needs) -> Result<RulesetStatus, RulesetError> {
    let writing = AccessFs::from_write(VERSION);
    let running = if needs.runs_programs { BitFlags::EMPTY } else { AccessFs::Execute.into() };
    let own = needs.directories.iter().map(|(path, _)| path.clone());
    // What programs that it runs expect of any system.
    let usual = ["/dev/null".into(), env::temp_dir()];
    let writable: Vec<PathBuf> = own.chain(usual).collect();
    let rules = path_beneath_rules(writable, writing);
    Ok(Ruleset::default()
        .handle_access(writing | running)?
        .create()?
        .add_rules(rules)?
        .restrict_self()?
        .ruleset)
}

/// 16 rulesets can be on top of one another (landlock(7), `E2BIG`).
fn is_too_deep(error: &RulesetError) -> bool {
    use landlock::RestrictSelfError::RestrictSelfCall;
    matches!(error, RulesetError::RestrictSelf(RestrictSelfCall { source, .. }) if source.raw_os_error() == Some(libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use std::{fs, io, process::Command, thread};

    use super::*;

    #[test]
    fn a_thread_writes_in_its_directories_only_and_runs_nothing() {
        let (own, other) =
            (tempfile::tempdir_in("/var/tmp").unwrap(), tempfile::tempdir_in("/var/tmp").unwrap());
        let needs = Needs { directories: vec![(own.path().to_owned(), 0o700)], ..Needs::default() };
        let (inside, outside) = (own.path().join("file"), other.path().join("file"));
        // Rules are of one thread, and end with it.
        let tried = thread::spawn(move || {
            let confinement = confine(&needs);
            let ran = Command::new("/bin/true").status().map(drop);
            (confinement, fs::write(inside, "a"), fs::write(outside, "b"), ran)
        });
        let (confinement, inside, outside, ran) = tried.join().unwrap();
        inside.unwrap();
        if confinement == Confinement::Unsupported {
            eprintln!("skipped: {confinement}");
            return;
        }
        assert_eq!(outside.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(ran.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
