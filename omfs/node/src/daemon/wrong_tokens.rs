//! Wrong join tokens per source address: guessing costs the one who guesses, and nobody else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Wrong tokens that an address may show at once.
const BURST: u32 = 5;
/// One more is forgiven each of these.
const FORGIVE_EVERY: Duration = Duration::from_secs(2);
/// Addresses remembered; the longest forgiven makes room.
const SOURCES_MAX: usize = 1024;

/// Who has shown how many.
#[derive(Debug, Default)]
pub struct WrongTokens {
    /// When all of an address's wrong tokens will be forgiven.
    forgiven_at: HashMap<IpAddr, Instant>,
}

impl WrongTokens {
    /// Whether that address may show a token now.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn may_try(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(forgiven) = self.forgiven_at.get(&source) else {
            return Ok(());
        };
        let owed = forgiven.saturating_duration_since(now);
        let allowed = FORGIVE_EVERY * (BURST - 1);
        if owed <= allowed {
            return Ok(());
        }
        Err(owed - allowed)
    }

    /// Notes a wrong token.
    pub fn note(&mut self, source: IpAddr, now: Instant) {
        self.forgiven_at.retain(|_, forgiven| *forgiven > now);
        if !self.forgiven_at.contains_key(&source) && self.forgiven_at.len() >= SOURCES_MAX {
            let next = self.forgiven_at.iter().min_by_key(|(_, at)| **at);
            if let Some(next) = next.map(|(source, _)| *source) {
                self.forgiven_at.remove(&next);
            }
        }
        let forgiven = self.forgiven_at.entry(source).or_insert(now);
        // Nobody waits longer than for one burst more.
        *forgiven = (*forgiven + FORGIVE_EVERY).min(now + 2 * BURST * FORGIVE_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + last).to_be_bytes())
    }

    #[test]
    fn only_the_address_that_guesses_waits() {
        let (mut wrong, now) = (WrongTokens::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(wrong.may_try(source(1), now), Ok(()));
            wrong.note(source(1), now);
        }
        assert!(wrong.may_try(source(1), now).is_err());
        assert_eq!(wrong.may_try(source(2), now), Ok(()));
        assert_eq!(wrong.may_try(source(1), now + FORGIVE_EVERY), Ok(()));
    }

    #[test]
    fn the_table_and_the_wait_are_bounded() {
        let (mut wrong, now) = (WrongTokens::default(), Instant::now());
        for last in 0..3000 {
            wrong.note(source(last), now);
            wrong.note(source(7), now);
        }
        assert!(wrong.forgiven_at.len() <= SOURCES_MAX);
        assert_eq!(
            wrong.may_try(source(7), now + 2 * BURST * FORGIVE_EVERY),
            Ok(())
        );
    }
}
