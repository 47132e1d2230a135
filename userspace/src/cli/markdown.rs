//! The command line as a page of the documentation.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use super::Cli;

const HEADING: &str = "\
# Commands

What `murmesh COMMAND --help` says, made from the program (`cargo xtask docs` writes it anew). Exit status: 0 fine, 1
failed or a check is red, 2 wrong usage.
";

/// Every command with its arguments, in Markdown.
pub fn commands() -> String {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut text = HEADING.to_owned();
    list(&root, &mut text);
    root.get_subcommands().for_each(|command| describe(command, &mut text));
    text
}

/// The commands, each with a link to what is said about it.
fn list(root: &Command, text: &mut String) {
    text.push_str("\n| command | what it does |\n|---|---|\n");
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let name = command.get_name();
        let _ = writeln!(text, "| [`{name}`](#murmesh-{name}) | {}. |", escaped(&about));
    }
}

fn describe(command: &Command, text: &mut String) {
    if command.is_hide_set() {
        return;
    }
    let mut command = command.clone();
    let _ = write!(text, "\n## {}\n\n", command.get_bin_name().unwrap_or_default());
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string);
    let _ = writeln!(text, "{}.", escaped(about.unwrap_or_default().trim_end_matches('.')));
    let usage = command.render_usage().to_string();
    let _ = write!(text, "\n```text\n{}\n```\n", usage.trim_start_matches("Usage: "));
    let arguments: Vec<_> = command.get_arguments().filter(|argument| is_shown(argument)).collect();
    if !arguments.is_empty() {
        text.push_str("\n| argument | |\n|---|---|\n");
    }
    for argument in arguments {
        let _ = writeln!(text, "| `{}` | {} |", form(argument), explanation(argument));
    }
    command.get_subcommands().for_each(|command| describe(command, text));
}

fn is_shown(argument: &Arg) -> bool {
    !argument.is_hide_set() && argument.get_id() != "help" && argument.get_id() != "version"
}

/// Such as `-o, --output <FORMAT>`.
fn form(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default().join(" ");
    let takes_value = argument.get_action().takes_values();
    let Some(long) = argument.get_long() else { return format!("<{names}>") };
    let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = if takes_value { format!(" <{names}>") } else { String::new() };
    format!("{short}--{long}{value}")
}

fn explanation(argument: &Arg) -> String {
    let help = argument.get_long_help().or_else(|| argument.get_help());
    // clap takes the last full stop off.
    let mut text = escaped(&help.map(ToString::to_string).unwrap_or_default());
    if !text.ends_with(['.', ']']) {
        text.push('.');
    }
    let takes_value = argument.get_action().takes_values();
    let values = argument.get_possible_values();
    if takes_value && !values.is_empty() {
        let names: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
        let _ = write!(text, " One of {}.", names.join(", "));
    }
    let defaults = argument.get_default_values();
    if takes_value && !defaults.is_empty() && !argument.is_hide_default_value_set() {
        let defaults: Vec<_> = defaults.iter().map(|value| value.to_string_lossy()).collect();
        let _ = write!(text, " Default: `{}`.", defaults.join(","));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, " Also from the environment: `{}`.", variable.display());
    }
    text
}

/// In one cell of a table, and with nothing in it that means something to Markdown.
fn escaped(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").replace('<', "\\<").replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_commands_as_they_are() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == commands(), "docs/commands.md is not up to date: cargo xtask docs");
    }
}
