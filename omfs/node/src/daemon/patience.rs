//! Trying again what fails for a reason that may pass.

use std::time::{Duration, Instant};

const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Attempts something until it succeeds, fails for a reason that does not pass, or `limit` is over.
/// Blocks meanwhile.
///
/// # Errors
/// The last attempt's.
pub fn attempt<T, E>(
    limit: Duration,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let until = Instant::now() + limit;
    loop {
        match attempt() {
            Err(error) if passes(&error) && Instant::now() < until => {
                std::thread::sleep(LOOK_INTERVAL);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_errors_are_told_at_once() {
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            Err::<(), _>("no such thing")
        };
        assert_eq!(
            super::attempt(Duration::from_secs(60), |_| false, attempt),
            Err("no such thing")
        );
        assert_eq!(attempts, 1);
    }
}
