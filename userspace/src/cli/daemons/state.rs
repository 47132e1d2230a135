//! What a daemon says of itself when asked.

use std::path::Path;
use std::time::SystemTime;

use super::Role;
use crate::api::v1;
use crate::cli::status;
use crate::local::{LocalError, connect};

/// How a daemon is doing.
#[derive(Debug)]
pub enum State {
    /// It does not run.
    Absent,
    /// It runs, and something is not as it should be, or not yet.
    Trouble(Vec<String>),
    /// It does what it is for.
    Ready(Box<v1::StatusResponse>),
}

impl State {
    /// Asks the daemon in `run_dir`.
    pub async fn of(role: Role, run_dir: &Path) -> Self {
        let mut daemon = match connect(run_dir, &[role.socket()], "murmesh daemon").await {
            Ok(daemon) => daemon,
            Err(LocalError::NoDaemon { .. }) => return Self::Absent,
            Err(error) => return Self::Trouble(vec![error.to_string()]),
        };
        let status = match daemon.status(v1::StatusRequest {}).await {
            Ok(status) => status.into_inner(),
            Err(status) => return Self::Trouble(vec![status.message().to_owned()]),
        };
        let mut problems = status::problems(&status, SystemTime::now());
        if role == Role::Agent && status.catalog_revision == 0 {
            problems.push("no server has told what the mesh is yet".to_owned());
        }
        if problems.is_empty() { Self::Ready(Box::new(status)) } else { Self::Trouble(problems) }
    }

    /// Why it is not ready.
    pub fn trouble(&self) -> &[String] {
        match self {
            Self::Trouble(problems) => problems,
            Self::Absent | Self::Ready(_) => &[],
        }
    }
}
