//! Reading what the kernel says of processes. Names of programs and mount points stand in it, and
//! may be any bytes.

mod process;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use process::{Mapping, Maps, Stat, Status, descriptors, invalid, processes, threads};

/// What most files of procfs fit in. The kernel says that they are empty, so a buffer that is not
/// there before would grow from 32 bytes on, with a system call each time.
const USUAL_BYTES: usize = 16 << 10;
/// No file of procfs is read beyond this; a process has 65,530 mappings at most by default, some 700
/// bytes of smaps each.
const BYTES_MAX: u64 = 256 << 20;

/// All of a file of procfs.
///
/// # Errors
/// The kernel's: `NotFound` or ESRCH when the process is gone.
pub fn bytes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file of procfs; what is not UTF-8 in it becomes U+FFFD.
///
/// # Errors
/// The kernel's: `NotFound` or ESRCH when the process is gone.
pub fn text(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = bytes(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The text of a file of procfs that must be UTF-8.
///
/// # Errors
/// As [`text`]; `InvalidData` when it is not UTF-8.
pub fn utf8(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(bytes(path)?).map_err(|_| invalid("encoding"))
}

/// `/proc/PID/status`, proc_pid_status(5).
///
/// # Errors
/// See [`text`].
pub fn status(pid: i32) -> io::Result<String> {
    text(format!("/proc/{pid}/status"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::time::{Duration, Instant};

    #[test]
    fn a_program_may_have_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir
            .path()
            .join(std::ffi::OsStr::from_bytes(b"\xff\xfe)\n\x1b"));
        std::os::unix::fs::symlink("/bin/sleep", &odd).unwrap();
        let mut child = std::process::Command::new(&odd).arg("30").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // The name is set a moment after the program was started.
        let deadline = Instant::now() + Duration::from_secs(30);
        let named = |text: &str| text.starts_with("Name:\t\u{fffd}\u{fffd})");
        let mut text = status(pid);
        while text.as_ref().is_ok_and(|text| !named(text)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            text = status(pid);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let status = text.unwrap();
        assert!(named(&status), "{status}");
        assert!(status.lines().any(|line| line.starts_with("Groups:")));
    }
}
