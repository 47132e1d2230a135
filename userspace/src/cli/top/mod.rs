//! `murmesh top`. JSON, printed once: `{host, flows}`, `flows` being a list of `{direction, caller, destination, host,
//! service, verdict, rule, connections, open, failed, sent, received, sent_per_second, received_per_second,
//! connections_per_second, round_trip_us, idle_seconds}`, each null where it is not known or does not apply. Bytes are seen
//! from the programs on this host.

mod flow;
mod model;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Channel;

use super::output::{self, Format};
use super::{ReadOptions, daemon};
use crate::api::v1;
use crate::api::v1::local_client::LocalClient;
use crate::cli::status::local_error;
use crate::local::{AGENT_SOCKET, SIDECAR_SOCKET, connect};
use flow::Flow;
use model::{Group, Model, Sort};

/// How wide a frame is that is printed once.
const WIDTH: u16 = 80;

/// Arguments of `murmesh top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    read: ReadOptions,
    /// Print what it shows after one interval, and end.
    #[arg(long)]
    once: bool,
    /// Only what has this in its service, host, address, caller or verdict; `/` changes it.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    filter: String,
    /// What is first; `s` changes it.
    #[arg(long, value_enum, default_value_t, value_name = "COLUMN")]
    sort: Sort,
    /// What has a line; `g` changes it.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    group: Group,
    /// How often it is looked at.
    #[arg(long, default_value = "1s", value_parser = pace, value_name = "DURATION")]
    interval: Duration,
}

fn pace(text: &str) -> Result<Duration, String> {
    let pace = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if pace < Duration::from_millis(100) { Err("it must be at least 100ms".to_owned()) } else { Ok(pace) }
}

#[derive(Serialize)]
struct Live<'a> {
    host: &'a str,
    flows: &'a [Flow],
}

/// Shows flows until `q` or Ctrl-C, or prints them once.
///
/// # Errors
/// When no agent answers, it stops, or there is no terminal.
pub fn run(arguments: TopArgs) -> anyhow::Result<ExitCode> {
    let TopArgs { read, once, filter, sort, group, interval } = arguments;
    let is_json = read.output == Format::Json;
    if !once && !is_json && !io::stdout().is_terminal() {
        anyhow::bail!(
            "top needs a terminal: `murmesh top --once` prints what it would show, `-o json` the same as JSON"
        );
    }
    daemon::block_on(async {
        let sockets = [AGENT_SOCKET, SIDECAR_SOCKET];
        let mut agent = connect(&read.run_directory.run_dir, &sockets, "murmesh agent").await?;
        let status = agent.status(v1::StatusRequest {}).await.map_err(local_error)?.into_inner();
        let mut watching =
            Watching { agent, model: Model::new(&status.node, filter, sort, group), pace: interval };
        if !once && !is_json {
            with_terminal(async |terminal| watching.show(terminal).await).await?;
            return Ok(ExitCode::SUCCESS);
        }
        watching.look().await?;
        tokio::time::sleep(interval).await;
        watching.look().await?;
        if is_json {
            output::print_json(&Live { host: &status.node, flows: &watching.model.flows })?;
        } else {
            output::print(&view::text(&mut watching.model, WIDTH)?)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Gives the whole screen to `show`. The terminal is as it was afterwards, also when that fails or panics.
async fn with_terminal(
    show: impl AsyncFnOnce(&mut DefaultTerminal) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // With a hook for panics.
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal).await;
    ratatui::restore();
    shown
}

struct Watching {
    agent: LocalClient<Channel>,
    model: Model,
    pace: Duration,
}

impl Watching {
    async fn show(&mut self, terminal: &mut DefaultTerminal) -> anyhow::Result<()> {
        let mut keys = keys();
        let (mut interrupted, mut terminated) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut hung_up = signal(SignalKind::hangup())?;
        let mut ticks = interval(self.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.look().await?,
                event = keys.recv() => match event {
                    Some(Event::Key(key)) if self.is_end(key) => return Ok(()),
                    Some(Event::Key(key)) if key.kind == KeyEventKind::Press => self.model.press(key.code),
                    Some(_) => {}
                    None => anyhow::bail!("the terminal is gone"),
                },
                _ = interrupted.recv() => return Ok(()),
                _ = terminated.recv() => return Ok(()),
                _ = hung_up.recv() => return Ok(()),
            }
            terminal.draw(|frame| view::draw(&mut self.model, frame))?;
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let now = self.agent.live_flows(v1::LiveFlowsRequest {}).await.map_err(local_error)?.into_inner();
        self.model.update(now.flows, Instant::now());
        Ok(())
    }

    fn is_end(&self, key: KeyEvent) -> bool {
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
        is_interrupt || (key.code == KeyCode::Char('q') && !self.model.is_typing())
    }
}

/// What happens on the terminal. The thread ends with the program.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(64);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[ignore = "the next one runs it on a terminal"]
    #[should_panic(expected = "on purpose")]
    fn it_panics_while_it_has_the_screen() {
        let show = async |terminal: &mut DefaultTerminal| {
            terminal.draw(|frame| frame.render_widget("shown", frame.area()))?;
            panic!("on purpose")
        };
        daemon::block_on(with_terminal(show)).unwrap();
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let (program, (_, module)) =
            (std::env::current_exe().unwrap(), module_path!().split_once("::").unwrap());
        let test = format!("{} {module}::it_panics_while_it_has_the_screen", program.display());
        let settings = "stty -g | cksum";
        let script =
            format!("stty rows 24 cols 80; {settings}; {test} --exact --ignored --nocapture; {settings}");
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &script, "/dev/null"]).stdin(Stdio::null());
        let said = String::from_utf8(terminal.output().unwrap().stdout).unwrap();
        let before = said.lines().next().unwrap();
        assert!(said.contains("shown") && said.contains("1 passed"), "{said}");
        assert!(said.trim_end().ends_with(before.trim_end()), "{said}");
        for [taken, given_back] in [["\x1b[?1049h", "\x1b[?1049l"], ["\x1b[?25l", "\x1b[?25h"]] {
            assert!(said.rfind(taken) < said.rfind(given_back), "{taken:?} {said:?}");
        }
    }
}
