//! Extended attributes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads an attribute of the inode behind a descriptor, `O_PATH` ones included, into `value`;
/// answers its size (getxattr(2)).
///
/// # Errors
/// ENODATA, EOPNOTSUPP, ERANGE and others of the file system.
pub fn get(fd: BorrowedFd<'_>, name: &str, value: &mut [u8]) -> io::Result<usize> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let name = CString::new(name)?;
    let (buffer, room) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: both are C strings, and the kernel writes at most `room` bytes. No crate we use wraps
    // it, and fgetxattr refuses O_PATH descriptors.
    let size = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer, room) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn an_attribute_that_is_not_there_is_an_error() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        let mut value = [0; 16];
        let error = get(file.as_fd(), "user.nothing", &mut value).unwrap_err();
        let code = error.raw_os_error();
        assert!(
            matches!(code, Some(libc::ENODATA | libc::EOPNOTSUPP)),
            "{error}"
        );
        Ok(())
    }
}
