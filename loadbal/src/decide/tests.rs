use super::*;
use crate::vector::tests::idle;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn node(id: u32, load: f64) -> NodeLoad {
    NodeLoad { load, ..idle(id) }
}

fn own_node(id: u32, load: f64, own: f64) -> NodeLoad {
    NodeLoad {
        own,
        ..node(id, load)
    }
}

fn job(pid: i32, home: u32) -> Candidate {
    Candidate {
        key: ProcessKey {
            pid,
            start_ticks: 1,
        },
        pid: Pid(pid),
        home: NodeId(home),
        demand: 1.0,
        memory: MIB,
        age: Duration::from_secs(20),
        resident: Duration::from_secs(20),
        automatic_moves: 0,
    }
}

fn jobs(count: i32, home: u32) -> Vec<Candidate> {
    (1..=count).map(|pid| job(100 + pid, home)).collect()
}

fn targets(me: NodeLoad, others: &[NodeLoad], candidates: &[Candidate]) -> Vec<u32> {
    let model = Model {
        me,
        others: others.to_vec(),
    };
    decide(model, candidates, 16, &Tuning::default())
        .iter()
        .map(|decided| decided.target.0)
        .collect()
}

#[test]
fn twelve_jobs_go_to_eleven_different_nodes_and_one_stays() {
    let others: Vec<NodeLoad> = (2..=12).map(|id| node(id, 0.0)).collect();
    let mut chosen = targets(own_node(1, 12.0, 12.0), &others, &jobs(12, 1));
    chosen.sort_unstable();
    assert_eq!(chosen, (2..=12).collect::<Vec<u32>>());
}

#[test]
fn the_first_move_is_counted_before_the_second() {
    let chosen = targets(
        own_node(1, 6.0, 6.0),
        &[node(2, 0.0), node(3, 0.0)],
        &jobs(6, 1),
    );
    assert_eq!(chosen.len(), 4);
    assert_eq!(chosen.iter().filter(|&&id| id == 2).count(), 2);
}

#[test]
fn a_balanced_cluster_is_left_alone() {
    for (here, there) in [(1.0, 1.0), (2.0, 1.0), (1.0, 0.0), (3.0, 2.0)] {
        let chosen = targets(
            own_node(1, here, here),
            &[node(2, there), node(3, there)],
            &jobs(3, 1),
        );
        assert_eq!(chosen, [0; 0], "{here} against {there}");
    }
}

#[test]
fn spare_cpus_keep_their_jobs() {
    let me = NodeLoad {
        cpus: 4.0,
        ..own_node(1, 4.0, 4.0)
    };
    assert_eq!(targets(me, &[node(2, 0.0)], &jobs(4, 1)), [0; 0]);
}

#[test]
fn a_faster_node_is_preferred() {
    let fast = NodeLoad {
        speed: 2.0,
        ..node(3, 0.0)
    };
    assert_eq!(
        targets(own_node(1, 2.0, 2.0), &[node(2, 0.0), fast], &jobs(2, 1))[0],
        3
    );
}

#[test]
fn young_idle_and_just_moved_processes_stay() {
    let young = Candidate {
        age: Duration::from_millis(1900),
        resident: Duration::from_millis(1900),
        ..job(1, 1)
    };
    let idle_one = Candidate {
        demand: 0.2,
        ..job(2, 1)
    };
    let moved = Candidate {
        automatic_moves: 3,
        resident: Duration::from_secs(11),
        ..job(3, 1)
    };
    let me = own_node(1, 8.0, 8.0);
    assert_eq!(
        targets(me, &[node(2, 0.0)], &[young, idle_one, moved]),
        [0; 0]
    );
}

#[test]
fn a_large_process_moves_only_when_it_is_old_enough_to_pay_for_it() {
    let mut large = Candidate {
        memory: 400 * MIB,
        ..job(1, 1)
    };
    let others = [NodeLoad {
        memory_free: 1 << 30,
        ..node(2, 0.0)
    }];
    large.age = Duration::from_secs(8);
    let me = own_node(1, 2.0, 2.0);
    assert_eq!(targets(me.clone(), &others, &[large.clone()]), [0; 0]);
    large.age = Duration::from_secs(60);
    assert_eq!(targets(me, &others, &[large]), [2]);
}

#[test]
fn nothing_goes_to_a_blocked_node_or_where_memory_is_short() {
    let blocked = NodeLoad {
        blocked: true,
        ..node(2, 0.0)
    };
    let full = NodeLoad {
        memory_free: 64 * MIB,
        ..node(3, 0.0)
    };
    assert_eq!(
        targets(own_node(1, 3.0, 3.0), &[blocked, full], &jobs(3, 1)),
        [0; 0]
    );
}

#[test]
fn a_node_with_own_work_sheds_its_guest_to_an_idle_node_or_home() {
    let me = own_node(5, 2.0, 1.0);
    let guest = [job(1, 1)];
    assert_eq!(
        targets(me.clone(), &[node(1, 1.0), node(3, 0.0)], &guest),
        [3]
    );
    assert_eq!(
        targets(me.clone(), &[own_node(1, 1.0, 1.0), node(3, 1.0)], &guest).len(),
        1
    );
    assert_eq!(
        targets(me, &[own_node(1, 1.0, 1.0), own_node(3, 1.0, 1.0)], &guest),
        [1]
    );
}

#[test]
fn a_shed_guest_is_not_sent_back() {
    let guest = [job(1, 1)];
    let left_behind = own_node(5, 1.0, 1.0);
    for me in [node(3, 2.0), own_node(3, 2.0, 1.0)] {
        assert_eq!(
            targets(me, std::slice::from_ref(&left_behind), &guest),
            [0; 0]
        );
    }
    let at_home = own_node(1, 2.0, 2.0);
    assert_eq!(targets(at_home, &[left_behind], &guest), [0; 0]);
}

#[test]
fn memory_running_out_overrides_the_cpus() {
    let me = NodeLoad {
        memory_free: 14 * MIB,
        ..own_node(1, 1.0, 1.0)
    };
    let small = Candidate {
        memory: 10 * MIB,
        ..job(1, 1)
    };
    let curing = Candidate {
        memory: 60 * MIB,
        ..job(2, 1)
    };
    let larger = Candidate {
        memory: 90 * MIB,
        ..job(3, 1)
    };
    let model = Model {
        me,
        others: vec![node(2, 5.0)],
    };
    let moves = decide(model, &[small, curing, larger], 1, &Tuning::default());
    assert_eq!(moves[0].pid, Pid(2));
    assert_eq!(moves[0].reason, Reason::Memory);
}

proptest! {
    #[test]
    fn after_the_decided_moves_no_further_move_is_wanted(
        loads in prop::collection::vec(0u32..5, 1..30), own in 1i32..30,
    ) {
        let others: Vec<NodeLoad> =
            loads.iter().zip(2..).map(|(&load, id)| node(id, f64::from(load))).collect();
        let candidates = jobs(own, 1);
        let mut model = Model { me: own_node(1, f64::from(own), f64::from(own)), others };
        let moves = decide(model.clone(), &candidates, usize::MAX, &Tuning::default());
        for decided in &moves {
            let moved = candidates.iter().find(|c| c.key == decided.key).unwrap();
            apply(&mut model, moved, decided.target);
        }
        let stay: Vec<Candidate> = candidates
            .into_iter()
            .filter(|c| moves.iter().all(|decided| decided.key != c.key))
            .collect();
        let lowest = model.others.iter().map(|node| node.load).fold(f64::MAX, f64::min);
        prop_assert!(model.me.load < lowest + 2.0 || (lowest + 1.0) / model.me.load > 0.899);
        prop_assert!(decide(model, &stay, 1, &Tuning::default()).is_empty());
    }
}
