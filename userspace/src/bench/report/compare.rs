//! Ratios between paths.

use super::{PathReport, Report};
use crate::bench::{Figure, Kind};

/// Name of the path through our own proxy without hooks: ours, and no peer.
const SIDECAR: &str = "sidecar";

impl Report {
    /// A path's figure ÷ that of the direct path.
    pub(super) fn to_direct(&self, path: &PathReport, figure: Figure) -> Option<f64> {
        let direct = self.paths.iter().find(|path| path.kind == Kind::Direct)?;
        ratio(path.median(figure)?, direct.median(figure)?)
    }

    /// The mesh's figure ÷ that of the sidecar.
    pub(super) fn mesh_to_sidecar(&self, figure: Figure) -> Option<f64> {
        ratio(self.mesh(figure)?, self.path(SIDECAR)?.median(figure)?)
    }

    /// The mesh's figure ÷ that of the best peer, with that peer's name.
    pub(super) fn mesh_to_best_peer(&self, figure: Figure) -> Option<(f64, &str)> {
        let peers = self.paths.iter().filter(|path| path.kind == Kind::Via && path.name != SIDECAR);
        let values = peers.filter_map(|path| Some((path.median(figure)?, path.name.as_str())));
        let order = |left: &(f64, &str), right: &(f64, &str)| left.0.total_cmp(&right.0);
        let (value, name) =
            if figure.more_is_better() { values.max_by(order) } else { values.min_by(order) }?;
        Some((ratio(self.mesh(figure)?, value)?, name))
    }

    fn mesh(&self, figure: Figure) -> Option<f64> {
        self.paths.iter().find(|path| path.kind == Kind::Mesh)?.median(figure)
    }
}

fn ratio(value: f64, base: f64) -> Option<f64> {
    (base != 0.0).then_some(value / base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::samples::report;

    #[test]
    fn the_best_peer_is_neither_ours_nor_plain_tcp() {
        let report = report(&[
            ("direct", Kind::Direct, &[100.0]),
            ("sidecar", Kind::Via, &[210.0]),
            ("mesh", Kind::Mesh, &[200.0]),
            ("envoy", Kind::Via, &[800.0]),
            ("nginx", Kind::Via, &[400.0, 500.0]),
        ]);
        assert_eq!(report.mesh_to_best_peer(Figure::FortuneMedian), Some((200.0 / 450.0, "nginx")));
        assert_eq!(report.mesh_to_sidecar(Figure::FortuneMedian), Some(200.0 / 210.0));
        assert_eq!(report.to_direct(&report.paths[2], Figure::FortuneMedian), Some(2.0));
        assert_eq!(report.mesh_to_best_peer(Figure::EchoRate), None);
    }
}
