//! Locks of this node's own programs, from proc_locks(5).

use std::fs::File;
use std::io::{self, Read};

use nix::sys::stat::makedev;

/// More than this is not read: then it is not known who has locked what.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// A lock that a process holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NativeLock {
    pub dev: u64,
    pub ino: u64,
}

/// All locks of processes but this one. Locks of peers are open file description locks, or this process'.
///
/// # Errors
/// Those of reading; `EFBIG` when there are too many.
pub(super) fn all() -> io::Result<Vec<NativeLock>> {
    let mut text = String::new();
    let file = File::open("/proc/locks")?;
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    if text.len() as u64 == TEXT_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let myself = i64::from(std::process::id());
    Ok(text
        .lines()
        .filter_map(|line| parse(line, myself))
        .collect())
}

/// `1: POSIX  ADVISORY  WRITE 4711 fe:00:2138114 0 EOF`; leases and waiters (`->`) are left out.
fn parse(line: &str, myself: i64) -> Option<NativeLock> {
    let mut fields = line.split_whitespace();
    let kind = fields.nth(1)?;
    let pid: i64 = fields.nth(2)?.parse().ok()?;
    if !["POSIX", "FLOCK"].contains(&kind) || pid <= 0 || pid == myself {
        return None;
    }
    let mut numbers = fields.next()?.split(':');
    let major = u64::from_str_radix(numbers.next()?, 16).ok()?;
    let minor = u64::from_str_radix(numbers.next()?, 16).ok()?;
    let ino = numbers.next()?.parse().ok()?;
    Some(NativeLock {
        dev: makedev(major, minor),
        ino,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_of_other_processes_are_told() {
        let line = "1: POSIX  ADVISORY  WRITE 4711 fe:01:2138114 0 EOF";
        let lock = NativeLock {
            dev: makedev(0xfe, 1),
            ino: 2_138_114,
        };
        assert_eq!(parse(line, 1), Some(lock));
        assert_eq!(parse(line, 4711), None);
        for other in [
            "2: OFDLCK ADVISORY  READ -1 00:2c:2007053 128 128",
            "3: LEASE  ACTIVE    WRITE 4711 fe:00:77 0 EOF",
            "1: -> POSIX  ADVISORY  WRITE 4711 fe:01:2138114 0 EOF",
            "",
            "1: POSIX ADVISORY WRITE x y:z 0 EOF",
        ] {
            assert_eq!(parse(other, 1), None, "{other}");
        }
    }

    #[test]
    fn the_table_can_be_read() {
        all().unwrap();
    }
}
