//! What omfs needs from a machine: one probe per requirement, each with a remedy.

#![forbid(unsafe_code)]

use std::fmt;

mod machine;
mod probes;

/// What is missing, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Who cannot do without something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeededBy {
    /// omfs is no use without it.
    Omfs,
    /// Emulated nodes are not to be had without it.
    Lab,
    /// Everything works without it, but less well.
    Nobody,
}

/// The result of one probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The requirement's name.
    pub name: &'static str,
    /// Who cannot do without it.
    pub needed_by: NeededBy,
    /// `None` when it is there.
    pub problem: Option<Problem>,
    /// What it is for.
    pub purpose: &'static str,
}

impl Finding {
    /// Whether a lab cannot be made for this reason.
    #[must_use]
    pub fn is_fatal_to_labs(&self) -> bool {
        self.needed_by != NeededBy::Nobody && self.problem.is_some()
    }

    /// Whether omfs cannot run for this reason.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.needed_by == NeededBy::Omfs && self.problem.is_some()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            None => write!(f, "ok       {}", self.name),
            Some(problem) => {
                let word = match self.needed_by {
                    NeededBy::Omfs => "MISSING ",
                    NeededBy::Lab | NeededBy::Nobody => "without ",
                };
                let Problem { what, remedy } = problem;
                let Self { name, purpose, .. } = self;
                write!(f, "{word} {name}: {what} (for {purpose}); {remedy}")
            }
        }
    }
}

/// Runs every probe; takes a few milliseconds and leaves nothing behind. Who is not root is told
/// that, and nothing that only root can find out.
#[must_use]
pub fn all() -> Vec<Finding> {
    findings(&machine::Machine::here())
}

fn findings(machine: &machine::Machine) -> Vec<Finding> {
    let tellable = probes::PROBES
        .iter()
        .filter(|probe| machine.is_root || !probe.asks_root);
    tellable
        .map(|probe| Finding {
            name: probe.name,
            needed_by: probe.needed_by,
            purpose: probe.purpose,
            problem: (probe.look)(machine).err(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_has_a_name_of_its_own_and_a_result() {
        let findings = all();
        let names: std::collections::BTreeSet<_> = findings.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), findings.len());
        assert!(findings.len() >= 7);
        assert_eq!(
            findings.iter().any(|one| one.name == "/dev/fuse"),
            findings[0].problem.is_none()
        );
        for finding in &findings {
            assert!(!finding.to_string().contains('\n'), "{finding}");
        }
    }

    #[test]
    fn only_needed_things_are_fatal() {
        let problem = Some(Problem {
            what: "no".into(),
            remedy: "get it".into(),
        });
        let mut finding = Finding {
            name: "x",
            needed_by: NeededBy::Omfs,
            problem,
            purpose: "y",
        };
        assert!(finding.is_fatal());
        assert_eq!(finding.to_string(), "MISSING  x: no (for y); get it");
        finding.needed_by = NeededBy::Lab;
        assert!(!finding.is_fatal() && finding.is_fatal_to_labs());
        finding.needed_by = NeededBy::Nobody;
        assert!(!finding.is_fatal_to_labs());
        finding.problem = None;
        assert_eq!(finding.to_string(), "ok       x");
    }
}
