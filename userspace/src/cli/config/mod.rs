//! `--config FILE`: a TOML file with one table per daemon, whose keys are the daemon's long flag names.
//!
//! ```toml
//! [agent]
//! node = "fcs00"
//! data-dir = "/srv/murmesh"
//! ```
//!
//! Its values are put on the command line where the flag is not given there, so both mean the same.

mod reference;

use std::ffi::OsString;
use std::fs;

use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory};
use toml::{Table, Value};

use super::Cli;
pub use reference::reference;

/// The command line with the values of its `--config` file, if it names one.
///
/// # Errors
/// When the file cannot be read, is not TOML, or has a key that is no flag.
pub fn with_config_file(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let root = Cli::command();
    // Whatever is wrong with the command line is reported when it is parsed for good.
    let Ok(matches) = root.clone().try_get_matches_from(&arguments) else { return Ok(arguments) };
    let Some((name, given)) = matches.subcommand() else { return Ok(arguments) };
    let Ok(Some(path)) = given.try_get_one::<std::path::PathBuf>("config") else { return Ok(arguments) };
    let text = fs::read_to_string(path)
        .with_context(|| format!("{}: cannot be read; give another file with --config", path.display()))?;
    let command = root.find_subcommand(name).context("a parsed command exists")?;
    let added = flags(command, given, &text).with_context(|| path.display().to_string())?;
    let mut extended = arguments;
    extended.extend(added.into_iter().map(OsString::from));
    Ok(extended)
}

/// A daemon's command line from a configuration file alone.
///
/// # Errors
/// As [`with_config_file`], or a value is none for its flag.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse(text: &str, daemon: &str) -> anyhow::Result<ArgMatches> {
    let root = Cli::command();
    let command = root.find_subcommand(daemon).context("a daemon")?.clone().no_binary_name(true);
    let given = command.clone().ignore_errors(true).try_get_matches_from([""; 0])?;
    Ok(command.clone().try_get_matches_from(flags(&command, &given, text)?)?)
}

/// The arguments that stand for the table of the daemon `command`, where they were not given.
fn flags(command: &Command, given: &ArgMatches, text: &str) -> anyhow::Result<Vec<String>> {
    let daemon = command.get_name();
    let mut added = Vec::new();
    for (key, value) in &daemon_table(text, daemon)? {
        added.extend(flag(command, given, key, value).with_context(|| format!("[{daemon}]"))?);
    }
    Ok(added)
}

fn daemon_table(text: &str, daemon: &str) -> anyhow::Result<Table> {
    let mut document: Table = text.parse()?;
    if let Some(unknown) = document.keys().find(|key| !["server", "agent", "sidecar"].contains(&key.as_str()))
    {
        bail!("unknown key {unknown:?}; there are tables [server], [agent] and [sidecar]");
    }
    match document.remove(daemon) {
        Some(Value::Table(table)) => Ok(table),
        Some(_) => bail!("{daemon:?} must be a table: [{daemon}]"),
        None => Ok(Table::new()),
    }
}

/// The arguments that stand for one key; none when the flag was given on the command line.
fn flag(command: &Command, given: &ArgMatches, key: &str, value: &Value) -> anyhow::Result<Vec<String>> {
    let argument =
        command.get_arguments().find(|argument| argument.get_long() == Some(key) && key != "config");
    let Some(argument) = argument else {
        bail!(
            "unknown key {key:?}; `murmesh {} --help` lists the flags, whose names are the keys",
            command.get_name()
        );
    };
    if given.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine) {
        return Ok(Vec::new());
    }
    let is_switch = matches!(argument.get_action(), ArgAction::SetTrue);
    Ok(match value {
        Value::Boolean(on) if is_switch => {
            if *on {
                vec![format!("--{key}")]
            } else {
                vec![]
            }
        }
        _ if is_switch => bail!("{key:?} must be true or false"),
        Value::Array(values) => values
            .iter()
            .map(|value| Ok(format!("--{key}={}", text(key, value)?)))
            .collect::<anyhow::Result<_>>()?,
        value => vec![format!("--{key}={}", text(key, value)?)],
    })
}

fn text(key: &str, value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        _ => bail!("{key:?} must be a text or a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extended(config: &str, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("murmesh.toml");
        fs::write(&path, config)?;
        let path = path.display().to_string();
        let arguments = arguments.iter().copied().chain(["--config", path.as_str()]);
        let extended = with_config_file(arguments.map(OsString::from).collect())?;
        let own = extended.into_iter().map(|argument| argument.into_string().unwrap());
        Ok(own.filter(|argument| !argument.contains("murmesh.toml") && argument != "--config").collect())
    }

    #[test]
    fn keys_become_flags_unless_given() {
        let config = "[server]\nrun-dir = '/a'\ndata-dir = '/b'\nadvertise = ['x:1', 'y:2']\n[agent]\n";
        let arguments = extended(config, &["murmesh", "server", "--data-dir", "/c"]).unwrap();
        assert_eq!(
            arguments,
            ["murmesh", "server", "--data-dir", "/c", "--advertise=x:1", "--advertise=y:2", "--run-dir=/a"]
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let error = extended("[server]\nrun_dir = '/a'\n", &["murmesh", "server"]).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("murmesh.toml") && message.contains("run_dir"), "{message}");
        assert!(extended("[sever]\n", &["murmesh", "server"]).is_err());
        assert!(extended("[server]\nconfig = '/x'\n", &["murmesh", "server"]).is_err());
    }
}
