//! Whether labs can be made on this machine.

use anyhow::{Result, ensure};
use omfs_check::{self as check, Finding};

/// Looks at what `omfs check` looks at.
///
/// # Errors
/// Something that labs need is missing: one line for each.
pub(super) fn check() -> Result<()> {
    let missing = lines(&check::all());
    ensure!(
        missing.is_empty(),
        "this machine lacks what a lab needs:\n{}",
        missing.join("\n")
    );
    Ok(())
}

fn lines(findings: &[Finding]) -> Vec<String> {
    let fatal = findings.iter().filter(|one| one.is_fatal_to_labs());
    fatal.map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use omfs_check::{NeededBy, Problem};

    fn finding(name: &'static str, needed_by: NeededBy, there: bool) -> Finding {
        let problem = (!there).then(|| Problem {
            what: "it is not there".into(),
            remedy: "get it".into(),
        });
        Finding {
            name,
            needed_by,
            problem,
            purpose: "tests",
        }
    }

    #[test]
    fn what_is_missing_is_named_in_a_line_each() {
        let findings = [
            finding("a", NeededBy::Omfs, false),
            finding("b", NeededBy::Omfs, true),
            finding("c", NeededBy::Lab, false),
            finding("d", NeededBy::Nobody, false),
        ];
        assert_eq!(
            lines(&findings),
            [
                "MISSING  a: it is not there (for tests); get it",
                "without  c: it is not there (for tests); get it",
            ]
        );
    }
}
