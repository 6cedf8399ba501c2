//! Files of mappings, each opened once: a library has five mappings, and on another node every
//! opening is several round trips to home.

use std::io;
use std::path::{Path, PathBuf};

use crate::capture::files::describe;
use crate::image::{FileIdImage, FileKind, VmaImage};
use crate::tracee::{Frozen, TraceeError, procfs};

use super::RestoreError;
use super::files::{self, Finder, same_file};

/// Descriptors kept open at once; below every usual RLIMIT_NOFILE.
pub(super) const OPEN_MAX: usize = 128;
const FLAGS: i32 = libc::O_RDONLY | libc::O_CLOEXEC;

#[derive(Debug)]
struct Opened {
    path: Vec<u8>,
    id: FileIdImage,
    fd: i32,
    /// One of the process' own: closing another of that file would drop the process' locks on it
    /// (fcntl(2), "Advisory record locking").
    own: bool,
}

/// What is open in a process whose mappings are being made. To be [`MappedFiles::close`]d before
/// its own descriptors are opened.
#[derive(Debug, Default)]
pub(super) struct MappedFiles {
    opened: Vec<Opened>,
}

impl MappedFiles {
    /// To use what a process has open already where it can.
    ///
    /// # Errors
    /// Those of /proc.
    pub(super) fn with_own_of(pid: i32) -> io::Result<Self> {
        let mut opened = Vec::new();
        for number in procfs::descriptors(pid)? {
            let Ok(file) = describe(pid, number) else {
                continue; // what has no name in /proc is no file that is mapped
            };
            let mode = file.flags.cast_signed() & (libc::O_ACCMODE | libc::O_PATH);
            let readable = [libc::O_RDONLY, libc::O_RDWR].contains(&mode);
            if let Some(id) = file
                .id
                .filter(|_| readable && file.kind() == FileKind::Regular)
            {
                opened.push(Opened {
                    path: file.path,
                    id,
                    fd: number,
                    own: true,
                });
            }
        }
        Ok(Self { opened })
    }

    /// A descriptor of the file of a mapping.
    pub(super) fn open(
        &mut self,
        frozen: &mut Frozen,
        vma: &VmaImage,
        finder: &Finder,
    ) -> Result<i32, RestoreError> {
        let inside = PathBuf::from(format!("map_files/{:x}-{:x}", vma.start, vma.end));
        self.find(frozen, (&vma.path, vma.file.as_ref(), &inside), finder)
    }

    /// A descriptor of the program.
    pub(super) fn open_program(
        &mut self,
        frozen: &mut Frozen,
        (path, id): (&[u8], Option<&FileIdImage>),
        finder: &Finder,
    ) -> Result<i32, RestoreError> {
        self.find(frozen, (path, id, Path::new("exe")), finder)
    }

    fn find(
        &mut self,
        frozen: &mut Frozen,
        (path, id, inside): (&[u8], Option<&FileIdImage>, &Path),
        finder: &Finder,
    ) -> Result<i32, RestoreError> {
        let same = |one: &Opened| id.is_some_and(|id| same_file(id, &one.id));
        let known = |one: &&Opened| {
            one.path == path
                && if one.own {
                    same(one)
                } else {
                    Some(&one.id) == id
                }
        };
        if let Some(one) = self.opened.iter().find(known) {
            return Ok(one.fd);
        }
        if self.opened.iter().filter(|one| !one.own).count() == OPEN_MAX {
            self.close(frozen)?;
        }
        let fd = finder.open(frozen, path, id, Some(inside), FLAGS)?;
        self.opened.push(Opened {
            path: path.to_owned(),
            id: id.cloned().unwrap_or_default(),
            fd,
            own: false,
        });
        Ok(fd)
    }

    /// Closes everything that was opened for this.
    pub(super) fn close(&mut self, frozen: &mut Frozen) -> Result<(), TraceeError> {
        for one in self.opened.extract_if(.., |one| !one.own) {
            files::close(frozen, one.fd)?;
        }
        Ok(())
    }
}
