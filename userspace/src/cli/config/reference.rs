//! The default configuration file: every option of the daemons with its explanation and its default, as comments.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::super::Cli;

const WIDTH: usize = 100;

const HEADING: &str = "\
# What the daemons of Murmesh on this host are started with. Each key is the name of a flag of `murmesh server` or
# `murmesh agent`; the flag wins where both are given. Every line that is commented out says what holds without it, or,
# where it holds NAMES IN CAPITALS, what could be there. A daemon reads it when it starts.
";

/// The text of the file.
pub fn reference() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = HEADING.to_owned();
    for name in ["server", "agent"] {
        let Some(daemon) = root.find_subcommand(name) else { continue };
        let _ = write!(text, "\n\n[{name}]\n");
        options(daemon).for_each(|option| describe(option, &mut text));
    }
    text
}

/// The flags that may be keys of a configuration file.
fn options(daemon: &Command) -> impl Iterator<Item = &Arg> {
    let is_key = |option: &&Arg| {
        option.get_long().is_some_and(|long| !["config", "help"].contains(&long)) && !option.is_hide_set()
    };
    daemon.get_arguments().filter(is_key)
}

fn describe(option: &Arg, text: &mut String) {
    let help =
        option.get_long_help().or_else(|| option.get_help()).map(ToString::to_string).unwrap_or_default();
    text.push('\n');
    help.lines().for_each(|paragraph| wrap(paragraph, text));
    for value in option.get_possible_values() {
        let help = value.get_help().map(ToString::to_string).unwrap_or_default();
        let is_switch = matches!(option.get_action(), ArgAction::SetTrue);
        if !is_switch {
            wrap(&format!("\"{}\": {help}", value.get_name()), text);
        }
    }
    let _ = writeln!(text, "#{} = {}", option.get_long().unwrap_or_default(), value(option));
}

/// The default as TOML, or the form of a value.
fn value(option: &Arg) -> String {
    if matches!(option.get_action(), ArgAction::SetTrue) {
        return "false".to_owned();
    }
    let default = option.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    if let Some(number) = default.as_ref().filter(|text| text.parse::<u64>().is_ok()) {
        return number.clone();
    }
    let form = option.get_value_names().into_iter().flatten().next().map(ToString::to_string);
    let text = format!("{:?}", default.or(form).unwrap_or_default());
    if matches!(option.get_action(), ArgAction::Append) { format!("[{text}]") } else { text }
}

fn wrap(paragraph: &str, text: &mut String) {
    let mut length = WIDTH;
    for word in paragraph.split_whitespace() {
        let width = word.chars().count() + 1;
        if length + width > WIDTH {
            text.push_str(if text.ends_with('\n') { "#" } else { "\n#" });
            length = 1;
        }
        text.push(' ');
        text.push_str(word);
        length += width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::config::with_config_file;

    /// The command line that a daemon has with this file.
    fn command_line(daemon: &str, file: &str) -> anyhow::Result<Vec<OsString>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("murmesh.toml");
        std::fs::write(&path, file)?;
        let arguments = ["murmesh", daemon, "--config"].map(OsString::from);
        let mut extended = with_config_file(arguments.into_iter().chain([path.into()]).collect())?;
        // The file is gone when they are parsed.
        extended.drain(2..4);
        Ok(extended)
    }

    #[test]
    fn as_it_is_shipped_it_changes_nothing() {
        for daemon in ["server", "agent"] {
            assert_eq!(command_line(daemon, &reference()).unwrap(), ["murmesh", daemon]);
        }
    }

    #[test]
    fn every_default_in_it_may_be_uncommented() {
        let is_default = |line: &&str| !line.chars().filter(|c| c.is_alphabetic()).any(char::is_uppercase);
        let reference = reference();
        let uncommented: Vec<_> = reference
            .lines()
            .filter(|line| line.starts_with('[') || (line.starts_with('#') && !line.starts_with("# ")))
            .map(|line| line.trim_start_matches('#'))
            .filter(|line| is_default(&line.split_once(" = ").map_or("", |(_, value)| value)))
            .collect();
        let file = uncommented.join("\n");
        for (daemon, least) in [("server", 6), ("agent", 12)] {
            let arguments = command_line(daemon, &file).unwrap();
            assert!(arguments.len() > least, "{file}");
            Cli::command().try_get_matches_from(arguments).unwrap();
        }
    }
}
