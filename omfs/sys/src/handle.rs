//! File handles: an inode's name that outlives descriptors (`open_by_handle_at(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel's limit, `MAX_HANDLE_SZ`.
const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` with room for the largest handle.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES_MAX],
}

const _: () = assert!(size_of::<RawHandle>() == 8 + HANDLE_BYTES_MAX);

/// Identifies an inode and its generation within one file system.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileHandle {
    kind: i32,
    data: Box<[u8]>,
}

impl FileHandle {
    /// The handle of the inode that `fd` refers to; `fd` may be `O_PATH`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has none.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut raw = RawHandle {
            bytes: HANDLE_BYTES_MAX as u32,
            kind: 0,
            data: [0; HANDLE_BYTES_MAX],
        };
        let mut mount_id = 0;
        // SAFETY: `raw` is laid out as file_handle with `bytes` of room after the header, the path
        // is an empty C string, and both outputs live through the call. No crate wraps it.
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let data = raw.data.get(..raw.bytes as usize).unwrap_or_default();
        Ok(Self {
            kind: raw.kind,
            data: data.into(),
        })
    }

    /// Opens the inode as `O_PATH`. `mount` is any descriptor on its mount, but no `O_PATH` one.
    ///
    /// # Errors
    /// `ESTALE` when the inode is gone, `EPERM` without `CAP_DAC_READ_SEARCH`.
    pub fn open_path(&self, mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let mut raw = RawHandle {
            bytes: self.data.len() as u32,
            kind: self.kind,
            data: [0; HANDLE_BYTES_MAX],
        };
        for (to, from) in raw.data.iter_mut().zip(&self.data) {
            *to = *from;
        }
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: `raw` is laid out as file_handle and holds `bytes` bytes; the kernel only reads
        // it. No crate wraps it.
        let fd =
            unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_handle_too_long_is_never_stored() {
        let file = tempfile::tempfile().expect("temporary file");
        if let Ok(handle) = FileHandle::of(file.as_fd()) {
            assert!(!handle.data.is_empty() && handle.data.len() <= HANDLE_BYTES_MAX);
        }
    }
}
