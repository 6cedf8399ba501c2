//! What one node keeps of another's files is never old.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;

use crate::harness::{Module, Need, SOON, with_omfs};
use crate::mfs::Dialogue;

const PYTHON: &[Need] = &[Need::Tool("python3")];

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("leases", &[], || with_omfs(2));
    module
        .test(
            "a_native_write_is_seen_by_a_reader_ahead",
            PYTHON,
            native_writer,
        )
        .test(
            "what_is_written_behind_is_seen_by_whoever_looks",
            PYTHON,
            written_behind,
        )
        .alone(
            "a_reader_ahead_that_is_cut_off_shows_nothing_old",
            PYTHON,
            cut_off,
        );
    module.finish()
}

/// Reads 32 KiB at a time, and says which bytes there were.
const READER: &str = "import os,sys
fd=os.open('/mfs/n1/tmp/leased',os.O_RDONLY)
print('ready',flush=True)
for line in sys.stdin:
    try: print(''.join(sorted(set(os.read(fd,32768).decode()))),flush=True)
    except OSError as e: print('errno',e.errno,flush=True)";

const MAKE: &str = "head -c 8388608 /dev/zero | tr '\\0' a >/tmp/leased";
const CHANGE: &str = "head -c 8388608 /dev/zero | tr '\\0' b | dd of=/tmp/leased bs=1M conv=notrunc \
                      iflag=fullblock status=none";

fn leased_reader(lab: &Lab) -> Result<Dialogue> {
    lab.sh("n1", MAKE)?;
    let mut reader = Dialogue::start(lab, "n2", READER)?;
    for _ in 0..8 {
        let seen = reader.ask("")?;
        ensure!(seen == "a", "{seen}");
    }
    Ok(reader)
}

fn native_writer(lab: &Lab) -> Result<()> {
    let mut reader = leased_reader(lab)?;
    lab.sh("n1", CHANGE)?;
    for _ in 0..8 {
        let seen = reader.ask("")?;
        ensure!(seen == "b", "after b was written, {seen} was read");
    }
    Ok(())
}

/// Writes three pieces for each line.
const WRITER: &str = "import os,sys
fd=os.open('/mfs/n1/tmp/behind',os.O_WRONLY|os.O_CREAT|os.O_TRUNC,0o644)
print('ready',flush=True)
for line in sys.stdin:
    for i in range(3): os.write(fd,b'x'*1000)
    print('done',flush=True)";

fn written_behind(lab: &Lab) -> Result<()> {
    let mut writer = Dialogue::start(lab, "n2", WRITER)?;
    // Another node's stat, this node's own, and a native open(2), which breaks the lease.
    let looks = [
        ("n1", "stat -c %s /mfs/here/tmp/behind"),
        ("n2", "stat -c %s /mfs/n1/tmp/behind"),
        ("n1", "cat /tmp/behind | wc -c"),
    ];
    for round in 1..=24 {
        ensure!(writer.ask("")? == "done");
        let (node, look) = looks[round % looks.len()];
        let seen = lab.sh(node, look)?;
        ensure!(
            seen.trim() == (round * 3000).to_string(),
            "round {round}: {look} on {node} says {seen}"
        );
    }
    Ok(())
}

fn cut_off() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    let mut reader = leased_reader(&lab)?;
    lab.cut("n2")?;
    let began = Instant::now();
    lab.sh("n1", CHANGE)?;
    let took = began.elapsed();
    ensure!(
        took < Duration::from_secs(10),
        "the writer got through after {took:?}"
    );
    for _ in 0..4 {
        let seen = reader.ask("")?;
        ensure!(
            seen.starts_with("errno"),
            "after b was written, {seen} was read"
        );
    }
    lab.heal("n2")?;
    let fresh = || lab.sh("n2", "head -c 1 /mfs/n1/tmp/leased").ok();
    let seen = wait::until(SOON, fresh).context("n1 did not come back")?;
    ensure!(seen == "b", "{seen}");
    lab.down()
}
