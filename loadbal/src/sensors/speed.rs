//! How fast a CPU of this node is.

use std::hint::black_box;

use nix::time::{ClockId, clock_gettime};

/// Rounds of the mixer that the standard CPU (speed 1.0) does in a second; a 2020s server core.
const STANDARD_ROUNDS_PER_S: f64 = 4.0e8;
/// Rounds of one measurement: 2 to 4 ms.
const ROUNDS: u32 = 1_000_000;
/// The best of so many measurements counts: interruptions only make it slower.
const TRIES: usize = 4;

/// Measures the speed of one CPU relative to the standard CPU, by this thread's CPU time, so that
/// neither a quota nor other load disturbs it. Costs about 10 ms.
#[must_use]
pub fn measure() -> f64 {
    let fastest = (0..TRIES).filter_map(|_| once()).fold(0.0, f64::max);
    // In steps of 5 %: smaller differences between equal machines are noise.
    let steps = (fastest / STANDARD_ROUNDS_PER_S * 20.0).round();
    if steps < 1.0 { 1.0 } else { steps / 20.0 }
}

fn once() -> Option<f64> {
    let before = thread_seconds()?;
    black_box(mix(black_box(0x9e37_79b9_7f4a_7c15)));
    let took = thread_seconds()? - before;
    (took > 0.0).then(|| f64::from(ROUNDS) / took)
}

/// Integer multiplications that depend on each other, as in compression and hashing.
fn mix(mut value: u64) -> u64 {
    for round in 0..ROUNDS {
        value = (value ^ u64::from(round)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        value ^= value >> 33;
    }
    value
}

fn thread_seconds() -> Option<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?;
    Some(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_of_one_machine_are_alike() {
        let (first, second) = (measure(), measure());
        assert!(first > 0.01 && first < 100.0);
        assert!((first / second - 1.0).abs() < 0.5, "{first} and {second}");
    }
}
