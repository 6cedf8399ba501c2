//! The text files of /proc/PID (proc(5)), parsed.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::bytes;

/// One line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// `PROT_READ` and so on.
    pub protection: i32,
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device of the file as the memory map knows it.
    pub device: (u32, u32),
    /// Inode number, 0 for anonymous memory.
    pub inode: u64,
    /// Path, or a name in brackets, or nothing. Without the mark of deleted files.
    pub name: PathBuf,
    /// The file has no name any more.
    pub deleted: bool,
}

impl Mapping {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Is it backed by a file?
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }
}

/// The whole memory map, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps(pub Vec<Mapping>);

impl Maps {
    /// Reads /proc/PID/maps.
    ///
    /// # Errors
    /// `NotFound`/ESRCH when the process is gone, `InvalidData` for lines that make no sense.
    pub fn read(pid: i32) -> io::Result<Self> {
        Self::parse(&bytes(format!("/proc/{pid}/maps"))?)
    }

    /// Parses the file's text.
    ///
    /// # Errors
    /// `InvalidData`.
    pub fn parse(text: &[u8]) -> io::Result<Self> {
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let all: Option<Vec<Mapping>> = lines.map(parse_mapping).collect();
        all.map(Self).ok_or_else(|| invalid("maps"))
    }

    /// The mapping with this name in brackets.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Mapping> {
        self.0
            .iter()
            .find(|mapping| mapping.inode == 0 && mapping.name.as_os_str() == name)
    }

    /// The mapping that holds this address.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&Mapping> {
        self.0
            .iter()
            .find(|mapping| (mapping.start..mapping.end).contains(&address))
    }
}

fn parse_mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut next = || {
        fields
            .next()
            .and_then(|field| std::str::from_utf8(field).ok())
    };
    let (start, end) = next()?.split_once('-')?;
    let rights = next()?.as_bytes();
    let offset = next()?;
    let (major, minor) = next()?.split_once(':')?;
    let inode = next()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    let right = |at: usize, sign: u8, bit: i32| {
        if rights.get(at) == Some(&sign) {
            bit
        } else {
            0
        }
    };
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        protection: right(0, b'r', libc::PROT_READ)
            | right(1, b'w', libc::PROT_WRITE)
            | right(2, b'x', libc::PROT_EXEC),
        shared: rights.get(3) == Some(&b's'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        inode: inode.parse().ok()?,
        name: PathBuf::from(OsString::from_vec(unescape_newlines(name))),
        deleted,
    })
}

/// maps escapes newlines as `\012`, and nothing else, so the text is ambiguous for a path that
/// holds these four characters; such a path then fails the identity check and map_files is used.
fn unescape_newlines(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(after) => {
                plain.push(b'\n');
                rest = after;
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// The fields of /proc/PID/stat after the name, and the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The command name, without parentheses.
    pub comm: Vec<u8>,
    fields: Vec<String>,
}

impl Stat {
    /// Reads /proc/PID/stat (of a process, or of a thread by its id).
    ///
    /// # Errors
    /// `NotFound`/ESRCH when it is gone, `InvalidData`.
    pub fn read(pid: i32) -> io::Result<Self> {
        Self::parse(&bytes(format!("/proc/{pid}/stat"))?)
    }

    /// Reads the file of one thread.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_thread(pid: i32, tid: i32) -> io::Result<Self> {
        Self::parse(&bytes(format!("/proc/{pid}/task/{tid}/stat"))?)
    }

    /// Parses the file's text; the name may hold anything, parentheses and spaces included.
    ///
    /// # Errors
    /// `InvalidData`.
    pub fn parse(text: &[u8]) -> io::Result<Self> {
        let open = text
            .iter()
            .position(|byte| *byte == b'(')
            .ok_or_else(|| invalid("stat"))?;
        let close = text
            .iter()
            .rposition(|byte| *byte == b')')
            .ok_or_else(|| invalid("stat"))?;
        let comm = text
            .get(open + 1..close)
            .ok_or_else(|| invalid("stat"))?
            .to_vec();
        let rest = String::from_utf8_lossy(text.get(close + 1..).unwrap_or_default());
        let fields = rest.split_whitespace().map(str::to_owned).collect();
        Ok(Self { comm, fields })
    }

    /// Field `number` as proc(5) counts them, from 3 (state) on.
    #[must_use]
    pub fn text(&self, number: usize) -> &str {
        number
            .checked_sub(3)
            .and_then(|at| self.fields.get(at))
            .map_or("", String::as_str)
    }

    /// Field `number` as a number, 0 when it is none.
    #[must_use]
    pub fn number(&self, number: usize) -> u64 {
        let text = self.text(number);
        text.parse()
            .or_else(|_| text.parse::<i64>().map(|n| n as u64))
            .unwrap_or(0)
    }
}

/// The lines of /proc/PID/status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status(Vec<(String, String)>);

impl Status {
    /// Reads /proc/PID/status.
    ///
    /// # Errors
    /// `NotFound`/ESRCH when it is gone.
    pub fn read(pid: i32) -> io::Result<Self> {
        Ok(Self::parse(&bytes(format!("/proc/{pid}/status"))?))
    }

    /// Reads the file of one thread.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_thread(pid: i32, tid: i32) -> io::Result<Self> {
        Ok(Self::parse(&bytes(format!(
            "/proc/{pid}/task/{tid}/status"
        ))?))
    }

    /// Parses the file's text.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Self(
            pairs
                .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }

    /// The value of a line, empty when there is none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map_or("", |(_, value)| value)
    }

    /// The numbers of a line, in decimal.
    #[must_use]
    pub fn numbers(&self, key: &str) -> Vec<u64> {
        self.text(key)
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    /// A signal or capability set, in hexadecimal.
    #[must_use]
    pub fn mask(&self, key: &str) -> u64 {
        u64::from_str_radix(self.text(key), 16).unwrap_or(0)
    }

    /// An octal value (Umask).
    #[must_use]
    pub fn octal(&self, key: &str) -> Option<u32> {
        u32::from_str_radix(self.text(key), 8).ok()
    }
}

/// The threads of a process, ascending.
///
/// # Errors
/// `NotFound` when it is gone.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    numbers_in(&format!("/proc/{pid}/task"))
}

/// The open descriptors of a process, ascending.
///
/// # Errors
/// `NotFound` when it is gone, `PermissionDenied`.
pub fn descriptors(pid: i32) -> io::Result<Vec<i32>> {
    numbers_in(&format!("/proc/{pid}/fd"))
}

/// All processes that /proc shows.
///
/// # Errors
/// When /proc cannot be read.
pub fn processes() -> io::Result<Vec<i32>> {
    numbers_in("/proc")
}

fn numbers_in(directory: &str) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        if let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A file of /proc that does not look as proc(5) says.
#[must_use]
pub fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_are_understood() -> io::Result<()> {
        let text =
            b"7f00-8f00 r-xp 00002000 fe:01 42                         /usr/lib/a b (deleted)\n\
            a000-b000 rw-s 00000000 00:05 7 /x\\012y\n\
            c000-d000 ---p 00000000 00:00 0 \n\
            e000-f000 rw-p 00000000 00:00 0                          [heap]\n";
        let maps = Maps::parse(text)?;
        assert_eq!(maps.0.len(), 4);
        let first = maps.at(0x7f10).cloned();
        let first = first.ok_or_else(|| invalid("no mapping"))?;
        assert_eq!(
            (first.protection, first.shared, first.offset),
            (5, false, 0x2000)
        );
        assert_eq!(
            (first.device, first.inode, first.deleted),
            ((0xfe, 1), 42, true)
        );
        assert_eq!(first.name, PathBuf::from("/usr/lib/a b"));
        assert_eq!(
            maps.0.get(1).map(|m| m.name.clone()),
            Some(PathBuf::from("/x\ny"))
        );
        assert_eq!(maps.named("[heap]").map(|m| m.start), Some(0xe000));
        assert!(maps.at(0x100).is_none());
        assert!(Maps::parse(b"nonsense\n").is_err());
        Ok(())
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_stat() -> io::Result<()> {
        let stat = Stat::parse(b"12 (a) b (c) S 1 2 -3 4\n")?;
        assert_eq!(stat.comm, b"a) b (c");
        assert_eq!(
            (stat.text(3), stat.number(4), stat.number(6) as i64),
            ("S", 1, -3)
        );
        assert_eq!(stat.number(99), 0);
        Ok(())
    }

    #[test]
    fn the_own_process_can_be_read() -> io::Result<()> {
        let me = std::process::id() as i32;
        assert!(Maps::read(me)?.named("[vdso]").is_some());
        assert!(threads(me)?.contains(&me));
        assert_eq!(Status::read(me)?.numbers("Tgid"), [me as u64]);
        assert!(Status::read(me)?.octal("Umask").is_some());
        Ok(())
    }
}
