//! Tables, and their three forms.

use super::Report;
use crate::bench::{Figure, Kind};

/// Rows of equal length under a heading.
pub struct Grid {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A row for each figure, a column for each path: medians, with ratios to direct.
pub fn values(report: &Report) -> Grid {
    let mut heading = vec!["FIGURE".to_owned()];
    heading.extend(report.paths.iter().map(|path| path.name.clone()));
    let row = |figure: Figure| {
        let cells =
            report.paths.iter().map(|path| match (path.median(figure), report.to_direct(path, figure)) {
                (None, _) => "–".to_owned(),
                (Some(value), Some(ratio)) if path.kind != Kind::Direct => {
                    format!("{} ({ratio:.2}×)", figure.unit().show(value))
                }
                (Some(value), _) => figure.unit().show(value),
            });
        std::iter::once(figure.title().to_owned()).chain(cells).collect()
    };
    Grid { heading, rows: measured(report).map(row).collect() }
}

/// A row for each figure, a column for each path: (largest − smallest) ÷ median of the rounds.
pub fn spreads(report: &Report) -> Grid {
    let mut heading = vec!["SPREAD".to_owned()];
    heading.extend(report.paths.iter().map(|path| path.name.clone()));
    let row = |figure: Figure| {
        let cells = report.paths.iter().map(|path| {
            path.spread(figure).map_or("–".to_owned(), |spread| format!("{:.0} %", spread * 100.0))
        });
        std::iter::once(figure.title().to_owned()).chain(cells).collect()
    };
    Grid { heading, rows: measured(report).map(row).collect() }
}

/// A row for each figure: the mesh against our own sidecar and against the best peer.
pub fn mesh(report: &Report) -> Grid {
    let heading = ["MESH ÷", "sidecar", "best peer"].map(str::to_owned).to_vec();
    let row = |figure: Figure| {
        let sidecar = report.mesh_to_sidecar(figure).map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let peer = report.mesh_to_best_peer(figure);
        let peer = peer.map_or("–".to_owned(), |(ratio, name)| format!("{ratio:.2} ({name})"));
        vec![figure.title().to_owned(), sidecar, peer]
    };
    Grid { heading, rows: measured(report).map(row).collect() }
}

/// A row for each figure, a column for each path of `reference` but direct, and `report`'s mesh first. Ratios to
/// each report's own direct path; where direct has no such figure, the value itself.
pub fn beside_reference(report: &Report, reference: &Report) -> Grid {
    let ours = report.paths.iter().filter(|path| path.kind == Kind::Mesh).map(|path| (report, path));
    let theirs = reference.paths.iter().filter(|path| path.kind == Kind::Via).map(|path| (reference, path));
    let columns: Vec<_> = ours.chain(theirs).collect();
    let mut heading = vec!["÷ DIRECT".to_owned()];
    heading.extend(columns.iter().map(|(of, path)| {
        if std::ptr::eq(*of, reference) { format!("{} *", path.name) } else { path.name.clone() }
    }));
    let row = |figure: Figure| {
        let cells =
            columns.iter().map(|(of, path)| match (of.to_direct(path, figure), path.median(figure)) {
                (Some(ratio), _) => format!("{ratio:.2}×"),
                (None, Some(value)) => figure.unit().show(value),
                (None, None) => "–".to_owned(),
            });
        std::iter::once(figure.title().to_owned()).chain(cells).collect()
    };
    Grid { heading, rows: measured(reference).map(row).collect() }
}

fn measured(report: &Report) -> impl Iterator<Item = Figure> {
    Figure::ALL.into_iter().filter(|figure| report.has(*figure))
}

impl Grid {
    /// Columns as wide as their widest cell, two spaces apart, all but the first aligned to the right.
    pub fn to_text(&self) -> String {
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| self.lines().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let line = |cells: &Vec<String>| {
            let first = format!("{:<width$}", cells[0], width = widths[0]);
            let others = cells.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
            format!("{first}{}\n", others.collect::<String>())
        };
        self.lines().map(line).collect()
    }

    /// A GitHub table.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|---|{}\n", "---:|".repeat(self.heading.len() - 1));
        line(&self.heading) + &rule + &self.rows.iter().map(line).collect::<String>()
    }

    /// An HTML table.
    pub fn to_html(&self) -> String {
        let line = |cells: &Vec<String>, tag: &str| {
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", super::html::escape(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows = self.rows.iter().map(|row| line(row, "td")).collect::<String>();
        format!("<table>\n{}{rows}</table>\n", line(&self.heading, "th"))
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.heading).chain(&self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::samples::report;

    #[test]
    fn values_stand_under_their_path_with_ratios_to_direct() {
        let report = report(&[("direct", Kind::Direct, &[80.0, 90.0, 82.0]), ("mesh", Kind::Mesh, &[164.0])]);
        assert_eq!(
            values(&report).to_text(),
            "FIGURE                         direct            mesh\n\
             fortune, connect to end, p50  82.0 µs  164 µs (2.00×)\n"
        );
        assert_eq!(
            spreads(&report).to_markdown(),
            "| SPREAD | direct | mesh |\n|---|---:|---:|\n| fortune, connect to end, p50 | 12 % | – |\n"
        );
    }

    #[test]
    fn reference_columns_are_marked_and_relative_to_their_own_direct() {
        let ours = report(&[("direct", Kind::Direct, &[80.0]), ("mesh", Kind::Mesh, &[160.0])]);
        let reference = report(&[("direct", Kind::Direct, &[100.0]), ("ztunnel", Kind::Via, &[400.0])]);
        assert_eq!(
            beside_reference(&ours, &reference).to_html(),
            "<table>\n<tr><th>÷ DIRECT</th><th>mesh</th><th>ztunnel *</th></tr>\n\
             <tr><td>fortune, connect to end, p50</td><td>2.00×</td><td>4.00×</td></tr>\n</table>\n"
        );
    }
}
