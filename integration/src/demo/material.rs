//! Something real to compress: the largest files of this machine's programs and libraries.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use super::{DemoOptions, HOME};
use crate::lab::Lab;

/// Where the files are on the home node.
pub(super) const DIR: &str = "/root/demo";
/// How much is compressed to measure the machine.
const PROBE_BYTES: usize = 8 << 20;
/// Pieces that are taken from each file in turn, so that every part of the whole is as hard to
/// compress as any other.
const PIECE_BYTES: u64 = 256 << 10;
const FILES_MAX: usize = 400;
const DEPTH_MAX: usize = 6;

/// Bytes of real files; every job compresses all of them, from a starting point of its own, so
/// that all jobs are different and equally long.
#[derive(Debug)]
pub(super) struct Material {
    bytes: Vec<u8>,
}

impl Material {
    /// Takes as much as keeps one job busy for the time asked for.
    pub(super) fn collect(options: &DemoOptions) -> Result<Self> {
        let files = largest_files();
        ensure!(
            !files.is_empty(),
            "there are no large files on this machine"
        );
        let probe = gather(&files, PROBE_BYTES)?;
        let cpu_s = gzip_cpu_s(&probe)?;
        let bytes_per_cpu_s = PROBE_BYTES as f64 / cpu_s;
        let share = f64::from(options.cpu_percent.min(100)) / 100.0;
        let job_bytes = bytes_per_cpu_s * share * f64::from(options.job_s);
        Ok(Self {
            bytes: gather(&files, job_bytes as usize)?,
        })
    }

    pub(super) fn job_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes a file for each job on the home node's disk.
    pub(super) fn write(&self, lab: &Lab, jobs: usize) -> Result<()> {
        for job in 0..jobs {
            let (end, start) = self.bytes.split_at(self.bytes.len() / jobs * job);
            let script = format!("mkdir -p {DIR} && cat >{DIR}/{}", file_name(job));
            let mut writer = lab
                .unlimited_command(HOME, ["sh", "-c", &script])?
                .stdin(Stdio::piped())
                .spawn()?;
            let mut pipe = writer.stdin.take().context("no pipe")?;
            pipe.write_all(start)?;
            pipe.write_all(end)?;
            drop(pipe);
            ensure!(writer.wait()?.success(), "cannot write {}", file_name(job));
        }
        Ok(())
    }
}

/// The input of a job.
pub(super) fn file_name(job: usize) -> String {
    format!("part{:02}", job + 1)
}

fn largest_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let rust = PathBuf::from(env!("CARGO"))
        .parent()
        .and_then(Path::parent)
        .map(Path::to_owned);
    for root in [Some(PathBuf::from("/usr")), rust].into_iter().flatten() {
        look(&root, DEPTH_MAX, &mut found);
    }
    found.sort_by(|one, other| other.cmp(one));
    found.dedup();
    found.truncate(FILES_MAX);
    found.into_iter().map(|(_, path)| path).collect()
}

fn look(dir: &Path, depth: usize, found: &mut Vec<(u64, PathBuf)>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(data) = entry.path().symlink_metadata() else {
            continue;
        };
        if data.is_dir() && depth > 0 {
            look(&entry.path(), depth - 1, found);
        } else if data.is_file() && data.len() >= PIECE_BYTES {
            found.push((data.len(), entry.path()));
        }
    }
}

/// Takes a piece of each file in turn until there is enough, however often that takes.
fn gather(files: &[PathBuf], wanted: usize) -> Result<Vec<u8>> {
    let mut open: Vec<File> = files
        .iter()
        .filter_map(|path| File::open(path).ok())
        .collect();
    let mut bytes = Vec::with_capacity(wanted);
    let mut rounds_without = 0;
    while bytes.len() < wanted {
        let before = bytes.len();
        for file in &mut open {
            let limit = PIECE_BYTES.min((wanted - bytes.len()) as u64);
            file.take(limit).read_to_end(&mut bytes)?;
        }
        if bytes.len() == before {
            rounds_without += 1;
            ensure!(
                rounds_without < 2,
                "the files of this machine are not readable"
            );
            open = files
                .iter()
                .filter_map(|path| File::open(path).ok())
                .collect();
        } else {
            rounds_without = 0;
        }
    }
    Ok(bytes)
}

/// CPU time that `gzip -9` takes for some bytes: the machine may be busy with other things.
fn gzip_cpu_s(bytes: &[u8]) -> Result<f64> {
    let before = children_cpu_s()?;
    let mut gzip = Command::new("gzip")
        .args(["-9", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("gzip")?;
    gzip.stdin.take().context("no pipe")?.write_all(bytes)?;
    ensure!(gzip.wait()?.success(), "gzip failed");
    Ok(children_cpu_s()? - before)
}

fn children_cpu_s() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
