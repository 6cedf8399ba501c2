//! process_vm_readv(2) and process_vm_writev(2).

use std::io;

/// Reads memory of another process; answers how many bytes, which is short when an unreadable
/// page follows.
///
/// # Errors
/// EFAULT when the first page cannot be read, ESRCH, EPERM.
pub fn read(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut _,
        iov_len: buffer.len(),
    };
    // SAFETY: `local` describes `buffer`, exclusively borrowed; `remote` is only interpreted in
    // the other process. nix' wrapper wants IoSliceMut vectors built per call.
    let count =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if count < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(count as usize)
    }
}

/// Writes memory of another process, respecting its page protections.
///
/// # Errors
/// As [`read`].
pub fn write(pid: i32, address: u64, bytes: &[u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr() as *mut _,
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel only reads from `local`, which describes `bytes`; `remote` is only
    // interpreted in the other process.
    let count =
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if count < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(count as usize)
    }
}

/// Reads several ranges one after the other into `buffer`; answers how many bytes.
///
/// # Errors
/// As [`read`]; EINVAL for more than 1024 ranges.
pub fn read_ranges(pid: i32, ranges: &[(u64, usize)], buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let vector = |(start, bytes): &(u64, usize)| libc::iovec {
        iov_base: *start as *mut _,
        iov_len: *bytes,
    };
    let remote: Vec<libc::iovec> = ranges.iter().map(vector).collect();
    let count = remote.len() as libc::c_ulong;
    // SAFETY: as in `read`; `remote` holds as many vectors as stated.
    let read =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), count, 0) };
    if read < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(read as usize)
    }
}
