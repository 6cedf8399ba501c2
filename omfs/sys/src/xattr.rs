//! Extended attributes of inodes behind descriptors, `O_PATH` ones and symlinks included.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use super::file::FdPath;

/// Reads an attribute into `value` and gives its size; with an empty `value` only the size.
///
/// # Errors
/// Those of getxattr(2).
pub fn get(fd: BorrowedFd<'_>, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
    let path = FdPath::new(fd);
    let room = value.len();
    // SAFETY: both strings are C strings, and the kernel writes at most `room` bytes. The f… calls
    // refuse O_PATH descriptors, and no crate of ours wraps the others.
    let size = unsafe {
        libc::getxattr(
            path.as_c_str().as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            room,
        )
    };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// Reads the names, each with its NUL, into `names` and gives their size.
///
/// # Errors
/// Those of listxattr(2).
pub fn list(fd: BorrowedFd<'_>, names: &mut [u8]) -> io::Result<usize> {
    let path = FdPath::new(fd);
    let room = names.len();
    // SAFETY: as in `get`.
    let size =
        unsafe { libc::listxattr(path.as_c_str().as_ptr(), names.as_mut_ptr().cast(), room) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// Sets an attribute; `flags` is 0, `XATTR_CREATE` or `XATTR_REPLACE`.
///
/// # Errors
/// Those of setxattr(2).
pub fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: i32) -> io::Result<()> {
    let path = FdPath::new(fd);
    // SAFETY: both strings are C strings, and the kernel only reads `value`. Needed as in `get`.
    let result = unsafe {
        libc::setxattr(
            path.as_c_str().as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Removes an attribute.
///
/// # Errors
/// Those of removexattr(2).
pub fn remove(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let path = FdPath::new(fd);
    // SAFETY: both strings are C strings that the kernel only reads. Needed as in `get`.
    let result = unsafe { libc::removexattr(path.as_c_str().as_ptr(), name.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
