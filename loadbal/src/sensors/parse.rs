//! Small, bounded readers of the kernel's text files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// No file read here is larger than this, but environments (see [`bytes`]).
const TEXT_BYTES_MAX: u64 = 256 << 10;

/// A file's text; `None` if it cannot be read.
pub(super) fn text(path: &Path) -> Option<String> {
    let bytes = bytes(path, TEXT_BYTES_MAX)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What most of these files fit in. The kernel says that they are empty, so a buffer that is not
/// there before would grow from 32 bytes on, with a system call each time.
const USUAL_BYTES: usize = 4 << 10;

/// A file's first `max` bytes; `None` if it cannot be read.
pub(super) fn bytes(path: &Path, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    let file = File::open(path).ok()?;
    file.take(max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The text of a file that the kernel gives whole when asked once, as each of one line (proc(5)
/// stat); `None` if it cannot be read.
pub(super) fn line(path: &Path) -> Option<String> {
    let mut bytes = [0; USUAL_BYTES];
    let count = File::open(path).ok()?.read(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(bytes.get(..count)?).into_owned())
}

/// A file that holds one number.
pub(super) fn number(path: &Path) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

/// The number after `key` in a file of lines `key number`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once([' ', '\t'])?;
        let value = value.trim().split(' ').next()?;
        (name.trim_end_matches(':') == key)
            .then(|| value.parse().ok())
            .flatten()
    })
}

/// The fields of a stat line of a process or thread (proc(5)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stat {
    pub state: char,
    pub parent: i32,
    pub kernel_thread: bool,
    pub cpu_ticks: u64,
    pub threads: u32,
    pub start_ticks: u64,
    pub resident_pages: u64,
}

/// `PF_KTHREAD` of linux/sched.h.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Parses a stat line. The name may contain anything, spaces and parentheses too: it ends at the
/// last `)`.
pub(super) fn stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(24).collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        kernel_thread: number(9)? & KERNEL_THREAD != 0,
        cpu_ticks: number(14)?.checked_add(number(15)?)?,
        threads: u32::try_from(number(20)?).ok()?,
        start_ticks: number(22)?,
        resident_pages: number(24)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_confuse() {
        let line = "42 (a) R (b)) S 7 42 42 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 3 0 99 4096 11 1";
        let expected = Stat {
            state: 'S',
            parent: 7,
            kernel_thread: false,
            cpu_ticks: 42,
            threads: 3,
            start_ticks: 99,
            resident_pages: 11,
        };
        assert_eq!(stat(line), Some(expected));
    }

    #[test]
    fn keys_are_found_with_colons_and_without() {
        assert_eq!(
            keyed("MemTotal:   12 kB\nMemFree: 3 kB", "MemTotal"),
            Some(12)
        );
        assert_eq!(keyed("usage_usec 5\nuser_usec 6", "user_usec"), Some(6));
        assert_eq!(keyed("usage_usec x", "usage_usec"), None);
    }

    proptest! {
        #[test]
        fn garbage_is_no_stat_line_and_no_panic(line: String) {
            let _ = stat(&line);
            let _ = stat(&format!("1 (x) {line}"));
        }
    }
}
