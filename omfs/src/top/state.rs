//! What is shown and chosen; knows nothing of terminals but the keys.

use std::fmt;

use proto::v1::{NodeStatus, Process, StatusReply};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// One answer of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// This node.
    pub status: StatusReply,
    /// All nodes.
    pub nodes: Vec<NodeStatus>,
    /// Jobs and guests.
    pub processes: Vec<Process>,
}

/// What a key asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Only the view changes.
    Nothing,
    /// Ends the view.
    Quit,
    /// Moves a process.
    Move {
        /// The process, by its PID at home.
        pid: i32,
        /// A node's name, or "home".
        target: String,
    },
    /// Sends all guests away.
    Expel,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Move { pid, target } => write!(f, "moving {pid} to {target}"),
            Self::Expel => f.write_str("expelling guests"),
            Self::Nothing | Self::Quit => Ok(()),
        }
    }
}

/// What the keys mean at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Choosing a process.
    Browse,
    /// Choosing where `pid` goes; the index is into [`State::targets`].
    ChooseNode {
        /// The process.
        pid: i32,
        /// The marked node.
        marked: usize,
    },
    /// Asked whether all guests shall go.
    ConfirmExpel,
    /// Keys are explained; the next one ends that.
    Help,
}

/// The view's state.
#[derive(Debug)]
pub struct State {
    /// The newest answer.
    pub snapshot: Snapshot,
    /// The marked process' PID and home, which survive that the table changes.
    marked: Option<(i32, String)>,
    /// What the keys mean.
    pub mode: Mode,
    /// The line at the bottom.
    pub message: Option<String>,
}

impl State {
    /// With the first process marked.
    pub fn new(snapshot: Snapshot) -> Self {
        let mut state = Self {
            snapshot: Snapshot::default(),
            marked: None,
            mode: Mode::Browse,
            message: None,
        };
        state.update(snapshot);
        state
    }

    /// Takes a newer answer; the mark stays on its process while that exists.
    pub fn update(&mut self, snapshot: Snapshot) {
        let at = self.marked_index().unwrap_or(0);
        self.snapshot = snapshot;
        if self.marked_index().is_none() {
            self.mark(at.min(self.snapshot.processes.len().saturating_sub(1)));
        }
    }

    /// Index of the marked process.
    pub fn marked_index(&self) -> Option<usize> {
        let (pid, home) = self.marked.as_ref()?;
        let mut processes = self.snapshot.processes.iter();
        processes.position(|process| process.pid == *pid && process.home == *home)
    }

    fn mark(&mut self, index: usize) {
        let process = self.snapshot.processes.get(index);
        self.marked = process.map(|process| (process.pid, process.home.clone()));
    }

    /// Where a process can be sent: nodes that answer.
    pub fn targets(&self) -> Vec<String> {
        let living = self
            .snapshot
            .nodes
            .iter()
            .filter(|node| node.state != "dead");
        living
            .filter_map(|node| Some(node.node.as_ref()?.name.clone()))
            .collect()
    }

    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent) -> Action {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Action::Quit;
        }
        match self.mode.clone() {
            Mode::Browse => self.browse(key.code),
            Mode::ChooseNode { pid, marked } => self.choose(key.code, pid, marked),
            Mode::Help => {
                self.mode = Mode::Browse;
                Action::Nothing
            }
            Mode::ConfirmExpel => {
                self.mode = Mode::Browse;
                match key.code {
                    KeyCode::Char('y') => Action::Expel,
                    _ => Action::Nothing,
                }
            }
        }
    }

    fn browse(&mut self, key: KeyCode) -> Action {
        self.message = None;
        let at = self.marked_index();
        let pid = self
            .marked
            .as_ref()
            .filter(|_| at.is_some())
            .map(|marked| marked.0);
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.mark(at.unwrap_or(0).saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => {
                let last = self.snapshot.processes.len().saturating_sub(1);
                self.mark(at.map_or(0, |at| at + 1).min(last));
            }
            KeyCode::Char('m') => match pid {
                Some(pid) => self.mode = Mode::ChooseNode { pid, marked: 0 },
                None => self.message = Some("there is no job to move".to_owned()),
            },
            KeyCode::Char('h') => {
                if let Some(pid) = pid {
                    let target = "home".to_owned();
                    return self.begin(Action::Move { pid, target });
                }
            }
            KeyCode::Char('?') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('e') => self.mode = Mode::ConfirmExpel,
            _ => {}
        }
        Action::Nothing
    }

    fn choose(&mut self, key: KeyCode, pid: i32, marked: usize) -> Action {
        let targets = self.targets();
        let last = targets.len().saturating_sub(1);
        let marked = match key {
            KeyCode::Left | KeyCode::Up | KeyCode::Char('k') => marked.saturating_sub(1),
            KeyCode::Right | KeyCode::Down | KeyCode::Char('j') => (marked + 1).min(last),
            KeyCode::Enter => {
                self.mode = Mode::Browse;
                return match targets.get(marked) {
                    Some(target) => self.begin(Action::Move {
                        pid,
                        target: target.clone(),
                    }),
                    None => Action::Nothing,
                };
            }
            KeyCode::Esc | KeyCode::Char('q') => {
                self.mode = Mode::Browse;
                return Action::Nothing;
            }
            _ => marked,
        };
        self.mode = Mode::ChooseNode { pid, marked };
        Action::Nothing
    }

    fn begin(&mut self, action: Action) -> Action {
        self.message = Some(format!("{action} ..."));
        action
    }
}
