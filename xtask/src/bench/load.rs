//! A load, and how far apart the hosts are that it runs between.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::{Context as _, Result};
use murmesh_lab::{Distance, Lab};
use serde_json::{Value, json};

use super::lane::Lane;

/// Of a connection between hosts that are far apart. The title of the figure says it too.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// What the fortune's figure is called between hosts that are close together, and between those that are not.
const CLOSE_FIGURE: &str = "fortune_median";
const DISTANT_FIGURE: &str = "fortune_distant";

/// A load of `murmesh bench run`.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Between hosts that are as close together as a machine can have them. By the name of the load.
    Close(&'static str),
    /// Fortunes between hosts with a round trip of 20 ms.
    DistantFortune,
}

impl Load {
    /// As `murmesh bench run` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Close(name) => name,
            Self::DistantFortune => "fortune",
        }
    }

    /// Puts a path's hosts as far apart as the load wants them, while this is held.
    pub fn distance(self, lab: &Lab, lane: &Lane) -> Result<Option<Distance>> {
        match self {
            Self::Close(_) => Ok(None),
            Self::DistantFortune => {
                Distance::between(lab.host(&lane.client)?, lab.host(&lane.service)?, ROUND_TRIP).map(Some)
            }
        }
    }

    /// What `murmesh bench run` found, with figures under names that are theirs at this distance. Others are left
    /// out.
    pub fn report(self, found: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Close(_) => Ok(found),
            Self::DistantFortune => rename(&found),
        }
    }
}

impl Display for Load {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Close(name) => name,
            Self::DistantFortune => "distant fortune",
        })
    }
}

fn rename(report: &[u8]) -> Result<Vec<u8>> {
    let mut report: Value = serde_json::from_slice(report).context("reading a report")?;
    for path in report["paths"].as_array_mut().context("a report has paths")? {
        path["figures"] = json!({ DISTANT_FIGURE: path["figures"][CLOSE_FIGURE] });
    }
    Ok(report.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_at_a_distance_have_names_of_their_own() -> Result<()> {
        let path = |figures: Value| json!({ "paths": [{ "name": "mesh", "figures": figures }] });
        let found = path(json!({ "fortune_median": [20_300.0], "fortune_tail": [20_900.0] }));
        let report = Load::DistantFortune.report(found.to_string().into_bytes())?;
        let report: Value = serde_json::from_slice(&report)?;
        assert_eq!(report, path(json!({ "fortune_distant": [20_300.0] })));
        Ok(())
    }
}
