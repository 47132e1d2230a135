//! A page with tables and plots that loads nothing from anywhere.

use super::{Report, grid};

const STYLE: &str = "body{font-family:sans-serif;margin:2em auto;max-width:75em;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.3em .7em;text-align:right}\
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto;margin:.4em}";

/// The page.
pub fn page(report: &Report) -> String {
    let plots: String = report.plots().into_iter().map(|(_, plot)| plot).collect();
    let failures = report
        .failures()
        .map(|(path, failure)| format!("<p>{}: {}</p>\n", escape(path), escape(failure)))
        .collect::<String>();
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Murmesh: what a connection costs</title>\n\
         <style>{STYLE}</style>\n<h1>What a connection costs</h1>\n<p>{}</p>\n<p><code>{}</code></p>\n\
         <p>In parentheses: the ratio to plain TCP.</p>\n{}{failures}<h2>Plots</h2>\n\
         <p>The line at the end of a bar goes from the smallest to the largest value of the rounds.</p>\n\
         {plots}<h2>Spread of the rounds</h2>\n<p>(largest − smallest) ÷ median.</p>\n{}</html>\n",
        escape(&report.conditions()),
        escape(&report.command),
        grid::values(report).to_html(),
        grid::spreads(report).to_html()
    )
}

/// Text as it stands in HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Kind, report::samples::report};

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let page = page(&report(&[("direct", Kind::Direct, &[80.0, 81.0])]));
        assert!(page.contains("P &lt;1&gt;, 2 cores"), "{page}");
        assert!(page.contains("<svg") && page.contains("<table>"), "{page}");
        let namespace = "http://www.w3.org/2000/svg";
        assert!(!page.replace(namespace, "").contains("http"), "{page}");
    }
}
