//! The one interface through which file operations reach the node that owns the files.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use proto::ids::NodeId;
use proto::v1::{FsReply, FsRequest};

use crate::lease::{LeaseClient, LeasePeer};

/// A Linux error number, as `errno(3)` gives it; never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(error: nix::errno::Errno) -> Self {
        Self(error as i32)
    }
}

/// What a file operation answers.
#[derive(Clone, Debug, Default)]
pub struct FsAnswer {
    /// The protobuf part; `result` is `None` where success is all there is to say.
    pub reply: FsReply,
    /// Bulk data of reads, links and extended attributes.
    pub payload: Bytes,
}

/// Performs file operations for one peer: the owner's export session, or a remote node behind the
/// data plane. Blocking; any number of threads may call at once.
pub trait FileService: Send + Sync + fmt::Debug {
    /// Performs one operation. `cancel` turns true when the caller withdrew the request; only
    /// operations that may wait (locks, opening a fifo) look at it.
    ///
    /// # Errors
    /// The errno the operation's man page gives; `EHOSTDOWN` when the owner cannot be reached,
    /// `ESTALE` when a handle died with its owner's daemon.
    fn call(
        &self,
        request: &FsRequest,
        payload: &[u8],
        cancel: &AtomicBool,
    ) -> Result<FsAnswer, Errno>;

    /// How leases can be had from this service; `None` when it gives none.
    fn lease_client(&self) -> Option<&dyn LeaseClient> {
        None
    }

    /// Where this service, when it is an owner's, shall recall its leases.
    fn serve_leases(&self, _peer: Weak<dyn LeasePeer>) {}

    /// The peer of this service gives a lease back.
    fn lease_returned(&self, _lease: u64) {}
}

/// This node's own export, which can additionally lend descriptors for FUSE passthrough.
pub trait LocalFiles: FileService {
    /// A descriptor of the regular file behind an open handle, for reads and writes that bypass
    /// the daemon; `None` when the handle is unknown or not of a regular file.
    fn backing_fd(&self, fh: u64) -> Option<OwnedFd>;
}

/// Whom a session serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionPeer {
    /// The asking node.
    pub node: NodeId,
    /// This node itself: root is root.
    pub is_local: bool,
}
