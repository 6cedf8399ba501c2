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

/// What a thread needs to be allowed, as for access(2), to do what it is about to do with a fifo or socket
/// that is being looked up for it; `None` when it only deals with the name. Told by the system call that
/// it is in: it waits there until we answer. An unknown call is taken for one that reads and writes.
pub fn opening(pid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    parse_opening(&text)
}

/// Calls that name a file without opening it, on x86-64. None of these numbers opens anything or
/// connects in the 32-bit table, which proc_pid_syscall(5) does not tell apart.
const NAMING: [i64; 44] = [
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_statfs,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_rmdir,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_chdir,
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    libc::SYS_bind,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
];
const SYS_FCHMODAT2: i64 = 452;

fn parse_opening(text: &str) -> Option<u32> {
    let (read, write) = (libc::R_OK.cast_unsigned(), libc::W_OK.cast_unsigned());
    let mut fields = text.split_ascii_whitespace();
    let number = fields.next().and_then(|number| number.parse::<i64>().ok());
    let arguments: Vec<u64> = fields.filter_map(parse_argument).collect();
    let flags = match number {
        Some(number) if NAMING.contains(&number) => return None,
        Some(libc::SYS_connect | libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_creat) => {
            return Some(write);
        }
        Some(libc::SYS_open) => arguments.get(1),
        Some(libc::SYS_openat) => arguments.get(2),
        _ => None,
    };
    // By way of O_PATH it could be opened for anything, without being looked up.
    let flags = flags.and_then(|flags| i32::try_from(*flags).ok());
    let flags = flags.filter(|flags| flags & libc::O_PATH == 0);
    Some(match flags.map(|flags| flags & libc::O_ACCMODE) {
        Some(libc::O_RDONLY) => read,
        Some(libc::O_WRONLY) => write,
        _ => read | write,
    })
}

fn parse_argument(field: &str) -> Option<u64> {
    u64::from_str_radix(field.strip_prefix("0x")?, 16).ok()
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
    fn the_system_call_tells_what_is_done_with_a_special_file() {
        let opening = |call: &str| parse_opening(&format!("{call} 0x0 0x0 0x7ffd 0x7f"));
        for naming in ["262 0xffffff9c 0x1 0x2 0x0", "4 0x1", "263 0x3 0x7f 0x0"] {
            assert_eq!(opening(naming), None, "{naming}");
        }
        assert_eq!(opening("257 0xffffff9c 0x1 0x80000 0x0"), Some(4));
        assert_eq!(opening("257 0xffffff9c 0x1 0x80801 0x0"), Some(2));
        assert_eq!(opening("2 0x1 0x2 0x0"), Some(6));
        assert_eq!(opening("42 0x3 0x7ffe 0x6e"), Some(2));
        // O_PATH, openat2, io_uring_enter, open(2) of 32-bit programs.
        for other in ["257 0xffffff9c 0x1 0x200000", "437 0x1", "426 0x1", "5 0x1"] {
            assert_eq!(opening(other), Some(6), "{other}");
        }
        for unknown in ["running", "", "-1 0x7ffd 0x7f", "x y z"] {
            assert_eq!(parse_opening(unknown), Some(6), "{unknown}");
        }
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
