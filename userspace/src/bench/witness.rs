//! The agent of this host as a witness that a path is what it is said to be.

use std::path::PathBuf;

use super::{BenchError, Kind};
use crate::{
    agent::canary,
    api::v1,
    local::{AGENT_SOCKET, LocalError, connect},
};

/// The agent of this host, if one runs.
#[derive(Debug)]
pub struct Witness {
    run_dir: PathBuf,
    present: bool,
}

impl Witness {
    /// Looks for an agent whose socket is in `run_dir`.
    ///
    /// # Errors
    /// There is one, and it does not answer.
    pub fn find(run_dir: PathBuf) -> Result<Self, BenchError> {
        let mut witness = Self { run_dir, present: true };
        witness.present = witness.streams()?.is_some();
        Ok(witness)
    }

    /// Whether a path of this kind can be measured here.
    ///
    /// # Errors
    /// It is the mesh, and this process's connections do not get to the agent.
    pub fn ensure_possible(&self, kind: Kind) -> Result<(), BenchError> {
        match kind {
            Kind::Mesh if !self.present => Err(BenchError::NoAgent(self.run_dir.clone())),
            Kind::Mesh => canary::probe().map_err(BenchError::Canary),
            Kind::Direct | Kind::Via => Ok(()),
        }
    }

    /// Streams that the agent has carried since it started; `None` without an agent.
    ///
    /// # Errors
    /// There is an agent, and it does not answer.
    pub fn streams(&self) -> Result<Option<u64>, BenchError> {
        if !self.present {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| BenchError::Agent(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| failed(&error))?.block_on(async {
            let mut agent = match connect(&self.run_dir, &[AGENT_SOCKET], "agent").await {
                Ok(agent) => agent,
                Err(LocalError::NoDaemon { .. }) => return Ok(None),
                Err(error) => return Err(failed(&error)),
            };
            let status =
                agent.status(v1::StatusRequest {}).await.map_err(|status| failed(&status.message()))?;
            Ok(Some(status.into_inner().traffic.unwrap_or_default().streams_total))
        })
    }
}

/// Judges by what the agent `carried` while `opened` connections were made on a path.
///
/// # Errors
/// The path is not what it is said to be.
pub fn judge(kind: Kind, opened: u64, carried: u64) -> Result<(), BenchError> {
    match kind {
        Kind::Mesh if carried < opened => Err(BenchError::NotCarried { opened, carried }),
        // Other programs of the host may use the mesh meanwhile, but hardly as much.
        Kind::Direct if opened > 0 && carried >= opened => Err(BenchError::Carried { opened, carried }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_what_it_says_is_refused() {
        assert!(judge(Kind::Mesh, 10, 10).is_ok());
        assert!(judge(Kind::Mesh, 10, 9).is_err());
        assert!(judge(Kind::Direct, 10, 0).is_ok());
        assert!(judge(Kind::Direct, 10, 10).is_err());
        assert!(judge(Kind::Direct, 0, 0).is_ok());
        assert!(judge(Kind::Via, 10, 10).is_ok());
    }
}
