//! The compressions.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::HOME;
use super::material::{DIR, file_name};
use crate::lab::Lab;
use crate::lab::run::output;

/// How long native gzip and the comparison may take for one job.
const COMPARE_LIMIT: Duration = Duration::from_secs(300);

/// One job alone, without omfs, on the idle home node.
pub(super) fn single(lab: &Lab, limit: Duration) -> Result<Duration> {
    let script = format!("cd {DIR} && gzip -9 -c {} >alone && rm alone", file_name(0));
    let start = Instant::now();
    let result = output(&mut lab.command(HOME, ["sh", "-c", &script])?, limit)?;
    ensure!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(start.elapsed())
}

/// What a user types into `omfs shell`: all jobs at once. Prints how those ended that failed.
pub(super) fn script(jobs: usize) -> String {
    let names: Vec<String> = (0..jobs).map(file_name).collect();
    format!(
        "cd {DIR} && for f in {}; do gzip -9 -k $f & all=\"$all $!:$f\"; done; \
         for p in $all; do wait ${{p%%:*}} || echo \"${{p#*:}}: process ${{p%%:*}} ended with $?\"; done",
        names.join(" ")
    )
}

/// How outputs differ from what `gzip -9` gives when it is never moved, one line each.
pub(super) fn differences(lab: &Lab, jobs: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in (0..jobs).map(file_name) {
        found.extend(difference(lab, &name)?);
    }
    Ok(found)
}

fn difference(lab: &Lab, name: &str) -> Result<Option<String>> {
    // cmp(1) tells the first byte that differs, or that one of both ends.
    let script = format!(
        "cd {DIR} && gzip -9 -k -c {name} >native && {{ cmp native {name}.gz 2>&1 || \
         echo \"$(stat -c %s {name}.gz) bytes instead of $(stat -c %s native)\"; }}; \
         status=$?; rm -f native; exit $status"
    );
    let mut compare = lab.unlimited_command(HOME, ["sh", "-c", &script])?;
    let result = output(&mut compare, COMPARE_LIMIT)?;
    let said = String::from_utf8_lossy(&result.stdout);
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        result.status.success(),
        "cannot compare {name}: {} {} {}",
        result.status,
        lines.join("; "),
        String::from_utf8_lossy(&result.stderr)
    );
    Ok((!lines.is_empty()).then(|| format!("{name}.gz: {}", lines.join("; "))))
}
