//! The deputy's descriptors and working directory, brought into step with a guest's that comes
//! back or moves on.
//!
//! What the guest closed of home's was closed at once. What remains: offsets and flags of files
//! both have, files that were opened away, and descriptors left over from an earlier try.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::capture::file_id;
use crate::capture::files::open_files;
use crate::image::{FileIdImage, FileImage, FileKind, ProcessImage};
use crate::keeper::transfer::MoveError;
use crate::restore::files::{
    Finder, change_directory, close, duplicate, place_file, place_file_from, same_file, seek,
    set_flags, take_lower,
};
use crate::tracee::Frozen;
use crate::tracee::procfs::{self, Stat};

/// Status flags that F_SETFL changes.
const CHANGEABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

/// Brings a stopped deputy into step with an image of its guest.
///
/// # Errors
/// A file that was opened away cannot be opened at home; the process died.
pub(super) fn reconcile(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), MoveError> {
    let listed = open_files(frozen.pid()).map_err(|error| MoveError::process(&error))?;
    let mut has: BTreeMap<i32, FileImage> = BTreeMap::new();
    for file in listed {
        has.insert(file.number, file);
    }
    for (number, file) in &has {
        let wanted = image.files.iter().find(|other| other.number == *number);
        let stale = wanted.is_none_or(|wanted| wanted.opened_away && !same(wanted, file));
        if stale {
            close(frozen, *number).map_err(|error| MoveError::process(&error))?;
        }
    }
    let kept = |file: &FileImage| {
        let deputys = has.get(&file.number);
        deputys.filter(|deputys| !file.opened_away || same(file, deputys))
    };
    let locks = has.values().any(|file| file.locked);
    for file in image.files.iter().filter(|file| !file.home) {
        match kept(file) {
            Some(deputys) => adjust(frozen, file, deputys)?,
            None if locks => open_at_once(frozen, file, image)?,
            None => open(frozen, file, image)?,
        }
    }
    follow(frozen, image)
}

fn same(wanted: &FileImage, found: &FileImage) -> bool {
    match (&wanted.id, &found.id) {
        (Some(wanted_id), Some(found_id)) => {
            wanted.path == found.path && same_file(wanted_id, found_id)
        }
        _ => false,
    }
}

/// Offset and flags of a file that both have open.
fn adjust(frozen: &mut Frozen, file: &FileImage, deputys: &FileImage) -> Result<(), MoveError> {
    let failed = |error| MoveError::process(&error);
    let seekable = matches!(file.kind(), FileKind::Regular | FileKind::Directory);
    if seekable && file.offset != deputys.offset {
        seek(frozen, file.number, file.offset).map_err(failed)?;
    }
    let changed = (file.flags ^ deputys.flags) & CHANGEABLE.cast_unsigned();
    if changed != 0 {
        set_flags(frozen, file.number, deputys.flags ^ changed).map_err(failed)?;
    }
    if file.close_on_exec != deputys.close_on_exec {
        let number = u64::from(file.number.cast_unsigned());
        let command = u64::from(libc::F_SETFD.cast_unsigned());
        let args = [number, command, file.close_on_exec.into(), 0, 0, 0];
        frozen
            .call(0, ("fcntl", libc::SYS_fcntl), args)
            .map_err(failed)?;
    }
    Ok(())
}

/// As [`open`], without another number that has to be closed: that would drop the locks that the
/// process has on the file (fcntl(2)).
fn open_at_once(
    frozen: &mut Frozen,
    file: &FileImage,
    image: &ProcessImage,
) -> Result<(), MoveError> {
    let lower = take_lower(frozen, file.number).map_err(|error| MoveError::process(&error))?;
    let opened = open(frozen, file, image);
    for number in lower {
        close(frozen, number).map_err(|error| MoveError::process(&error))?;
    }
    opened
}

/// A file that the guest opened, or another number of one.
fn open(frozen: &mut Frozen, file: &FileImage, image: &ProcessImage) -> Result<(), MoveError> {
    let original = image
        .files
        .iter()
        .find(|other| other.number + 1 == file.same_as);
    if let Some(original) = original.filter(|original| !original.home) {
        let made = duplicate(frozen, original.number, file.number, file.close_on_exec);
        return made.map_err(|error| MoveError::process(&error));
    }
    if let Some(path) = unnamed(file) {
        let placed = place_file_from(frozen, file, &path);
        return placed.map_err(|error| MoveError::process(&error));
    }
    place_file(frozen, file, &Finder::at_home()).map_err(|error| MoveError::process(&error))
}

/// Where a file that was opened away, and has no name any more, is held open on this node: by the
/// daemon, for its guest. /proc opens such a file anew (proc(5)), for root at least.
fn unnamed(file: &FileImage) -> Option<PathBuf> {
    let id = file.id.filter(|id| id.unlinked && id.homes_numbers)?;
    let is_ours = |pid: &i32| Stat::read(*pid).is_ok_and(|stat| stat.comm == b"omfs");
    let daemons = procfs::processes().ok()?.into_iter().filter(is_ours);
    let mut held = daemons.flat_map(|pid| {
        let numbers = procfs::descriptors(pid).unwrap_or_default();
        numbers
            .into_iter()
            .map(move |number| PathBuf::from(format!("/proc/{pid}/fd/{number}")))
    });
    held.find(|path| {
        file_id(path).is_ok_and(|found| (found.device, found.inode) == (id.device, id.inode))
    })
}

/// The working directory.
fn follow(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), MoveError> {
    let link = format!("/proc/{}/cwd", frozen.pid());
    // It may have gone where it could not go now, and be there by another name at its host.
    let is_there = |id: &FileIdImage| {
        id.homes_numbers && file_id(Path::new(&link)).is_ok_and(|now| same_file(id, &now))
    };
    if image.cwd_id.as_ref().is_some_and(is_there) {
        return Ok(());
    }
    let now = std::fs::read_link(link).map_err(|error| MoveError::process(&error))?;
    if now.as_os_str().as_bytes() == image.cwd {
        return Ok(());
    }
    let wanted = Path::new(std::ffi::OsStr::from_bytes(&image.cwd));
    change_directory(frozen, wanted).map_err(|error| MoveError::process(&error))
}
