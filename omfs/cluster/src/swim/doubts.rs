//! Members that others hold for dead or silent, until they answer this node or do not.

use std::collections::HashMap;
use std::time::Duration;

use proto::ids::NodeId;
use tokio::time::Instant;

/// A member that has not answered for this long after a claim is silent to this node, too.
const CONFIRM_AFTER: Duration = Duration::from_millis(1000);
/// One that has not answered for this long is dead, whatever others say: the detector's own
/// suspicion lasts as long.
const DEAD_AFTER: Duration = Duration::from_millis(1500);
/// A doubt that nobody repeats is over.
const FORGET_AFTER: Duration = Duration::from_secs(5);
/// A member is asked this often.
const ASK_EVERY: Duration = Duration::from_millis(400);
/// Doubts at one time: of a larger cluster the rest waits for this node's own probes.
const DOUBTS_MAX: usize = 256;

#[derive(Debug)]
struct Doubt {
    since: Instant,
    repeated: Instant,
    asked: Option<Instant>,
    dead: bool,
}

/// The doubts of one node.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    of: HashMap<NodeId, Doubt>,
}

/// What follows from a doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// It has been silent: suspicious.
    Silent,
    /// It has been silent for longer, or somebody has declared it dead, too.
    Dead,
}

impl Doubts {
    /// Notes a claim.
    pub(super) fn claim(&mut self, node: NodeId, dead: bool, now: Instant) {
        if !self.of.contains_key(&node) && self.of.len() >= DOUBTS_MAX {
            return;
        }
        let doubt = self.of.entry(node).or_insert(Doubt {
            since: now,
            repeated: now,
            asked: None,
            dead,
        });
        doubt.repeated = now;
        doubt.dead |= dead;
    }

    /// A packet of that member has arrived.
    pub(super) fn heard(&mut self, node: NodeId) {
        self.of.remove(&node);
    }

    /// Whether a member is to be asked now.
    pub(super) fn is_due(&mut self, node: NodeId, now: Instant) -> bool {
        let Some(doubt) = self.of.get_mut(&node) else {
            return false;
        };
        let due = doubt.asked.is_none_or(|asked| now >= asked + ASK_EVERY);
        if due {
            doubt.asked = Some(now);
        }
        due
    }

    /// Who has been silent for long enough. Who is dead is no longer doubted.
    pub(super) fn findings(&mut self, now: Instant) -> Vec<(NodeId, Finding)> {
        self.of
            .retain(|_, doubt| now < doubt.repeated + FORGET_AFTER);
        let silent = self
            .of
            .iter()
            .filter(|(_, doubt)| doubt.asked.is_some() && now >= doubt.since + CONFIRM_AFTER);
        let found: Vec<_> = silent
            .map(
                |(node, doubt)| match doubt.dead || now >= doubt.since + DEAD_AFTER {
                    true => (*node, Finding::Dead),
                    false => (*node, Finding::Silent),
                },
            )
            .collect();
        for (node, finding) in &found {
            if *finding == Finding::Dead {
                self.of.remove(node);
            }
        }
        found
    }

    /// Members to ask.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.of.keys().copied().collect()
    }

    /// Time without CPU did not happen.
    pub(super) fn defer(&mut self, late: Duration) {
        for doubt in self.of.values_mut() {
            doubt.since += late;
            doubt.repeated += late;
        }
    }
}

/// How many words each member has for one purpose: some at once, then one per pause.
#[derive(Debug)]
pub(super) struct Allowance {
    burst: u32,
    pause: Duration,
    of: HashMap<NodeId, (u32, Instant)>,
}

impl Allowance {
    pub(super) fn new(burst: u32, pause: Duration) -> Self {
        Self {
            burst,
            pause,
            of: HashMap::new(),
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, node: NodeId, now: Instant) -> bool {
        let (left, since) = self.of.entry(node).or_insert((self.burst, now));
        let passed = now.saturating_duration_since(*since);
        let earned = u32::try_from(passed.as_millis() / self.pause.as_millis().max(1));
        let earned = earned.unwrap_or(u32::MAX);
        if earned > 0 {
            *left = left.saturating_add(earned).min(self.burst);
            *since = now;
        }
        let allowed = *left > 0;
        *left = left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn only_who_was_asked_and_stays_silent_is_found() {
        let (mut doubts, start) = (Doubts::default(), Instant::now());
        let later = start + CONFIRM_AFTER;
        doubts.claim(NODE, true, start);
        assert!(doubts.findings(later).is_empty(), "it was not asked");
        assert!(doubts.is_due(NODE, start) && !doubts.is_due(NODE, start));
        assert!(doubts.findings(start).is_empty());
        doubts.heard(NODE);
        assert!(doubts.findings(later).is_empty(), "it has answered");
        doubts.claim(NODE, false, start);
        assert!(doubts.is_due(NODE, start));
        assert_eq!(doubts.findings(later), [(NODE, Finding::Silent)]);
        doubts.claim(NODE, true, later);
        assert_eq!(doubts.findings(later), [(NODE, Finding::Dead)]);
        assert!(doubts.nodes().is_empty());
    }

    #[test]
    fn doubts_are_bounded_and_end() {
        let (mut doubts, start) = (Doubts::default(), Instant::now());
        for id in 1..2000 {
            doubts.claim(NodeId(id), false, start);
        }
        assert_eq!(doubts.nodes().len(), DOUBTS_MAX);
        doubts.findings(start + FORGET_AFTER);
        assert!(doubts.nodes().is_empty());
        doubts.claim(NODE, false, start);
        assert!(doubts.is_due(NODE, start));
        assert_eq!(doubts.findings(start + DEAD_AFTER), [(NODE, Finding::Dead)]);
    }

    #[test]
    fn an_allowance_is_used_up_and_earned() {
        let start = Instant::now();
        let mut allowance = Allowance::new(2, Duration::from_secs(5));
        assert!(allowance.take(NODE, start) && allowance.take(NODE, start));
        assert!(!allowance.take(NODE, start + Duration::from_secs(4)));
        assert!(allowance.take(NodeId(8), start));
        assert!(allowance.take(NODE, start + Duration::from_secs(5)));
        assert!(!allowance.take(NODE, start + Duration::from_secs(6)));
    }
}
