//! Whole clusters, simulated: they spread, they come to rest, and they stay at rest.

use std::time::{Duration, Instant};

use loadbal::sim::{NodeSpec, Noise, Simulation};
use loadbal::tuning::Tuning;

const LONG: Duration = Duration::from_secs(10_000);
const MIB: u64 = 1 << 20;
const NOISE: Noise = Noise {
    unseen: 0.15,
    commands: 0.02,
};

fn cluster(nodes: usize, noise: Noise, seed: u64) -> Simulation {
    let specs = vec![NodeSpec::default(); nodes];
    let mut cluster = Simulation::new(&specs, &Tuning::default(), noise, seed);
    cluster.run(seconds(10));
    cluster
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn twelve_jobs_on_one_of_twelve_nodes_spread_within_four_seconds() {
    for seed in 0..20 {
        let mut cluster = cluster(12, Noise::default(), seed);
        cluster.start(1, 12, LONG, 4 * MIB);
        cluster.run(seconds(4));
        let report = cluster.report();
        assert_eq!(report.jobs_per_node, [1; 12], "seed {seed}");
        assert_eq!(report.moves.len(), 11, "seed {seed}");
    }
}

#[test]
fn nodes_with_an_eighth_of_a_cpu_spread_as_fast() {
    let spec = NodeSpec {
        cpus: 0.12,
        ..NodeSpec::default()
    };
    let mut cluster = Simulation::new(&[spec; 12], &Tuning::default(), Noise::default(), 1);
    cluster.run(seconds(10));
    cluster.start(1, 12, LONG, 4 * MIB);
    cluster.run(seconds(4));
    assert_eq!(cluster.report().jobs_per_node, [1; 12]);
}

/// Moves within a minute, a minute after so many jobs were started on the first of twelve nodes.
fn moves_at_rest(jobs: usize, noise: Noise, seed: u64) -> usize {
    let mut cluster = cluster(12, noise, seed);
    cluster.start(1, jobs, LONG, 4 * MIB);
    cluster.run(seconds(60));
    let before = cluster.report();
    let (most, least) = before.extremes();
    let even = if noise == NOISE { 3 } else { 2 };
    assert!(
        most - least <= even,
        "{jobs} jobs, seed {seed}: {:?}",
        before.jobs_per_node
    );
    cluster.run(seconds(60));
    cluster.report().moves.len() - before.moves.len()
}

#[test]
fn once_spread_nothing_moves_for_a_minute() {
    for seed in 0..5 {
        for (jobs, noise) in [(12, Noise::default()), (144, Noise::default()), (12, NOISE)] {
            assert_eq!(
                moves_at_rest(jobs, noise, seed),
                0,
                "{jobs} jobs, {noise:?}, {seed}"
            );
        }
    }
}

#[test]
fn a_crowded_and_noisy_cluster_hardly_moves() {
    for seed in 0..5 {
        let moves = moves_at_rest(144, NOISE, seed);
        assert!(moves <= 8, "{moves} moves, seed {seed}");
    }
}

#[test]
fn jobs_under_two_seconds_never_move() {
    let mut cluster = cluster(12, NOISE, 3);
    for _ in 0..60 {
        cluster.start(1, 1, Duration::from_millis(900), MIB);
        cluster.run(seconds(2));
    }
    assert_eq!(cluster.report().moves, []);
}

#[test]
fn a_node_that_gets_its_own_work_sheds_its_guest_and_is_then_left_alone() {
    for seed in 0..10 {
        let mut cluster = cluster(4, Noise::default(), seed);
        cluster.start(1, 3, LONG, 4 * MIB);
        cluster.run(seconds(30));
        let used = (2..=4).find(|node| cluster.guests(*node) == 1).unwrap();
        cluster.start(used, 1, LONG, 4 * MIB);
        cluster.run(seconds(20));
        assert_eq!(
            cluster.guests(used),
            0,
            "seed {seed}: {:?}",
            cluster.report()
        );
        let moves = cluster.report().moves.len();
        cluster.run(seconds(60));
        assert_eq!(cluster.report().moves.len(), moves, "seed {seed}");
    }
}

#[test]
fn equal_jobs_on_sixteen_nodes_take_little_longer_than_the_optimum() {
    for jobs in [16, 24, 40, 80] {
        let mut cluster = cluster(16, NOISE, 7);
        let begin = cluster.report().now;
        cluster.start(1, jobs, seconds(300), 4 * MIB);
        cluster.run_out(seconds(4000));
        let took = cluster.report().makespan_end().unwrap() - begin;
        let optimum = 300.0 * (jobs as f64 / 16.0).ceil();
        let ratio = took.as_secs_f64() / optimum;
        println!("{jobs} jobs: {ratio:.3} of the optimum");
        assert!(ratio < 1.1, "{jobs} jobs: {ratio}");
    }
}

#[test]
fn fast_nodes_get_more() {
    let slow = NodeSpec::default();
    let fast = NodeSpec { speed: 3.0, ..slow };
    let mut cluster = Simulation::new(
        &[slow, slow, slow, fast],
        &Tuning::default(),
        Noise::default(),
        2,
    );
    cluster.run(seconds(10));
    cluster.start(1, 12, LONG, 4 * MIB);
    cluster.run(seconds(60));
    let spread = cluster.report().jobs_per_node;
    assert!(
        spread[3] >= 5 && spread[..3].iter().all(|n| *n <= 3),
        "{spread:?}"
    );
}

#[test]
fn a_thousand_nodes_are_filled_from_ten_in_bounded_time() {
    let started = Instant::now();
    let mut cluster = cluster(1000, Noise::default(), 5);
    for node in 1..=10 {
        cluster.start(node * 100, 50, LONG, 4 * MIB);
    }
    cluster.run(seconds(30));
    let report = cluster.report();
    let (most, _) = report.extremes();
    assert!(
        most <= 3,
        "{most} jobs on one node, {} moves",
        report.moves.len()
    );
    assert!(report.moves.len() < 600, "{} moves", report.moves.len());
    cluster.run(seconds(10));
    let later = cluster.report().moves.len() - report.moves.len();
    assert!(later <= 10, "{later} moves after coming to rest");
    println!("took {:?}", started.elapsed());
}
