//! Jobs that only compute and use files.

use std::fs::File;
use std::process::{Command, Stdio};

use super::lab::{Job, Lab, real_data, until};

/// Starts a compression of a few seconds from file to file, and checks it against one that stays.
struct Compression {
    job: Job,
    expected: Vec<u8>,
    out: std::path::PathBuf,
}

fn compress(directory: &std::path::Path) -> Compression {
    let input = directory.join("in");
    let out = directory.join("out");
    real_data(&input, 24 << 20);
    let gzip = |out: Stdio| {
        let mut command = Command::new("gzip");
        command
            .arg("-9")
            .stdin(File::open(&input).unwrap())
            .stdout(out);
        command
    };
    let expected = gzip(Stdio::piped()).output().unwrap().stdout;
    let job = gzip(File::create(&out).unwrap().into()).spawn().unwrap();
    Compression {
        job: Job(job),
        expected,
        out,
    }
}

impl Compression {
    fn finish(mut self) {
        assert!(self.job.wait().success());
        assert!(
            std::fs::read(&self.out).unwrap() == self.expected,
            "output differs"
        );
    }

    fn until_written(&self, bytes: u64) {
        until("output", || {
            std::fs::metadata(&self.out).unwrap().len() >= bytes
        });
    }
}

#[test]
fn gzip_ends_away_as_it_would_at_home() {
    let directory = tempfile::tempdir().unwrap();
    let compression = compress(directory.path());
    compression.until_written(1);
    let mut lab = Lab::new(compression.job.0.id());
    lab.migrate();
    assert_eq!(lab.state().place, "host1");
    compression.finish();
    until("the shim to notice", || {
        lab.state().state == migrator::control::RunState::Ended
    });
}

#[test]
fn gzip_goes_out_and_comes_home() {
    let directory = tempfile::tempdir().unwrap();
    let compression = compress(directory.path());
    compression.until_written(1);
    let mut lab = Lab::new(compression.job.0.id());
    lab.migrate();
    compression.until_written(1 << 18);
    lab.home();
    assert_eq!((lab.state().moves, lab.state().place.as_str()), (2, "home"));
    compression.finish();
}
