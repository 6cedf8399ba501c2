//! File descriptors over unix sockets (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends bytes with one descriptor attached.
///
/// # Errors
/// Those of sendmsg(2); `WriteZero` when not all bytes were taken.
pub fn send_fd(socket: &UnixStream, bytes: &[u8], fd: &OwnedFd) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let slices = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &slices,
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives bytes into `buffer`, and the first descriptor attached to them; others are closed.
///
/// # Errors
/// Those of recvmsg(2), `EAGAIN` after the socket's read timeout.
pub fn recv_fd(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let (count, fds) = recv_fds(socket, buffer)?;
    Ok((count, fds.into_iter().next()))
}

/// Receives bytes into `buffer`, and the descriptors attached to them, at most four.
///
/// # Errors
/// As [`recv_fd`].
pub fn recv_fds(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor for us, nobody else
                // knows its number. Needed because nix hands out raw numbers.
                received.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_arrives_with_its_bytes() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_fd(&left, b"hello", &writer.into()).unwrap();
        let mut buffer = [0; 16];
        let (count, fd) = recv_fd(&right, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"hello");
        File::from(fd.unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn bytes_without_a_descriptor_are_just_bytes() {
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(b"x").unwrap();
        let (count, fd) = recv_fd(&right, &mut [0; 4]).unwrap();
        assert_eq!((count, fd.is_none()), (1, true));
    }
}
