//! What the FUSE crate does not do with a `/dev/fuse` (`include/uapi/linux/fuse.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `FUSE_NOTIFY_INVAL_INODE`.
const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_RESEND`, since Linux 6.9.
const NOTIFY_RESEND: i32 = 7;

/// `struct fuse_backing_map`.
#[derive(Debug)]
#[repr(C)]
pub struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}
const _: () = assert!(size_of::<BackingMap>() == 16);

nix::ioctl_write_ptr!(ioctl_backing_open, 229, 1, BackingMap);
nix::ioctl_write_ptr!(ioctl_backing_close, 229, 2, u32);

/// Makes a backing file of an open file; its number.
///
/// # Errors
/// The kernel has no passthrough, or the file is not a regular one.
pub fn open_backing(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    let map = BackingMap {
        fd: file.as_raw_fd(),
        flags: 0,
        padding: 0,
    };
    // SAFETY: the kernel reads one such struct behind the pointer, which lives until the call returns.
    // Needed because ioctl(2) is untyped.
    let number = unsafe { ioctl_backing_open(fuse.as_raw_fd(), &raw const map) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Closes a backing file.
///
/// # Errors
/// There is no such backing file, or the mount is gone.
pub fn close_backing(fuse: BorrowedFd<'_>, backing: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one u32 behind the pointer, which lives until the call returns.
    // Needed because ioctl(2) is untyped.
    unsafe { ioctl_backing_close(fuse.as_raw_fd(), &raw const backing) }?;
    Ok(())
}

/// Makes the kernel send again all requests that were taken and not answered.
///
/// # Errors
/// `EINVAL` from a kernel that does not know this.
pub fn resend(fuse: BorrowedFd<'_>) -> io::Result<()> {
    // struct fuse_out_header: length, error, unique.
    let mut message = 16_u32.to_ne_bytes().to_vec();
    message.extend_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    message.extend_from_slice(&0_u64.to_ne_bytes());
    nix::unistd::write(fuse, &message)?;
    Ok(())
}

/// Makes the kernel write back and drop all pages that it holds of a file.
///
/// # Errors
/// `ENOENT` for a file that it does not know.
pub fn invalidate_pages(fuse: BorrowedFd<'_>, inode: u64) -> io::Result<()> {
    // struct fuse_out_header, and struct fuse_notify_inval_inode_out: inode, offset, length.
    let mut message = 40_u32.to_ne_bytes().to_vec();
    message.extend_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    for word in [0, inode, 0, 0] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    nix::unistd::write(fuse, &message)?;
    Ok(())
}

/// Makes the number of one descriptor mean what another means.
///
/// # Errors
/// Those of dup3(2).
pub fn replace(number: BorrowedFd<'_>, with: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both numbers are open; whoever owns `number` goes on owning it, and finds another
    // file behind it. Needed because the number is inside the FUSE crate.
    let result = unsafe { libc::dup3(with.as_raw_fd(), number.as_raw_fd(), libc::O_CLOEXEC) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_number_means_another_file() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut null = std::fs::File::options()
            .write(true)
            .open("/dev/null")
            .unwrap();
        replace(null.as_fd(), writer.as_fd()).unwrap();
        drop(writer);
        null.write_all(b"x").unwrap();
        drop(null);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn only_fuse_can_resend_and_close_backing_files() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(open_backing(null.as_fd(), null.as_fd()).is_err());
        assert!(close_backing(null.as_fd(), 1).is_err());
        assert!(resend(null.as_fd()).is_err());
        assert!(invalidate_pages(null.as_fd(), 1).is_err());
    }
}
