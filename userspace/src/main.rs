//! The `murmesh` binary: parses the command line, runs one command, and says what went wrong.
//!
//! Exit status: 0 fine, 1 it failed or a check is red, 2 wrong usage.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use murmesh::cli::{self, Cli, Command};
use murmesh::policy::Action;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()).map(|cli| run(cli.command)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            report(&error);
            ExitCode::FAILURE
        }
        Err(error) => {
            report(&error);
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(arguments) => cli::init::run(&arguments),
        Command::Up(arguments) => cli::up::run(arguments),
        Command::Down(arguments) => cli::down::run(&arguments),
        Command::Server(arguments) => cli::server::run(*arguments),
        Command::Agent(arguments) => cli::agent::run(arguments),
        Command::Sidecar(arguments) => cli::sidecar::run(arguments),
        Command::Token(command) => cli::token::run(command),
        Command::Status(arguments) => cli::status::run(arguments),
        Command::Members(arguments) => cli::members::run(arguments),
        Command::Services(arguments) => cli::services::run(arguments),
        Command::Allow(arguments) => cli::rule::run(Action::Allow, arguments),
        Command::Deny(arguments) => cli::rule::run(Action::Deny, arguments),
        Command::Policy(command) => cli::policy::run(command),
        Command::Service(command) => cli::service::run(command),
        Command::Ca(command) => cli::ca::run(command),
        Command::Host(command) => cli::host::run(command),
        Command::Observe(arguments) => cli::observe::run(arguments),
        Command::Top(arguments) => cli::top::run(arguments),
        Command::Ping(arguments) => cli::ping::run(&arguments),
        Command::Whois(arguments) => cli::whois::run(&arguments),
        Command::Check(arguments) => cli::check::run(arguments),
        Command::Bugreport(arguments) => cli::bugreport::run(arguments),
        Command::Ui(arguments) => cli::ui::run(&arguments),
        Command::Bench(command) => cli::bench::run(command),
        Command::Uninstall(arguments) => cli::uninstall::run(&arguments),
        Command::Supervise(arguments) => cli::daemons::supervisor::run(&arguments),
        Command::PackageFiles(arguments) => cli::package_files::run(&arguments),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "murmesh", &mut script);
    cli::output::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints an error with its causes, once each: some messages already contain those of their source.
fn report(error: &anyhow::Error) {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    eprintln!("murmesh: {message}");
}
