//! The published suites pjdfstest and fsx, on a node's own files and on another node's.
//!
//! `integration/suites/install` installs them. `OMFS_FSX_OPERATIONS` sets how much fsx does, and
//! `OMFS_FSX_SEEDS` with which seeds, as `1-2`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use integration::lab::options::LabOptions;
use integration::lab::run::output;
use libtest_mimic::Trial;

use crate::harness::{Module, Need, with_omfs};

const PJDFSTEST: &[Need] = &[Need::Suite("pjdfstest")];
const FSX: &[Need] = &[Need::Suite("fsx")];
const TIMEOUT: Duration = Duration::from_secs(600);
/// Few enough for CI.
const FSX_OPERATIONS: &str = "10000";
const FSX_SEEDS: &str = "1-2";

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("posix", &[], options);
    module
        .test("pjdfstest_here", PJDFSTEST, |lab| pjdfstest(lab, "here"))
        .test("pjdfstest_other", PJDFSTEST, |lab| pjdfstest(lab, "n2"))
        .test("fsx_here", FSX, |lab| fsx(lab, "here"))
        .test("fsx_other", FSX, |lab| fsx(lab, "n2"));
    module.finish()
}

/// The suites act as root and change identity themselves.
fn options() -> Result<LabOptions> {
    let mut options = with_omfs(2)?;
    options.config.push_str("[export]\nroot_squash = false\n");
    Ok(options)
}

/// A suite on n1, and a directory for it as seen from there.
struct Prepared {
    program: String,
    config: String,
    path: String,
}

/// Copies a suite to n1 and mounts a tmpfs for it on the owner: overlayfs, the nodes' root, fails
/// some tests by itself.
fn prepare(lab: &Lab, suite: &str, node: &str) -> Result<Prepared> {
    let program = format!("/srv/{suite}-{node}");
    let config = format!("{program}.toml");
    let installed = crate::harness::suite(suite).context("not installed")?;
    lab.put("n1", &program, &std::fs::read(installed)?)?;
    lab.sh("n1", &format!("chmod +x {program}"))?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ours = workspace.join("suites").join(format!("{suite}.toml"));
    lab.put("n1", &config, &std::fs::read(ours)?)?;
    let owner = if node == "here" { "n1" } else { node };
    let tree = format!("/srv/posix/{suite}");
    lab.sh(
        owner,
        &format!("mkdir -p {tree} && mount -t tmpfs -o mode=755 posix {tree}"),
    )?;
    Ok(Prepared {
        program,
        config,
        path: format!("/mfs/{node}{tree}"),
    })
}

fn pjdfstest(lab: &Lab, node: &str) -> Result<()> {
    let Prepared {
        program,
        config,
        path,
    } = prepare(lab, "pjdfstest", node)?;
    let command = [&program, "-c", &config, "-s", "/tmp", "-p", &path];
    let result = output(&mut lab.unlimited_command("n1", command)?, TIMEOUT)?;
    let said = String::from_utf8_lossy(&result.stdout);
    let failed: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("FAILED"))
        .collect();
    let summary = said.lines().find(|line| line.starts_with("Summary"));
    ensure!(result.status.success(), "{summary:?}: {failed:#?}");
    // A suite that skipped everything would prove nothing.
    ensure!(said.matches(" ok").count() > 300, "{summary:?}");
    Ok(())
}

fn fsx(lab: &Lab, node: &str) -> Result<()> {
    let Prepared {
        program,
        config,
        path,
    } = prepare(lab, "fsx", node)?;
    let operations = std::env::var("OMFS_FSX_OPERATIONS");
    let operations = operations.as_deref().unwrap_or(FSX_OPERATIONS);
    let seeds = std::env::var("OMFS_FSX_SEEDS");
    let seeds = seeds.as_deref().unwrap_or(FSX_SEEDS);
    let (first, last) = seeds
        .split_once('-')
        .context("OMFS_FSX_SEEDS is like 1-2")?;
    for seed in first.parse::<u32>()?..=last.parse()? {
        let (seed, file) = (seed.to_string(), format!("{path}/{seed}"));
        let command = [
            &program, "-q", "-f", &config, "-N", operations, "-S", &seed, "-P", "/srv", &file,
        ];
        let result = output(&mut lab.unlimited_command("n1", command)?, TIMEOUT)?;
        let said = String::from_utf8_lossy(&result.stdout);
        ensure!(result.status.success(), "seed {seed}: {said}");
    }
    Ok(())
}
