//! A page for the repository.

use super::{Report, grid};

/// The page. Plots are expected beside it, as `FIGURE.svg`.
pub fn page(report: &Report, reference: Option<&Report>) -> String {
    let mut page = format!(
        "# What a connection costs\n\nMade by a command, not by hand:\n\n```\n{}\n```\n\n{}.\n\n\
         ## Figures\n\nIn parentheses: the ratio to plain TCP (`direct`).\n\n{}\n",
        report.command,
        report.conditions(),
        grid::values(report).to_markdown()
    );
    for (path, failure) in report.failures() {
        page.push_str(&format!("* {path}: {failure}\n"));
    }
    page.push_str("\n## The mesh against the others\n\nRatios of medians.\n\n");
    page.push_str(&grid::mesh(report).to_markdown());
    if let Some(reference) = reference {
        page.push_str(&format!(
            "\n## Beside peers that were measured elsewhere\n\nRatios to the `direct` of the same run. \\* measured on \
             another machine ({}: {}): compare ratios only, and only roughly.\n\n{}",
            reference.started_at,
            reference.machine.processor,
            grid::beside_reference(report, reference).to_markdown()
        ));
    }
    page.push_str("\n## Spread\n\n(largest − smallest) ÷ median of the rounds.\n\n");
    page.push_str(&grid::spreads(report).to_markdown());
    page.push_str("\n## Plots\n\n");
    for (figure, _) in report.plots() {
        page.push_str(&format!("![{}]({}.svg)\n", figure.title(), figure.key()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Kind, report::samples::report};

    #[test]
    fn the_page_says_how_it_was_made_and_marks_what_was_not_measured_here() {
        let ours = report(&[("direct", Kind::Direct, &[80.0]), ("mesh", Kind::Mesh, &[160.0])]);
        let reference = report(&[("direct", Kind::Direct, &[100.0]), ("ztunnel", Kind::Via, &[400.0])]);
        let page = page(&ours, Some(&reference));
        assert!(page.contains("murmesh bench run fcs00") && page.contains("Linux 6.18"), "{page}");
        assert!(page.contains("| fortune, connect to end, p50 | 2.00× | 4.00× |"), "{page}");
        assert!(page.contains("(fortune_median.svg)"), "{page}");
    }
}
