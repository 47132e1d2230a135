//! `murmesh package-files`: what a package holds beside the program, made from the command line itself, so that none of
//! it can be out of date.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, config, markdown};

/// Arguments of `murmesh package-files`.
#[derive(Debug, Args)]
pub struct PackageFilesArgs {
    /// Directory to write them to.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Writes `man/*.1`, `completions/`, `murmesh.toml` and `commands.md`.
///
/// # Errors
/// When a file cannot be written.
pub fn run(arguments: &PackageFilesArgs) -> anyhow::Result<ExitCode> {
    let directory = &arguments.directory;
    let (pages, completions) = (directory.join("man"), directory.join("completions"));
    for directory in [&pages, &completions] {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    }
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    write_pages(&root, &pages)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "murmesh", &completions)?;
    }
    fs::write(directory.join("murmesh.toml"), config::reference())?;
    fs::write(directory.join("commands.md"), markdown::commands())?;
    Ok(ExitCode::SUCCESS)
}

/// One page for each command: `murmesh-service-set.1`.
fn write_pages(command: &Command, directory: &Path) -> anyhow::Result<()> {
    if command.is_hide_set() {
        return Ok(());
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = clap_mangen::Man::new(command.clone()).manual("Murmesh");
    let path = directory.join(format!("{name}.1"));
    let mut file = File::create(&path).with_context(|| format!("{}", path.display()))?;
    page.render(&mut file)?;
    command.get_subcommands().try_for_each(|command| write_pages(command, directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let directory = tempfile::tempdir().unwrap();
        run(&PackageFilesArgs { directory: directory.path().to_owned() }).unwrap();
        for file in [
            "man/murmesh.1",
            "man/murmesh-agent.1",
            "man/murmesh-service-set.1",
            "completions/murmesh.bash",
            "completions/murmesh.fish",
            "completions/_murmesh",
            "murmesh.toml",
            "commands.md",
        ] {
            let text = fs::read_to_string(directory.path().join(file)).unwrap();
            assert!(text.contains("murmesh"), "{file}");
        }
        assert!(!directory.path().join("man/murmesh-package-files.1").exists());
    }
}
