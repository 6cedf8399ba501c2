use proto::v1::{LoadVector, Node, NodeStatus, Process, StatusReply};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::state::{Action, Snapshot, State};
use super::view;

fn node(id: u32, state: &str, load: Option<(u32, u64)>) -> NodeStatus {
    NodeStatus {
        node: Some(Node {
            id,
            name: format!("n{id}"),
            ..Node::default()
        }),
        state: state.to_owned(),
        load: load.map(|(load_milli, free_mib)| LoadVector {
            cpus_milli: 2000,
            load_milli,
            mem_total_bytes: 4096 << 20,
            mem_free_bytes: free_mib << 20,
            guests: id,
            ..LoadVector::default()
        }),
        last_seen_unix_ms: 0,
    }
}

fn process(pid: i32, place: &str) -> Process {
    Process {
        pid,
        command: "gzip".into(),
        home: "n1".into(),
        r#where: place.into(),
        state: "running".into(),
        cpu_milli: 990,
        memory_bytes: 3 << 20,
        moves: 2,
        ..Process::default()
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        status: StatusReply {
            cluster: "lab".into(),
            node: node(1, "self", None).node,
            nodes_alive: 2,
            nodes_known: 3,
            away: 1,
            guests: 0,
            ..StatusReply::default()
        },
        nodes: vec![
            node(1, "self", Some((2500, 1024))),
            node(2, "alive", Some((500, 3072))),
            node(3, "dead", None),
        ],
        processes: vec![process(4711, "n2"), process(4712, "n1")],
    }
}

fn screen(state: &State) -> Vec<String> {
    screen_of(state, 100, 12)
}

fn screen_of(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let lines = buffer.content().chunks(width.into());
    lines
        .map(|cells| {
            cells
                .iter()
                .map(|cell| cell.symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        })
        .collect()
}

fn press(state: &mut State, code: KeyCode) -> Action {
    state.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn the_view_shows_nodes_and_processes() {
    let state = State::new(snapshot());
    let expected = [
        "omfs lab on n1  2 of 3 nodes answer, 1 away, 0 guests",
        "NODE STATE   LOAD/CPUS                  MEMORY USED                      GUESTS",
        "n1   self    ██████████████ 2.50/2.00   ███████████··· 3.0 GiB/4.0 GiB   1",
        "n2   alive   ████·········· 0.50/2.00   ████·········· 1.0 GiB/4.0 GiB   2",
        "n3   dead",
        "",
        "PID  COMMAND         HOME WHERE STATE     CPU   MEMORY    MOVES REMARKS",
        "4711 gzip            n1   n2    running   99%   3.0 MiB   2",
        "4712 gzip            n1   n1    running   99%   3.0 MiB   2",
        "",
        "",
        "",
        "up/down choose  m move  h home  e expel guests  ? help  q quit",
    ];
    assert_eq!(screen_of(&state, 100, 13), expected);
}

#[test]
fn a_process_is_moved_by_choosing_a_living_node() {
    let mut state = State::new(snapshot());
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::Char('m'));
    let line = screen(&state).pop().unwrap();
    assert_eq!(line, "move 4712 to: n1 n2  arrows, Enter, Esc");
    press(&mut state, KeyCode::Right);
    press(&mut state, KeyCode::Right);
    let action = press(&mut state, KeyCode::Enter);
    let target = "n2".to_owned();
    assert_eq!(action, Action::Move { pid: 4712, target });
    assert_eq!(screen(&state).pop().unwrap(), "moving 4712 to n2 ...");
}

#[test]
fn home_expel_and_quit_have_keys() {
    let mut state = State::new(snapshot());
    let target = "home".to_owned();
    assert_eq!(
        press(&mut state, KeyCode::Char('h')),
        Action::Move { pid: 4711, target }
    );
    assert_eq!(press(&mut state, KeyCode::Char('e')), Action::Nothing);
    assert_eq!(press(&mut state, KeyCode::Char('n')), Action::Nothing);
    assert_eq!(press(&mut state, KeyCode::Char('e')), Action::Nothing);
    assert_eq!(press(&mut state, KeyCode::Char('y')), Action::Expel);
    assert_eq!(press(&mut state, KeyCode::Char('q')), Action::Quit);
}

#[test]
fn the_mark_stays_on_its_process_and_an_empty_table_is_no_trouble() {
    let mut state = State::new(snapshot());
    press(&mut state, KeyCode::Down);
    let mut later = snapshot();
    later.processes.insert(0, process(1, "n1"));
    state.update(later);
    assert_eq!(state.marked_index(), Some(2));
    state.update(Snapshot::default());
    assert_eq!(state.marked_index(), None);
    for key in ['m', 'h', 'j', 'k'] {
        assert_eq!(press(&mut state, KeyCode::Char(key)), Action::Nothing);
    }
    screen(&state);
}

/// A dozen nodes, one with the longest name there is, on the smallest terminal people have.
fn crowded() -> Snapshot {
    let mut all = snapshot();
    all.nodes = (1..=12)
        .map(|id| node(id, "alive", Some((1000, 1024))))
        .collect();
    if let Some(load) = &mut all.nodes[2].load {
        load.blocked = true;
        load.mem_total_bytes = 1023 << 30;
    }
    let named = all.nodes[1].node.as_mut().unwrap();
    named.name = "a-name-of-sixty-three-characters-".repeat(2)[..63].to_owned();
    all.processes[0].locked = true;
    all
}

#[test]
fn everything_has_its_place_on_80_columns() {
    let lines = screen_of(&State::new(crowded()), 80, 24);
    assert!(
        lines[1].starts_with("NODE             STATE   LOAD/CPUS"),
        "{lines:#?}"
    );
    assert!(
        lines[2].starts_with("n1               alive   ███··· 1.00/2.00"),
        "{lines:#?}"
    );
    assert!(
        lines[3].starts_with("a-name-of-sixty- alive "),
        "{lines:#?}"
    );
    assert!(lines[4].ends_with(" 3 blocked"), "{lines:#?}");
    assert!(lines[13].starts_with("n12 "), "{lines:#?}");
    assert!(lines[15].ends_with("MOVES REMARKS"), "{lines:#?}");
    assert!(lines[16].ends_with("placed by hand"), "{lines:#?}");
    assert!(lines[23].ends_with("q quit"), "{lines:#?}");
}

#[test]
fn nodes_that_do_not_fit_are_counted() {
    let lines = screen_of(&State::new(crowded()), 80, 14);
    assert!(lines.contains(&"+ 9 more".to_owned()), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.starts_with("4712 ")),
        "{lines:#?}"
    );
    // Nothing that small is of use, but it must not end the program.
    for (width, height) in [(1, 1), (10, 3), (40, 6)] {
        screen_of(&State::new(crowded()), width, height);
    }
}

#[test]
fn the_marked_target_is_always_seen() {
    let mut state = State::new(crowded());
    press(&mut state, KeyCode::Char('m'));
    let last = |state: &State| screen_of(state, 80, 24).pop().unwrap();
    assert!(
        last(&state).starts_with("move 4711 to: n1 "),
        "{}",
        last(&state)
    );
    for _ in 0..20 {
        press(&mut state, KeyCode::Right);
    }
    assert!(
        last(&state).starts_with("move 4711 to: … n3 n4 "),
        "{}",
        last(&state)
    );
    assert!(
        last(&state).ends_with(" n12  arrows, Enter, Esc"),
        "{}",
        last(&state)
    );
}

#[test]
fn help_explains_the_keys_and_long_messages_are_wrapped() {
    let mut state = State::new(snapshot());
    press(&mut state, KeyCode::Char('?'));
    let lines = screen_of(&state, 80, 24);
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("m                move it"))
    );
    assert_eq!(press(&mut state, KeyCode::Char('q')), Action::Nothing);
    state.message = Some(format!("moving 4711 to n2: {} end", "reason ".repeat(12)));
    let lines = screen_of(&state, 80, 24);
    assert!(lines[23].ends_with(" end"), "{lines:#?}");
    assert!(lines[22].starts_with("moving 4711"), "{lines:#?}");
}
