//! On whose behalf the kernel asks.

use std::fs;

use omfs_sys::procfs;

/// Who made a system call, as the kernel's request tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who {
    /// Filesystem uid.
    pub uid: u32,
    /// Filesystem gid.
    pub gid: u32,
    /// Thread id in the daemon's PID namespace; 0 when it is not visible there.
    pub pid: i32,
}

/// The supplementary groups of a thread, which the kernel's request does not carry. None when
/// the thread is gone: then fewer permissions, never more.
pub fn groups(pid: i32) -> Vec<u32> {
    if pid <= 0 {
        return Vec::new();
    }
    procfs::status(pid)
        .map(|status| parse_groups(&status))
        .unwrap_or_default()
}

/// A guest's thread id at home: the one in its own PID namespace. 0 when the thread is gone.
pub fn pid_at_home(pid: i32) -> i32 {
    procfs::status(pid).map_or(0, |status| parse_innermost_pid(&status))
}

fn parse_innermost_pid(status: &str) -> i32 {
    field(status, "NSpid:")
        .and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok())
        .unwrap_or(0)
}

fn parse_groups(status: &str) -> Vec<u32> {
    field(status, "Groups:")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|group| group.parse().ok())
        .collect()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

/// Whether a thread that waits in a system call has died or has a signal to attend to, as
/// proc_pid_status(5) tells: pending, neither blocked nor ignored.
pub fn is_interrupted(pid: i32) -> bool {
    if pid <= 0 {
        return false;
    }
    match procfs::status(pid) {
        Ok(status) => has_signal(&status),
        Err(_) => true,
    }
}

fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        field(status, name)
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    // A default-ignored signal (SIGCHLD, SIGURG, SIGWINCH, SIGCONT) interrupts only with a handler.
    let ignored_by_default = [17, 18, 23, 28]
        .iter()
        .fold(0, |set, n| set | 1u64 << (n - 1));
    let ignored = mask("SigIgn:") | (ignored_by_default & !mask("SigCgt:"));
    let dying = field(status, "State:")
        .is_some_and(|state| matches!(state.trim_start().as_bytes().first(), Some(b'Z' | b'X')));
    dying || pending & !mask("SigBlk:") & !ignored != 0
}

/// Which kind of lock a whole-file lock request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// fcntl(2) record lock.
    Record,
    /// flock(2).
    Flock,
}

/// Tells flock(2) from a record lock of the whole file by the system call its caller is in
/// (proc_pid_syscall(5)): the FUSE crate does not pass on the kernel's FUSE_LK_FLOCK flag. The
/// caller waits in that call until we answer, so this does not race.
pub fn lock_kind(pid: i32) -> LockKind {
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    parse_lock_kind(&text)
}

fn parse_lock_kind(text: &str) -> LockKind {
    // 73: flock on x86-64; 143: flock of 32-bit programs (on x86-64 that number takes no lock).
    match text.split_ascii_whitespace().next() {
        Some("73" | "143") => LockKind::Flock,
        _ => LockKind::Record,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_status_file() {
        assert_eq!(
            parse_groups("Name:\tx\nGroups:\t4 24 27 \nNStgid:\t1\n"),
            [4, 24, 27]
        );
        assert_eq!(parse_groups("Groups:\t \n"), Vec::<u32>::new());
        assert_eq!(parse_groups(""), Vec::<u32>::new());
        assert_eq!(groups(-1), Vec::<u32>::new());
    }

    #[test]
    fn a_guests_own_number_is_the_innermost() {
        assert_eq!(parse_innermost_pid("Tgid:\t9\nNSpid:\t910\t4711\n"), 4711);
        assert_eq!(parse_innermost_pid("NSpid:\t910\n"), 910);
        assert_eq!(parse_innermost_pid("Pid:\t910\n"), 0);
        assert_eq!(pid_at_home(-1), 0);
    }

    #[test]
    fn a_pending_signal_counts_unless_blocked_or_ignored() {
        let status = |pending: u64, blocked: u64, ignored: u64, caught: u64| {
            format!(
                "State:\tD (disk sleep)\nSigPnd:\t{pending:016x}\nShdPnd:\t0000000000000000\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
            )
        };
        let term = 1 << 14;
        let child = 1 << 16;
        assert!(has_signal(&status(term, 0, 0, 0)));
        assert!(!has_signal(&status(term, term, 0, 0)));
        assert!(!has_signal(&status(term, 0, term, 0)));
        assert!(!has_signal(&status(child, 0, 0, 0)));
        assert!(has_signal(&status(child, 0, 0, child)));
        assert!(!has_signal(&status(0, 0, 0, 0)));
        assert!(has_signal("State:\tZ (zombie)\n"));
    }

    #[test]
    fn a_thread_that_is_gone_counts_as_interrupted() {
        assert!(is_interrupted(i32::MAX));
        assert!(!is_interrupted(0));
    }

    #[test]
    fn the_system_call_tells_flock_from_fcntl() {
        assert_eq!(
            parse_lock_kind("73 0x3 0x2 0x0 0x0 0x0 0x0 0x7ffd 0x7f"),
            LockKind::Flock
        );
        assert_eq!(
            parse_lock_kind("72 0x3 0x6 0x7ffd 0x0 0x0 0x0 0x7ffd 0x7f"),
            LockKind::Record
        );
        assert_eq!(parse_lock_kind("running"), LockKind::Record);
        assert_eq!(parse_lock_kind(""), LockKind::Record);
    }
}
