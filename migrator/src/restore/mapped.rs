//! Files of mappings, each opened once: a library has five mappings, and on another node every
//! opening is several round trips to home.

use std::path::{Path, PathBuf};

use crate::image::{FileIdImage, VmaImage};
use crate::tracee::{Frozen, TraceeError};

use super::RestoreError;
use super::files::{self, Finder};

/// Descriptors kept open at once; below every usual RLIMIT_NOFILE.
const OPEN_MAX: usize = 128;
const FLAGS: i32 = libc::O_RDONLY | libc::O_CLOEXEC;

#[derive(Debug)]
struct Opened {
    path: Vec<u8>,
    id: FileIdImage,
    fd: i32,
}

/// What is open in a process whose mappings are being made. To be [`MappedFiles::close`]d before
/// its own descriptors are opened.
#[derive(Debug, Default)]
pub(super) struct MappedFiles {
    opened: Vec<Opened>,
}

impl MappedFiles {
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
        let known = |one: &&Opened| one.path == path && Some(&one.id) == id;
        if let Some(one) = self.opened.iter().find(known) {
            return Ok(one.fd);
        }
        if self.opened.len() == OPEN_MAX {
            self.close(frozen)?;
        }
        let fd = finder.open(frozen, path, id, Some(inside), FLAGS)?;
        self.opened.push(Opened {
            path: path.to_owned(),
            id: id.cloned().unwrap_or_default(),
            fd,
        });
        Ok(fd)
    }

    /// Closes everything.
    pub(super) fn close(&mut self, frozen: &mut Frozen) -> Result<(), TraceeError> {
        for one in self.opened.drain(..) {
            files::close(frozen, one.fd)?;
        }
        Ok(())
    }
}
