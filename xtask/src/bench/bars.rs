//! What the mesh has to reach, as ratios within one run.

use serde_json::Value;

use super::statistics::median;

/// Stands above the table.
pub const EXPLANATION: &str = "Ratios of the mesh to another path of the same run. Those to `direct`, and those of \
    connections and memory to Envoy, are carried over from what ztunnel had beside these two on another machine: where \
    ztunnel itself is in the run, look at that.";

/// A limit for the mesh's figure ÷ that of another path.
struct Bar {
    figure: &'static str,
    limit: Limit,
    /// The best of these.
    against: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

use Limit::{AtLeast, AtMost};

const DIRECT: &[&str] = &["direct"];
const ENVOY: &[&str] = &["envoy"];
const BEST: &[&str] = &["nginx", "haproxy"];
const ZTUNNEL: &[&str] = &["ztunnel"];

const BARS: [Bar; 10] = [
    Bar { figure: "fortune_distant", limit: AtMost(0.6), against: DIRECT },
    Bar { figure: "echo_median", limit: AtMost(0.85), against: BEST },
    Bar { figure: "echo_tail", limit: AtMost(0.85), against: BEST },
    Bar { figure: "echo_rate", limit: AtLeast(1.4), against: BEST },
    Bar { figure: "echo_cpu", limit: AtMost(0.7), against: BEST },
    Bar { figure: "download_one", limit: AtLeast(1.25), against: ENVOY },
    Bar { figure: "download_four", limit: AtLeast(1.25), against: ENVOY },
    Bar { figure: "upload_one", limit: AtLeast(1.25), against: ENVOY },
    Bar { figure: "upload_four", limit: AtLeast(1.25), against: ENVOY },
    Bar { figure: "gigabyte_cpu", limit: AtMost(0.8), against: ENVOY },
];

/// Where ztunnel is in the run.
const ZTUNNELS: [Bar; 5] = [
    Bar { figure: "fortune_median", limit: AtMost(0.6), against: ZTUNNEL },
    Bar { figure: "fortune_tail", limit: AtMost(0.6), against: ZTUNNEL },
    Bar { figure: "connection_rate", limit: AtLeast(1.5), against: ZTUNNEL },
    Bar { figure: "connection_cpu", limit: AtMost(0.6), against: ZTUNNEL },
    Bar { figure: "idle_memory", limit: AtMost(1.0), against: ZTUNNEL },
];

/// What ztunnel had beside `direct` and Envoy in the run of `reference.json`, in which Envoy had a fortune in 724 µs,
/// 2 190 connections per second, 781 µs of CPU per connection and 52 KiB per idle connection.
const CARRIED_OVER: [Bar; 9] = [
    Bar { figure: "fortune_median", limit: AtMost(2.45), against: DIRECT },
    Bar { figure: "connection_rate", limit: AtLeast(0.35), against: DIRECT },
    Bar { figure: "echo_median", limit: AtMost(1.7), against: DIRECT },
    Bar { figure: "echo_rate", limit: AtLeast(0.28), against: DIRECT },
    Bar { figure: "download_four", limit: AtLeast(0.265), against: DIRECT },
    Bar { figure: "fortune_median", limit: AtMost(0.29), against: ENVOY },
    Bar { figure: "connection_rate", limit: AtLeast(4.9), against: ENVOY },
    Bar { figure: "connection_cpu", limit: AtMost(0.134), against: ENVOY },
    Bar { figure: "idle_memory", limit: AtMost(0.21), against: ENVOY },
];

/// Every figure against our own sidecar: the redirect must not cost.
const SIDECAR: f64 = 1.02;

impl Bar {
    fn row(&self, results: &Value) -> Option<String> {
        let ours = value(results, "mesh", self.figure)?;
        let others = self.against.iter().filter_map(|name| Some((value(results, name, self.figure)?, *name)));
        let order = |left: &(f64, &str), right: &(f64, &str)| left.0.total_cmp(&right.0);
        let (other, name) = match self.limit {
            AtMost(_) => others.min_by(order),
            AtLeast(_) => others.max_by(order),
        }?;
        Some(row(self.figure, name, ours / other, self.limit))
    }
}

/// A GitHub table of the bars that can be judged with `results`, the JSON of a report.
pub fn table(results: &Value) -> String {
    let bars = BARS.iter().chain(&ZTUNNELS).chain(&CARRIED_OVER).filter_map(|bar| bar.row(results));
    let sidecar = figures(results, "mesh").into_iter().filter_map(|figure| {
        let ratio = value(results, "mesh", &figure)? / value(results, "sidecar", &figure)?;
        let more_is_better = figure.ends_with("_rate") || figure.contains("load_");
        let limit = if more_is_better { AtLeast(1.0 / SIDECAR) } else { AtMost(SIDECAR) };
        Some(row(&figure, "sidecar", ratio, limit))
    });
    let rows: String = bars.chain(sidecar).collect();
    format!("| figure | against | bar | mesh | |\n|---|---|---:|---:|---|\n{rows}")
}

fn row(figure: &str, against: &str, ratio: f64, limit: Limit) -> String {
    let (sign, bound, reached) = match limit {
        AtMost(bound) => ('≤', bound, ratio <= bound),
        AtLeast(bound) => ('≥', bound, ratio >= bound),
    };
    let verdict = if reached { "reached" } else { "missed" };
    format!("| {figure} | {against} | {sign} {bound:.3} | {ratio:.3} | {verdict} |\n")
}

fn path<'a>(results: &'a Value, name: &str) -> Option<&'a Value> {
    results["paths"].as_array()?.iter().find(|path| path["name"] == name)
}

fn figures(results: &Value, name: &str) -> Vec<String> {
    let figures = path(results, name).and_then(|path| path["figures"].as_object());
    figures.map(|figures| figures.keys().cloned().collect()).unwrap_or_default()
}

fn value(results: &Value, name: &str, figure: &str) -> Option<f64> {
    let values = path(results, name)?["figures"][figure].as_array()?;
    median(&values.iter().filter_map(Value::as_f64).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn bars_are_judged_against_the_best_and_unknown_ones_are_left_out() {
        let path = |name, echo: f64| json!({"name": name, "figures": {"echo_rate": [echo]}});
        let paths = [path("mesh", 42.0), path("nginx", 30.0), path("haproxy", 20.0), path("sidecar", 42.1)];
        assert_eq!(
            table(&json!({"paths": paths})),
            "| figure | against | bar | mesh | |\n|---|---|---:|---:|---|\n\
             | echo_rate | nginx | ≥ 1.400 | 1.400 | reached |\n\
             | echo_rate | sidecar | ≥ 0.980 | 0.998 | reached |\n"
        );
    }
}
