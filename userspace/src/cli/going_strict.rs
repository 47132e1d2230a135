//! The options of a change of mode that `murmesh service set` and `murmesh policy default` share.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::output::{relative, rfc3339};
use crate::api::v1;
use crate::policy::{Existing, Unconfirmed};

/// How careful to be about clients in clear.
#[derive(Debug, Args)]
pub struct GoingStrict {
    /// Also when clients would be refused that were let in, in clear, in the last hour, or a host cannot tell.
    #[arg(long)]
    pub force: bool,
    /// The mode goes back by itself after this time, unless it is confirmed; in whole seconds.
    #[arg(long, requires = "mode", value_parser = confirm, value_name = "DURATION")]
    confirm: Option<Duration>,
    /// What becomes of connections in clear that are there when the mode becomes strict: keep or reset.
    #[arg(long, value_name = "keep|reset")]
    existing: Option<Existing>,
}

impl GoingStrict {
    /// As in the requests.
    pub fn confirm_seconds(&self) -> u64 {
        self.confirm.map_or(0, |confirm| confirm.as_secs())
    }

    /// As in the requests.
    pub fn existing(&self) -> Option<i32> {
        self.existing.map(|existing| v1::Existing::from(existing).into())
    }
}

fn confirm(text: &str) -> Result<Duration, String> {
    let confirm = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if confirm.as_secs() == 0 { Err("use one second or more".to_owned()) } else { Ok(confirm) }
}

/// JSON of a mode that goes back: `{mode, until}`, where `mode` is null for the default of the mesh.
#[derive(Debug, Serialize)]
pub struct ListedUnconfirmed {
    mode: Option<String>,
    until: String,
}

impl From<Unconfirmed> for ListedUnconfirmed {
    fn from(unconfirmed: Unconfirmed) -> Self {
        let mode = unconfirmed.mode.map(|mode| mode.to_string());
        Self { mode, until: rfc3339(unconfirmed.until) }
    }
}

/// What to add to the name of a mode.
pub fn way_back(unconfirmed: Option<Unconfirmed>) -> String {
    let Some(Unconfirmed { mode, until }) = unconfirmed else { return String::new() };
    let mode = mode.map_or("default".to_owned(), |mode| mode.to_string());
    format!(" (back to {mode} {} unless confirmed)", relative(until, SystemTime::now()))
}
