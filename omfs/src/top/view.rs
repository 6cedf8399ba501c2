//! Draws a [`State`].

use proto::v1::{NodeStatus, Process};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::state::{Mode, State};
use crate::commands::ps;
use crate::output;

/// Widest bars, in characters.
const BAR_MAX: usize = 14;
/// Narrower bars say nothing.
const BAR_MIN: usize = 4;
/// Lines of jobs, with their header, that nodes leave free.
const JOB_LINES_MIN: u16 = 6;
/// `12.34/16.00` beside a bar.
const LOAD_TEXT: usize = 11;
/// `1023 MiB/23.6 GiB` beside a bar.
const MEMORY_TEXT: usize = 17;

const HELP: &str = "\
Up, Down, k, j   choose a job
m                move it: choose a node with the arrows, then Enter
h                bring it home
e                expel: send all guests away and take no new ones
?                this help
q, Esc, Ctrl-C   quit; moves that were begun go on

LOAD/CPUS        tasks that want to run, and the CPUs there are for them
WHERE            the node where a job runs; HOME is where it was started
A job that was moved by hand stays there until `omfs unlock PID`.";

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    let nodes = u16::try_from(state.snapshot.nodes.len()).unwrap_or(u16::MAX);
    let footer = footer_line(state, area.width.into());
    let footer_lines = if footer.width() > usize::from(area.width) {
        2
    } else {
        1
    };
    let most = area.height.saturating_sub(1 + footer_lines + JOB_LINES_MIN);
    let [title, top, bottom, last] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(nodes.saturating_add(2).min(most.max(3))),
        Constraint::Min(3),
        Constraint::Length(footer_lines),
    ])
    .areas(area);
    frame.render_widget(title_line(state), title);
    draw_nodes(frame, state, top);
    match state.mode {
        Mode::Help => frame.render_widget(Paragraph::new(HELP), bottom),
        _ => draw_processes(frame, state, bottom),
    }
    let footer = Paragraph::new(footer).wrap(Wrap { trim: true });
    frame.render_widget(footer, last);
}

fn title_line(state: &State) -> Line<'static> {
    let status = &state.snapshot.status;
    let node = status.node.as_ref().map_or("", |node| &node.name);
    let jobs = format!(
        "  {} of {} nodes answer, {} away, {} guests",
        status.nodes_alive, status.nodes_known, status.away, status.guests,
    );
    Line::from(vec![
        Span::from(format!("omfs {} on {node}", status.cluster)).bold(),
        Span::from(jobs),
    ])
}

fn footer_line(state: &State, width: usize) -> Line<'static> {
    match &state.mode {
        Mode::ChooseNode { pid, marked } => targets_line(state, *pid, *marked, width),
        Mode::ConfirmExpel => Line::from("send all guests away and take no new ones? y/n").yellow(),
        Mode::Help => Line::from("any key goes back").dim(),
        Mode::Browse => match &state.message {
            Some(message) => Line::from(output::printable(message).into_owned()).yellow(),
            None => {
                Line::from("up/down choose  m move  h home  e expel guests  ? help  q quit").dim()
            }
        },
    }
}

/// The nodes to choose from; those before the marked one give way when there are too many.
fn targets_line(state: &State, pid: i32, marked: usize, width: usize) -> Line<'static> {
    const KEYS: &str = " arrows, Enter, Esc";
    let before = format!("move {pid} to: ");
    let room = width.saturating_sub(before.len() + KEYS.len() + 4);
    let names = state.targets();
    let wide = |names: &[String]| names.iter().map(|name| name.len() + 1).sum::<usize>();
    let reaches = |first: &usize| wide(names.get(*first..=marked).unwrap_or_default()) <= room;
    let first = (0..marked).find(reaches).unwrap_or(marked);
    let fits = |last: &usize| wide(names.get(first..*last).unwrap_or_default()) <= room;
    let end = (marked + 1..=names.len())
        .rev()
        .find(fits)
        .unwrap_or(marked + 1);
    let mut spans = vec![Span::from(before)];
    if first > 0 {
        spans.push(Span::from("… "));
    }
    for (index, name) in names.iter().enumerate().take(end).skip(first) {
        let style = if index == marked {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        spans.push(Span::styled(name.clone(), style));
        spans.push(Span::from(" "));
    }
    if end < names.len() {
        spans.push(Span::from("…"));
    }
    spans.push(Span::from(KEYS).dim());
    Line::from(spans)
}

/// Characters that a column needs for its heading and its cells.
fn column<'a>(heading: &str, cells: impl Iterator<Item = &'a str>, most: usize) -> usize {
    let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
    widest.min(most).max(heading.len())
}

fn length(width: usize) -> Constraint {
    Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
}

/// A bar of `share` (0 to 1) in characters.
fn bar(share: f64, width: usize) -> String {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    // Rounded up, so that a little load is seen.
    let full = (share * width as f64).ceil() as usize;
    let full = full.min(width);
    format!("{}{}", "█".repeat(full), "·".repeat(width - full))
}

fn bar_cell(share: f64, width: usize, text: String) -> Cell<'static> {
    let colour = match share {
        share if share >= 0.95 => Color::Red,
        share if share >= 0.7 => Color::Yellow,
        _ => Color::Green,
    };
    Cell::from(Line::from(vec![
        Span::from(bar(share, width)).fg(colour),
        Span::from(format!(" {text}")),
    ]))
}

fn draw_nodes(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let nodes = &state.snapshot.nodes;
    let names = nodes
        .iter()
        .filter_map(|one| Some(one.node.as_ref()?.name.as_str()));
    let name = column("NODE", names, usize::from(area.width) / 5);
    let blocked = nodes
        .iter()
        .any(|one| one.load.as_ref().is_some_and(|load| load.blocked));
    let guests = if blocked { 11 } else { 6 };
    let texts = name + 7 + 1 + LOAD_TEXT + 1 + MEMORY_TEXT + guests + 4;
    let bars = usize::from(area.width).saturating_sub(texts) / 2;
    let bars = bars.clamp(BAR_MIN, BAR_MAX);
    let widths = [
        length(name),
        Constraint::Length(7),
        length(bars + 1 + LOAD_TEXT),
        length(bars + 1 + MEMORY_TEXT),
        Constraint::Min(6),
    ];
    let lines = usize::from(area.height).saturating_sub(2);
    let shown = if nodes.len() > lines {
        lines.saturating_sub(1)
    } else {
        nodes.len()
    };
    let mut rows: Vec<Row<'_>> = nodes
        .iter()
        .take(shown)
        .map(|one| node_row(one, bars))
        .collect();
    if shown < nodes.len() {
        rows.push(Row::new([format!("+ {} more", nodes.len() - shown)]));
    }
    let table = Table::new(rows, widths)
        .header(Row::new(["NODE", "STATE", "LOAD/CPUS", "MEMORY USED", "GUESTS"]).bold());
    frame.render_widget(table, area);
}

fn node_row(status: &NodeStatus, bars: usize) -> Row<'static> {
    let name = status
        .node
        .as_ref()
        .map_or("?", |node| &node.name)
        .to_owned();
    let state = Cell::from(status.state.clone());
    let state = match status.state.as_str() {
        "dead" => state.red(),
        "suspect" => state.yellow(),
        _ => state,
    };
    let Some(load) = status.load.as_ref().filter(|_| status.state != "dead") else {
        return Row::new([Cell::from(name), state]);
    };
    let cpus = f64::from(load.cpus_milli) / 1000.0;
    let tasks = f64::from(load.load_milli) / 1000.0;
    let used = load.mem_total_bytes.saturating_sub(load.mem_free_bytes);
    let memory = used as f64 / (load.mem_total_bytes.max(1)) as f64;
    let blocked = if load.blocked { " blocked" } else { "" };
    Row::new([
        Cell::from(name),
        state,
        bar_cell(
            tasks / cpus.max(0.001),
            bars,
            format!("{tasks:.2}/{cpus:.2}"),
        ),
        bar_cell(
            memory,
            bars,
            format!(
                "{}/{}",
                output::bytes(used),
                output::bytes(load.mem_total_bytes)
            ),
        ),
        Cell::from(format!("{}{blocked}", load.guests)),
    ])
}

fn draw_processes(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let processes = &state.snapshot.processes;
    let rows = processes.iter().map(process_row);
    let pids: Vec<String> = processes.iter().map(|one| one.pid.to_string()).collect();
    let places = usize::from(area.width) / 8;
    let homes = processes.iter().map(|one| one.home.as_str());
    let wheres = processes.iter().map(|one| one.r#where.as_str());
    let widths = [
        length(column("PID", pids.iter().map(String::as_str), 7)),
        Constraint::Length(15),
        length(column("HOME", homes, places)),
        length(column("WHERE", wheres, places)),
        Constraint::Length(9),
        Constraint::Length(5),
        Constraint::Length(9),
        Constraint::Length(5),
        Constraint::Fill(1),
    ];
    let header = [
        "PID", "COMMAND", "HOME", "WHERE", "STATE", "CPU", "MEMORY", "MOVES", "REMARKS",
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(header).bold())
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut marked = TableState::new().with_selected(state.marked_index());
    frame.render_stateful_widget(table, area, &mut marked);
}

fn process_row(process: &Process) -> Row<'static> {
    let place = Cell::from(process.r#where.clone());
    let away = process.r#where != process.home;
    Row::new([
        Cell::from(process.pid.to_string()),
        Cell::from(output::printable(&process.command).into_owned()),
        Cell::from(process.home.clone()),
        if away { place.cyan() } else { place },
        Cell::from(process.state.clone()),
        Cell::from(format!("{}%", process.cpu_milli / 10)),
        Cell::from(output::bytes(process.memory_bytes)),
        Cell::from(process.moves.to_string()),
        Cell::from(output::printable(&ps::remark(process)).into_owned()),
    ])
}
