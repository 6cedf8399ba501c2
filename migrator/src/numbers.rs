//! What home calls the files that a guest sees through omfs: device and inode number.
//!
//! Under `/mfs` files have other numbers than at their owner, where those of several nodes would
//! collide. Programs however remember what stat(2) said and compare: SQLite gives up a database,
//! fts(3) a directory, whose numbers change. So a guest is shown home's: stat(2) and its kin run at
//! the host, and before the guest sees the result the supervisor, as its tracer, puts home's numbers
//! in. And the files of an image are recognised by them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use crate::image::FileIdImage;
use crate::sys::xattr;
use crate::tracee::{Memory, Regs, TraceeError};

/// The attribute of home's root that tells about the file with the number behind it
/// (`omfs/client/src/core/identity.rs`).
const ATTRIBUTE: &str = "trusted.omfs.owners-numbers.";
/// Most that are remembered; then all are forgotten.
const KNOWN_MAX: usize = 1 << 16;
/// Two decimal numbers of 64 bits.
const ANSWER_BYTES_MAX: usize = 64;

/// Home's device and inode number of a file.
pub type Numbers = (u64, u64);

/// Translates numbers under `/mfs/<home>` into home's.
#[derive(Debug, Default)]
pub struct HomeNumbers {
    /// Home's root, and the device of the file system it is seen through; `None` where files have
    /// their own numbers.
    root: Option<(OwnedFd, u64)>,
    /// A number means the same file of home for ever, so answers are kept.
    known: Mutex<HashMap<u64, Numbers>>,
}

impl HomeNumbers {
    /// For the tree at `root`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn of(root: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(root, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let mut numbers = Self::default();
        let asked = ask(&fd, stat.st_ino);
        let elsewhere = |error: &io::Error| {
            let code = error.raw_os_error();
            matches!(code, Some(libc::ENODATA | libc::EOPNOTSUPP))
        };
        if !asked.is_err_and(|error| elsewhere(&error)) {
            numbers.root = Some((fd, stat.st_dev));
        }
        Ok(numbers)
    }

    /// Whether files have other numbers here than at home.
    #[must_use]
    pub fn differ(&self) -> bool {
        self.root.is_some()
    }

    /// Whether what is on this device is seen through the view of all nodes.
    #[must_use]
    pub fn is_view(&self, device: u64) -> bool {
        self.root
            .as_ref()
            .is_some_and(|(_, through)| *through == device)
    }

    /// Home's numbers of a file that has these here; `None` if they are not a view of home.
    pub fn at_home(&self, device: u64, inode: u64) -> Option<Numbers> {
        let (fd, _) = self.root.as_ref().filter(|_| self.is_view(device))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(numbers) = known.get(&inode) {
            return Some(*numbers);
        }
        let numbers = ask(fd, inode).ok()?;
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(inode, numbers);
        Some(numbers)
    }

    /// Puts home's numbers into how a file is recognised.
    pub fn translate(&self, id: &mut FileIdImage) {
        if self.root.is_none() {
            return;
        }
        let numbers = self.at_home(id.device, id.inode);
        id.homes_numbers = numbers.is_some();
        if let Some((device, inode)) = numbers {
            (id.device, id.inode) = (device, inode);
        }
    }

    /// Puts home's numbers into the result of a system call that has just been made: these are the
    /// registers at its end. Answers whether it told of a file of home.
    ///
    /// # Errors
    /// [`TraceeError::Died`]. Memory that another thread has unmapped meanwhile is no error.
    pub fn correct_result(&self, regs: &Regs, memory: &Memory) -> Result<bool, TraceeError> {
        let Some((place, layout)) = result_of(regs) else {
            return Ok(false);
        };
        let corrected = layout.read(place, memory).and_then(|(device, inode)| {
            match self.at_home(device, inode) {
                Some(numbers) => layout.write(place, numbers, memory).map(|()| true),
                None => Ok(false),
            }
        });
        match corrected {
            Err(error) if !error.is_death() => Ok(true),
            other => other,
        }
    }
}

fn ask(root: &OwnedFd, inode: u64) -> io::Result<Numbers> {
    let mut answer = [0; ANSWER_BYTES_MAX];
    let size = xattr::get(root.as_fd(), &format!("{ATTRIBUTE}{inode}"), &mut answer)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let text = answer
        .get(..size)
        .and_then(|bytes| std::str::from_utf8(bytes).ok());
    let (device, inode) = text
        .and_then(|text| text.split_once(' '))
        .ok_or_else(invalid)?;
    let number = |text: &str| text.parse().map_err(|_| invalid());
    Ok((number(device)?, number(inode)?))
}

/// Where a result has its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    /// `struct stat` (asm/stat.h): device at 0, inode at 8.
    Stat,
    /// `struct statx` (linux/stat.h): inode at 32, major and minor of the device at 136 and 140.
    Statx,
}

/// Where a successful call has put what it found, if it is one that tells of a file.
fn result_of(regs: &Regs) -> Option<(u64, Layout)> {
    if regs.rax != 0 {
        return None;
    }
    match regs.syscall_number()? {
        libc::SYS_stat | libc::SYS_lstat | libc::SYS_fstat => Some((regs.rsi, Layout::Stat)),
        libc::SYS_newfstatat => Some((regs.rdx, Layout::Stat)),
        libc::SYS_statx => Some((regs.r8, Layout::Statx)),
        _ => None,
    }
}

/// Whether a call tells the numbers of a file.
pub(crate) fn tells_numbers(number: u32) -> bool {
    matches!(
        i64::from(number),
        libc::SYS_stat | libc::SYS_lstat | libc::SYS_fstat | libc::SYS_newfstatat | libc::SYS_statx
    )
}

impl Layout {
    fn read(self, place: u64, memory: &Memory) -> Result<Numbers, TraceeError> {
        let word = |offset: u64| memory.read_u64(place.wrapping_add(offset));
        Ok(match self {
            Self::Stat => (word(0)?, word(8)?),
            Self::Statx => {
                let device = word(136)?;
                let (major, minor) = (device & 0xffff_ffff, device >> 32);
                let half = |number: u64| u32::try_from(number).unwrap_or(0);
                (libc::makedev(half(major), half(minor)), word(32)?)
            }
        })
    }

    fn write(self, place: u64, numbers: Numbers, memory: &Memory) -> Result<(), TraceeError> {
        let (device, inode) = numbers;
        let word = |offset: u64, value: u64| {
            memory.write(place.wrapping_add(offset), &value.to_ne_bytes())
        };
        match self {
            Self::Stat => {
                word(0, device)?;
                word(8, inode)
            }
            Self::Statx => {
                let (major, minor) = (libc::major(device), libc::minor(device));
                word(32, inode)?;
                word(136, u64::from(major) | u64::from(minor) << 32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn a_tree_that_is_no_view_is_left_alone() -> TestResult {
        let directory = tempfile::tempdir()?;
        let numbers = HomeNumbers::of(directory.path())?;
        let mut id = crate::capture::file_id(directory.path())?;
        let before = id;
        numbers.translate(&mut id);
        assert_eq!(id, before);
        assert_eq!(numbers.at_home(id.device, id.inode), None);
        Ok(())
    }

    #[test]
    fn both_layouts_are_read_as_the_kernel_writes_them_and_written_back() -> TestResult {
        let file = tempfile::tempfile()?;
        let (stat, mut extended) = (fstat(&file)?, [0_u8; 256]);
        let (device, inode) = (stat.st_dev, stat.st_ino);
        let mut plain = [0_u8; 144];
        plain[..8].copy_from_slice(&device.to_ne_bytes());
        plain[8..16].copy_from_slice(&inode.to_ne_bytes());
        extended[32..40].copy_from_slice(&inode.to_ne_bytes());
        extended[136..140].copy_from_slice(&libc::major(device).to_ne_bytes());
        extended[140..144].copy_from_slice(&libc::minor(device).to_ne_bytes());
        let memory = Memory::of(std::process::id().cast_signed());
        let at = |bytes: &mut [u8]| bytes.as_mut_ptr().expose_provenance() as u64;
        for (layout, place) in [
            (Layout::Stat, at(&mut plain)),
            (Layout::Statx, at(&mut extended)),
        ] {
            assert_eq!(layout.read(place, &memory)?, (device, inode));
            let others = (libc::makedev(8, 300_000), 77);
            layout.write(place, others, &memory)?;
            assert_eq!(layout.read(place, &memory)?, others);
        }
        Ok(())
    }

    #[test]
    fn only_successful_calls_have_results() {
        let regs = |number: i64, rax: i64| Regs {
            orig_rax: number.cast_unsigned(),
            rax: rax.cast_unsigned(),
            rsi: 10,
            rdx: 20,
            r8: 30,
            ..Regs::default()
        };
        let stat = |number| result_of(&regs(number, 0));
        assert_eq!(stat(libc::SYS_fstat), Some((10, Layout::Stat)));
        assert_eq!(stat(libc::SYS_newfstatat), Some((20, Layout::Stat)));
        assert_eq!(stat(libc::SYS_statx), Some((30, Layout::Statx)));
        assert_eq!(stat(libc::SYS_read), None);
        assert_eq!(result_of(&regs(libc::SYS_stat, -2)), None);
    }
}
