//! Draws a [`State`].

use proto::v1::{NodeStatus, Process};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use super::state::{Mode, State};
use crate::commands::ps;
use crate::output;

/// Width of the bars, in characters.
const BAR_WIDTH: usize = 14;

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let nodes = u16::try_from(state.snapshot.nodes.len()).unwrap_or(u16::MAX);
    let most = frame.area().height.saturating_sub(2) / 2;
    let [title, top, bottom, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(nodes.saturating_add(2).min(most.max(3))),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(title_line(state), title);
    draw_nodes(frame, state, top);
    draw_processes(frame, state, bottom);
    frame.render_widget(footer_line(state), footer);
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

fn footer_line(state: &State) -> Paragraph<'static> {
    let text = match &state.mode {
        Mode::ChooseNode { pid, marked } => {
            let mut spans = vec![Span::from(format!("move {pid} to: "))];
            for (index, name) in state.targets().into_iter().enumerate() {
                let style = if index == *marked {
                    Style::new().add_modifier(Modifier::REVERSED)
                } else {
                    Style::new()
                };
                spans.push(Span::styled(name, style));
                spans.push(Span::from(" "));
            }
            spans.push(Span::from(" arrows, Enter, Esc").dim());
            Line::from(spans)
        }
        Mode::ConfirmExpel => Line::from("send all guests away and take no new ones? y/n").yellow(),
        Mode::Browse => match &state.message {
            Some(message) => Line::from(output::printable(message).into_owned()).yellow(),
            None => Line::from("up/down choose  m move  h home  e expel guests  q quit").dim(),
        },
    };
    Paragraph::new(text)
}

/// A bar of `share` (0 to 1) in characters.
fn bar(share: f64) -> String {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    // Rounded up, so that a little load is seen.
    let full = (share * BAR_WIDTH as f64).ceil() as usize;
    let full = full.min(BAR_WIDTH);
    format!("{}{}", "█".repeat(full), "·".repeat(BAR_WIDTH - full))
}

fn bar_cell(share: f64, text: String) -> Cell<'static> {
    let colour = match share {
        share if share >= 0.95 => Color::Red,
        share if share >= 0.7 => Color::Yellow,
        _ => Color::Green,
    };
    Cell::from(Line::from(vec![
        Span::from(bar(share)).fg(colour),
        Span::from(format!(" {text}")),
    ]))
}

fn draw_nodes(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let rows = state.snapshot.nodes.iter().map(node_row);
    let widths = [
        Constraint::Max(16),
        Constraint::Length(7),
        Constraint::Length(BAR_WIDTH as u16 + 12),
        Constraint::Length(BAR_WIDTH as u16 + 18),
        Constraint::Min(14),
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(["NODE", "STATE", "LOAD/CPUS", "MEMORY USED", "GUESTS"]).bold())
        .block(Block::new());
    frame.render_widget(table, area);
}

fn node_row(status: &NodeStatus) -> Row<'static> {
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
        bar_cell(tasks / cpus.max(0.001), format!("{tasks:.2}/{cpus:.2}")),
        bar_cell(
            memory,
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
    let rows = state.snapshot.processes.iter().map(process_row);
    let widths = [
        Constraint::Length(7),
        Constraint::Length(15),
        Constraint::Max(10),
        Constraint::Max(10),
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
