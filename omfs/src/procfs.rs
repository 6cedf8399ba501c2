//! Reading what the kernel says of processes. Names of programs and mount points stand in it, and
//! may be any bytes.

use std::io;
use std::path::Path;

/// The text of a file of procfs; what is not UTF-8 in it becomes U+FFFD.
///
/// # Errors
/// The kernel's: `NotFound` or ESRCH when the process is gone.
pub fn text(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
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
