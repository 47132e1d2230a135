//! `murmesh bench report`, and how results are shown.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;

use crate::{
    bench::Report,
    cli::output::{self, Format},
};

/// Arguments of `murmesh bench report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// JSON files of `murmesh bench run -o json`. Values of the same path become rounds of one report.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The command to state in place of the first run's.
    #[arg(long, value_name = "TEXT")]
    command: Option<String>,
    /// JSON file of figures that were measured elsewhere, to stand beside in Markdown.
    #[arg(long, requires = "directory", value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Directory for results.md, results.json, report.html and a plot of each figure.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    form: FormOptions,
}

/// How results are shown.
#[derive(Debug, Args)]
pub struct FormOptions {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// File for a page with tables and plots that loads nothing from elsewhere.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Joins and shows.
///
/// # Errors
/// A file cannot be read or written.
pub fn run(arguments: &ReportArgs) -> anyhow::Result<()> {
    let reports = arguments.files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut report = Report::join(reports).context("there is no report")?;
    if let Some(command) = &arguments.command {
        report.command.clone_from(command);
    }
    let reference = arguments.reference.as_deref().map(read).transpose()?;
    if let Some(directory) = &arguments.directory {
        write_directory(&report, reference.as_ref(), directory)?;
    }
    arguments.form.show(&report)
}

impl FormOptions {
    /// Prints `report`, and writes the page if one is wanted.
    ///
    /// # Errors
    /// The page or standard output cannot be written.
    pub fn show(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(file) = &self.html {
            write(file, &report.to_html())?;
        }
        match self.output {
            Format::Table => output::print(&report.to_text()),
            Format::Json => output::print_json(report),
        }
    }
}

fn write_directory(report: &Report, reference: Option<&Report>, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    write(&directory.join("results.md"), &report.to_markdown(reference))?;
    write(&directory.join("results.json"), &(serde_json::to_string_pretty(report)? + "\n"))?;
    write(&directory.join("report.html"), &report.to_html())?;
    for (figure, plot) in report.plots() {
        write(&directory.join(figure.key()).with_extension("svg"), &plot)?;
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what `murmesh bench run -o json` prints", file.display()))
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
