//! What is shown, and how keys change that.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use clap::ValueEnum;
use ratatui::crossterm::event::KeyCode;
use ratatui::widgets::TableState;

use super::flow::Flow;
use crate::api::v1;

/// How long a flow is shown that has no connection any more, in seconds.
const SHOWN: u64 = 10;

/// What is first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// What moves the most bytes now.
    #[default]
    Rate,
    /// What has moved the most bytes.
    Bytes,
    /// What begins the most connections now.
    New,
    /// What has the most connections open.
    Open,
    /// What has the longest round trip.
    Rtt,
    /// By the name of the service.
    To,
    /// By the name of the caller.
    From,
}

/// What has a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// All connections of one caller to one destination.
    #[default]
    Flow,
    /// Each service.
    Service,
    /// Each workload, on all hosts together.
    Workload,
    /// Each identity that calls.
    Identity,
}

/// The next of all values.
fn next<T: ValueEnum + PartialEq + Copy>(value: T) -> T {
    let all = T::value_variants();
    let place = all.iter().position(|one| *one == value).unwrap_or(0);
    all[(place + 1) % all.len()]
}

/// As it is written on the command line.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// "→" where the client is on this host, "←" where the service is; "" for several.
    pub direction: &'static str,
    /// The service.
    pub to: String,
    /// Who calls.
    pub from: String,
    /// Connections that are open.
    pub open: u64,
    /// Connections that begin, each second.
    pub new: f64,
    /// Bytes each second, both ways.
    pub rate: f64,
    /// Bytes so far, both ways.
    pub bytes: u64,
    /// The longest, in microseconds.
    pub round_trip: Option<u64>,
    /// What becomes of it.
    pub verdict: String,
    /// It is refused, fails, or goes in clear.
    pub is_wrong: bool,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct Model {
    /// This host.
    pub host: String,
    /// Text that lines must have.
    pub filter: String,
    /// The order.
    pub sort: Sort,
    /// It is turned around.
    pub is_reversed: bool,
    /// What has a line.
    pub group: Group,
    /// Flows without connections are shown, too.
    pub has_idle: bool,
    /// Nothing changes until it goes on.
    pub is_paused: bool,
    /// Keys are explained.
    pub has_help: bool,
    /// What the agent told last.
    pub flows: Vec<Flow>,
    /// The line that is marked.
    pub table: TableState,
    is_typing: bool,
    updated: Option<Instant>,
}

impl Model {
    /// Nothing yet.
    pub fn new(host: &str, filter: String, sort: Sort, group: Group) -> Self {
        Self {
            host: host.to_owned(),
            filter,
            sort,
            is_reversed: false,
            group,
            has_idle: false,
            is_paused: false,
            has_help: false,
            flows: Vec::new(),
            table: TableState::default(),
            is_typing: false,
            updated: None,
        }
    }

    /// Takes what there is now.
    pub fn update(&mut self, flows: Vec<v1::LiveFlow>, now: Instant) {
        if self.is_paused {
            return;
        }
        let before: HashMap<_, _> = self.flows.drain(..).map(|flow| (flow.key(), flow)).collect();
        let since = self.updated.replace(now);
        for mut flow in flows.into_iter().map(Flow::from) {
            // What is there at the first look is nothing new.
            if let Some(since) = since {
                flow.follow(before.get(&flow.key()), now.duration_since(since));
            }
            self.flows.push(flow);
        }
    }

    /// Lines in their order.
    pub fn rows(&self) -> Vec<Row> {
        let shown = self.flows.iter().filter(|flow| self.shows(flow));
        let mut rows = match self.group {
            Group::Flow => shown.map(Row::from).collect(),
            Group::Service => together(shown, |flow| flow.served()),
            Group::Workload => together(shown, |flow| flow.workload().to_owned()),
            Group::Identity => together(shown, |flow| flow.caller.clone()),
        };
        rows.sort_by(|one, other| {
            let order = match self.sort {
                Sort::Rate => other.rate.total_cmp(&one.rate),
                Sort::Bytes => other.bytes.cmp(&one.bytes),
                Sort::New => other.new.total_cmp(&one.new),
                Sort::Open => other.open.cmp(&one.open),
                Sort::Rtt => other.round_trip.cmp(&one.round_trip),
                Sort::To => one.to.cmp(&other.to),
                Sort::From => one.from.cmp(&other.from),
            };
            // Lines that are equal keep their places.
            let names = || (&one.to, &one.from, &one.verdict).cmp(&(&other.to, &other.from, &other.verdict));
            let order = order.then_with(names);
            if self.is_reversed { order.reverse() } else { order }
        });
        rows
    }

    /// Bytes per second of all, from and to programs on this host.
    pub fn rates(&self) -> (f64, f64) {
        let add = |(sent, received), flow: &Flow| {
            (sent + flow.sent_per_second, received + flow.received_per_second)
        };
        self.flows.iter().fold((0.0, 0.0), add)
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.flows.iter().map(|flow| flow.open).sum()
    }

    /// Whether keys go into the filter.
    pub fn is_typing(&self) -> bool {
        self.is_typing
    }

    /// Takes a key.
    pub fn press(&mut self, key: KeyCode) {
        if self.is_typing {
            return self.type_filter(key);
        }
        match key {
            KeyCode::Char('s') => self.sort = next(self.sort),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('g') => self.group = next(self.group),
            KeyCode::Char('i') => self.has_idle = !self.has_idle,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('?' | 'h') => self.has_help = !self.has_help,
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            KeyCode::Esc => {
                self.has_help = false;
                self.filter.clear();
            }
            _ => {}
        }
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(character) => self.filter.push(character),
            _ => {}
        }
    }

    fn shows(&self, flow: &Flow) -> bool {
        let host = flow.host.as_deref().unwrap_or_default();
        let parts = [&*flow.served(), host, &flow.destination, &flow.caller, flow.verdict];
        let is_live = flow.open > 0 || flow.idle_seconds < SHOWN;
        (is_live || self.has_idle) && parts.into_iter().any(|part| part.contains(&self.filter))
    }
}

/// One line for all that have the same name.
fn together<'a>(flows: impl Iterator<Item = &'a Flow>, name: impl Fn(&Flow) -> String) -> Vec<Row> {
    let mut groups = BTreeMap::<String, Row>::new();
    for flow in flows {
        let row = Row::from(flow);
        match groups.get_mut(&name(flow)) {
            Some(group) => group.add(row),
            None => _ = groups.insert(name(flow), row),
        }
    }
    groups.into_values().collect()
}

impl Row {
    fn add(&mut self, row: Self) {
        if self.direction != row.direction {
            self.direction = "";
        }
        for (own, other) in [(&mut self.to, row.to), (&mut self.from, row.from)] {
            if *own != other {
                "several".clone_into(own);
            }
        }
        if self.verdict != row.verdict {
            "several".clone_into(&mut self.verdict);
        }
        self.open += row.open;
        self.new += row.new;
        self.rate += row.rate;
        self.bytes += row.bytes;
        self.round_trip = self.round_trip.max(row.round_trip);
        self.is_wrong |= row.is_wrong;
    }
}

impl From<&Flow> for Row {
    fn from(flow: &Flow) -> Self {
        Self {
            direction: if flow.direction == "out" { "→" } else { "←" },
            to: flow.served(),
            from: flow.client().to_owned(),
            open: flow.open,
            new: flow.connections_per_second,
            rate: flow.sent_per_second + flow.received_per_second,
            bytes: flow.sent + flow.received,
            round_trip: flow.round_trip_us,
            verdict: flow.rule.map_or(flow.verdict.to_owned(), |rule| format!("{} {rule}", flow.verdict)),
            is_wrong: flow.verdict != "allowed",
        }
    }
}
