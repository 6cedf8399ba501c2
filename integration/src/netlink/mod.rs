//! A small rtnetlink client (`rtnetlink(7)`): requests with attributes, acknowledged one by one.
//!
//! A socket belongs to the network namespace in which it was opened.

mod link;
mod message;
mod qdisc;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

pub use link::Mac;
use message::Message;

const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;

/// A connection to the kernel's routing part, in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut reply = [0_u8; 8192];
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut reply, MsgFlags::empty())?;
            if let Some(result) = acknowledgement(&reply[..length], self.sequence) {
                return result;
            }
        }
    }
}

/// What an `NLMSG_ERROR` for `sequence` says; nothing when the datagram is something else.
fn acknowledgement(reply: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    let answered = u32::from_ne_bytes(reply.get(8..12)?.try_into().ok()?);
    if kind != NLMSG_ERROR || answered != sequence {
        return None;
    }
    let body = reply.get(HEADER_BYTES..HEADER_BYTES + 4)?;
    match i32::from_ne_bytes(body.try_into().ok()?) {
        0 => Some(Ok(())),
        error => Some(Err(io::Error::from_raw_os_error(-error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: u16, sequence: u32, error: i32) -> Vec<u8> {
        let mut bytes = vec![36, 0, 0, 0];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(error.to_ne_bytes());
        bytes
    }

    #[test]
    fn acknowledgements_carry_the_errno() {
        assert!(
            acknowledgement(&reply(NLMSG_ERROR, 7, 0), 7)
                .unwrap()
                .is_ok()
        );
        let refused = acknowledgement(&reply(NLMSG_ERROR, 7, -libc::EEXIST), 7).unwrap();
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn other_datagrams_are_skipped() {
        assert!(acknowledgement(&reply(NLMSG_ERROR, 6, 0), 7).is_none());
        assert!(acknowledgement(&reply(16, 7, 0), 7).is_none());
        assert!(acknowledgement(&reply(NLMSG_ERROR, 7, 0)[..17], 7).is_none());
        assert!(acknowledgement(&[], 7).is_none());
    }
}
