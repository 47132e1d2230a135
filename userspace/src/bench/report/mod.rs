//! Results: what was found, joined from several runs and shown in several forms.

mod compare;
mod grid;
mod html;
mod markdown;
mod plot;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Figure, Kind, Machine, statistics};

/// What one or more runs found. Its JSON is what `murmesh bench run -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was run.
    pub command: String,
    /// When, in RFC 3339.
    pub started_at: String,
    /// On what.
    pub machine: Machine,
    /// How long each load ran.
    pub seconds: f64,
    /// What was found on each path.
    pub paths: Vec<PathReport>,
}

/// What was found on one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// One value for each round.
    pub figures: BTreeMap<Figure, Vec<f64>>,
    /// What could not be measured, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

impl Report {
    /// Joins runs: values of the same path and figure become rounds of one report, which has the time of the
    /// first. `None` of none.
    pub fn join(reports: impl IntoIterator<Item = Self>) -> Option<Self> {
        reports.into_iter().reduce(|mut joined, report| {
            joined.machine.load.extend(report.machine.load);
            for path in report.paths {
                match joined.paths.iter_mut().find(|known| known.name == path.name) {
                    Some(known) => known.join(path),
                    None => joined.paths.push(path),
                }
            }
            joined
        })
    }

    /// The results as aligned text.
    pub fn to_text(&self) -> String {
        let mut text = grid::values(self).to_text();
        for (path, failure) in self.failures() {
            text.push_str(&format!("{path}: {failure}\n"));
        }
        text.push_str(&format!("{}\n", self.conditions()));
        text
    }

    /// The results as a page that needs nothing else.
    pub fn to_html(&self) -> String {
        html::page(self)
    }

    /// The results as Markdown, beside figures of `reference`, which was measured elsewhere.
    pub fn to_markdown(&self, reference: Option<&Self>) -> String {
        markdown::page(self, reference)
    }

    /// One SVG plot for each figure that was measured.
    pub fn plots(&self) -> Vec<(Figure, String)> {
        let measured = Figure::ALL.into_iter().filter(|figure| self.has(*figure));
        measured.map(|figure| (figure, plot::bars(self, figure))).collect()
    }

    fn has(&self, figure: Figure) -> bool {
        self.paths.iter().any(|path| path.figures.contains_key(&figure))
    }

    fn path(&self, name: &str) -> Option<&PathReport> {
        self.paths.iter().find(|path| path.name == name)
    }

    fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.paths
            .iter()
            .flat_map(|path| path.failures.iter().map(|failure| (path.name.as_str(), failure.as_str())))
    }

    /// Machine, load and length in one sentence.
    fn conditions(&self) -> String {
        let Machine { processor, cores, kernel, load } = &self.machine;
        let (least, most) = statistics::range(load).unwrap_or_default();
        format!(
            "{} on {processor}, {cores} cores, Linux {kernel}; load average {least:.2} to {most:.2}; \
             {} s per load and round; medians of the rounds",
            self.started_at, self.seconds
        )
    }
}

impl PathReport {
    /// Nothing found yet.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, figures: BTreeMap::new(), failures: Vec::new() }
    }

    /// Adds the value of a round.
    pub fn note(&mut self, figure: Figure, value: f64) {
        self.figures.entry(figure).or_default().push(value);
    }

    /// The median of the rounds.
    pub fn median(&self, figure: Figure) -> Option<f64> {
        statistics::median(self.figures.get(&figure)?)
    }

    fn range(&self, figure: Figure) -> Option<(f64, f64)> {
        statistics::range(self.figures.get(&figure)?)
    }

    fn spread(&self, figure: Figure) -> Option<f64> {
        statistics::spread(self.figures.get(&figure)?)
    }

    fn join(&mut self, other: Self) {
        for (figure, values) in other.figures {
            self.figures.entry(figure).or_default().extend(values);
        }
        self.failures.extend(other.failures);
    }
}

#[cfg(test)]
mod samples {
    use super::*;

    /// A report with a path for each `(name, kind, values of FortuneMedian)`.
    pub fn report(paths: &[(&str, Kind, &[f64])]) -> Report {
        let path = |(name, kind, values): &(&str, Kind, &[f64])| {
            let mut path = PathReport::new(name, *kind);
            values.iter().for_each(|value| path.note(Figure::FortuneMedian, *value));
            path
        };
        Report {
            command: "murmesh bench run fcs00".to_owned(),
            started_at: "2026-01-02T03:04:05Z".to_owned(),
            machine: Machine {
                processor: "P <1>".to_owned(),
                cores: 2,
                kernel: "6.18".to_owned(),
                load: vec![0.5, 0.25],
            },
            seconds: 2.0,
            paths: paths.iter().map(path).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::report, *};

    #[test]
    fn runs_join_to_rounds() {
        let first = report(&[("direct", Kind::Direct, &[80.0])]);
        let second = report(&[("mesh", Kind::Mesh, &[200.0]), ("direct", Kind::Direct, &[90.0, 100.0])]);
        let joined = Report::join([first, second]).expect("two reports");
        assert_eq!(joined.path("direct").and_then(|path| path.median(Figure::FortuneMedian)), Some(90.0));
        assert_eq!(joined.paths.len(), 2);
        assert_eq!(joined.machine.load.len(), 4);
    }

    #[test]
    fn json_is_read_back_as_it_was() -> Result<(), serde_json::Error> {
        let before = report(&[("direct", Kind::Direct, &[80.0])]);
        let json = serde_json::to_string(&before)?;
        assert!(json.contains(r#""fortune_median":[80.0]"#), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json)?, before);
        Ok(())
    }
}
