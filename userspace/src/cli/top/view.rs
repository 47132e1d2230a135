//! How the model looks. It fits into 80 columns and 24 lines; what is wider goes to the names.

use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};
use ratatui::{Frame, Terminal};

use super::model::{Model, Row, name};

const KEYS: &str = " q quit  s sort  r reverse  g group  / filter  i idle  p pause  ↑↓ move  ? help";

const HELP: &str = "
  s     sort by the next column: rate, bytes, new, open, rtt, to, from
  r     turn the order around
  g     a line for each flow, service, workload (on all hosts together) or identity
  /     type a filter: a service, host, address, caller or verdict. Enter keeps it,
        Esc drops it
  i     show also what has had no connection for ten seconds
  p     pause, and go on
  ↑ ↓   move the mark; Home and End go to the first and the last line
  q     quit, as Ctrl-C does

  A flow is all connections of one caller to one destination with the same verdict.
  →     the client is on this host          ←   the service is
  OPEN  connections now          NEW/s  connections that begin each second
  RATE  bytes each second, both ways        BYTES  since the agent was started
  RTT   between the two agents, the longest of those that are open
  VERDICT  with the number of the rule that decided; in red what is refused, fails,
        or goes in clear
";

/// Lines beside those of the table.
const FRAME_LINES: usize = 4;

/// Draws all of it.
pub fn draw(model: &mut Model, frame: &mut Frame<'_>) {
    let parts = [Constraint::Length(1), Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)];
    let [title, state, body, keys] = Layout::vertical(parts).areas(frame.area());
    let rows = model.rows();
    frame.render_widget(heading(model), title);
    frame.render_widget(settings(model, rows.len()), state);
    if model.has_help {
        frame.render_widget(Paragraph::new(HELP), body);
    } else {
        table(model, &rows, frame, body);
    }
    frame.render_widget(Line::from(KEYS).reversed(), keys);
}

/// The same without a terminal, with all lines.
///
/// # Errors
/// It is too large to be drawn.
pub fn text(model: &mut Model, width: u16) -> anyhow::Result<String> {
    let lines = u16::try_from(model.rows().len() + FRAME_LINES)?;
    Ok(frame(model, width, lines))
}

/// What a terminal of this size shows.
fn frame(model: &mut Model, width: u16, height: u16) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw(model, frame));
    let cells = terminal.backend().buffer().content();
    let line = |cells: &[ratatui::buffer::Cell]| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned() + "\n"
    };
    cells.chunks(usize::from(width)).map(line).collect()
}

fn heading(model: &Model) -> Line<'static> {
    let (sent, received) = model.rates();
    let paused = if model.is_paused { "  PAUSED" } else { "" };
    Line::from(vec![
        Span::from(format!("murmesh top on {}", model.host)).bold(),
        Span::from(format!("  {} connections", model.open())),
        Span::from(format!("  out {}/s  in {}/s", amount(sent), amount(received))),
        Span::from(paused).bold(),
    ])
}

fn settings(model: &Model, lines: usize) -> Line<'static> {
    let order = if model.is_reversed { ", reversed" } else { "" };
    let cursor = if model.is_typing() { "_" } else { "" };
    let filter = if model.filter.is_empty() && !model.is_typing() {
        "none".to_owned()
    } else {
        format!("{}{cursor}", model.filter)
    };
    let idle = if model.has_idle { "  idle ones too" } else { "" };
    let (group, sort) = (name(model.group), name(model.sort));
    Line::from(format!("a line for each {group} ({lines})  sorted by {sort}{order}  filter: {filter}{idle}"))
        .dim()
}

fn table(model: &mut Model, rows: &[Row], frame: &mut Frame<'_>, area: Rect) {
    let headings = ["", "TO", "FROM", " OPEN", "NEW/s", "  RATE", " BYTES", "    RTT", "VERDICT"];
    let widths = [
        Constraint::Length(1),
        Constraint::Fill(4),
        Constraint::Fill(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(10),
    ];
    let table = Table::new(rows.iter().map(line), widths)
        .header(TableRow::new(headings).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut model.table);
}

fn line(row: &Row) -> TableRow<'static> {
    let right = |text: String, width: usize| Cell::from(format!("{text:>width$}"));
    let style = if row.is_wrong { Style::new().fg(Color::Red) } else { Style::new() };
    TableRow::new([
        Cell::from(row.direction),
        Cell::from(row.to.clone()),
        Cell::from(row.from.clone()),
        right(count(row.open), 5),
        right(amount(row.new), 5),
        right(amount(row.rate), 6),
        right(count(row.bytes), 6),
        right(row.round_trip.map_or_else(|| "-".to_owned(), milliseconds), 7),
        Cell::from(row.verdict.clone()),
    ])
    .style(style)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn count(count: u64) -> String {
    amount(count as f64)
}

/// Four characters at most: 0, 999, 1.5k, 123k, 1.2M.
fn amount(value: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = value;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn milliseconds(microseconds: u64) -> String {
    let milliseconds = microseconds as f64 / 1000.0;
    let digits = if milliseconds < 9.995 { 2 } else { 0 };
    format!("{milliseconds:.digits$}ms")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
