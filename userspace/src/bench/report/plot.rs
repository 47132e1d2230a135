//! Plots as SVG: a bar for each path.

use std::fmt::Write;

use super::{Report, html::escape};
use crate::bench::{Figure, Kind};

const ROW: usize = 26;
const TOP: usize = 44;
const LABELS: usize = 110;
const BARS: usize = 400;
const WIDTH: usize = LABELS + BARS + 130;

/// Medians as bars, with a line from the smallest to the largest value of the rounds.
pub fn bars(report: &Report, figure: Figure) -> String {
    let rows: Vec<_> = report
        .paths
        .iter()
        .filter_map(|path| Some((path, path.median(figure)?, path.range(figure)?)))
        .collect();
    let largest = rows.iter().map(|(_, _, (_, most))| *most).fold(f64::MIN_POSITIVE, f64::max);
    let length = |value: f64| value / largest * BARS as f64;
    let height = TOP + ROW * rows.len() + 8;
    let better = if figure.more_is_better() { "more is better" } else { "less is better" };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{} \
         <tspan font-weight=\"normal\" fill=\"#666\">({better})</tspan></text>\n",
        figure.title()
    );
    for (index, (path, median, (least, most))) in rows.iter().enumerate() {
        let top = TOP + ROW * index;
        let (text, middle) = (top + 15, top + 10);
        let (start, end) = (LABELS as f64 + length(*least), LABELS as f64 + length(*most));
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{top}\" width=\"{:.1}\" height=\"20\" fill=\"{}\"/>\
             <path d=\"M{start:.1} {middle}H{end:.1}\" stroke=\"#222\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{}</text>",
            LABELS - 8,
            escape(&path.name),
            length(*median),
            colour(path.kind, &path.name),
            end.max(LABELS as f64 + length(*median)) + 6.0,
            figure.unit().show(*median)
        );
    }
    svg + "</svg>\n"
}

fn colour(kind: Kind, name: &str) -> &'static str {
    match kind {
        Kind::Direct => "#9aa5b1",
        Kind::Mesh => "#1f7a8c",
        Kind::Via if name == "sidecar" => "#7fb7be",
        Kind::Via => "#e0a458",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::samples::report;

    #[test]
    fn the_longest_bar_fills_the_plot_and_names_are_escaped() {
        let report = report(&[("direct", Kind::Direct, &[50.0]), ("a&b", Kind::Via, &[100.0])]);
        let svg = bars(&report, Figure::FortuneMedian);
        assert!(svg.contains("width=\"400.0\"") && svg.contains("width=\"200.0\""), "{svg}");
        assert!(svg.contains(">a&amp;b<") && svg.contains(">100 µs<"), "{svg}");
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }
}
