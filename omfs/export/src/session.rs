//! One peer's session: the operations' entry point.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use proto::v1::FsRequest;
use proto::v1::fs_request::Op;

use super::answer::Answer;
use super::caller::Who;
use super::files::{Files, OpenFile};
use super::leases::LeaseId;
use super::locks::Locks;
use super::nodes::{NodeRef, Nodes};
use super::{Errno, Export, FileService, SessionPeer};
use omfs_service::LocalFiles;
use omfs_service::lease::LeasePeer;
use omfs_sys::lease::LeaseKind;

/// Sessions of this process, numbered.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// What one peer has looked up, opened and locked. Dropping it gives everything back.
#[derive(Debug)]
pub struct ExportSession {
    pub(super) export: Arc<Export>,
    pub(super) peer: SessionPeer,
    pub(super) peer_name: String,
    pub(super) nodes: Nodes,
    pub(super) files: Files,
    pub(super) locks: Locks,
    pub(super) number: u64,
    /// Where leases can be recalled; unset for a peer that cannot have any.
    lease_peer: OnceLock<Weak<dyn LeasePeer>>,
}

impl ExportSession {
    pub(super) fn new(export: Arc<Export>, peer: SessionPeer, peer_name: String) -> Arc<Self> {
        let nodes = Nodes::new(
            Arc::clone(&export.limits),
            (Arc::clone(&export.root), &export.root_stat),
            Arc::clone(&export.root_mount),
            Arc::clone(&export.root_place),
        );
        let files = Files::new(Arc::clone(&export.limits));
        let locks = Locks::new(Arc::clone(&export.limits), Arc::clone(&export.released));
        Arc::new(Self {
            export,
            peer,
            peer_name,
            nodes,
            files,
            locks,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            lease_peer: OnceLock::new(),
        })
    }

    /// A descriptor of an open regular file for FUSE passthrough; `None` for anything else.
    #[must_use]
    pub fn backing_fd(&self, fh: u64) -> Option<OwnedFd> {
        let file = self.files.get(fh).ok()?;
        if !file.is_regular {
            return None;
        }
        file.fd().try_clone_to_owned().ok()
    }

    /// The peer's own number made one that differs from all other peers'.
    pub(super) fn lease_id(&self, lease: u64) -> LeaseId {
        LeaseId {
            session: self.number,
            lease,
        }
    }

    /// Takes a lease that the peer asks for under a number of its own; false when it cannot be had.
    pub(super) fn grant(&self, lease: u64, kind: LeaseKind, file: &Arc<OpenFile>) -> bool {
        let id = self.lease_id(lease);
        self.lease_peer
            .get()
            .is_some_and(|peer| self.export.leases.grant(id, kind, file, peer))
    }

    /// Waits until what other peers have written to an inode is there.
    pub(super) fn settle(&self, inode: (u64, u64)) {
        self.export.leases.settle(inode, self.number);
    }

    pub(super) fn node(&self, id: u64) -> Result<NodeRef, Errno> {
        self.nodes.get(id)
    }

    /// Operations that need no identity: what they act on was opened with one.
    fn call_as_anyone(&self, op: &Op) -> Option<Answer> {
        Some(match op {
            Op::Forget(arg) => self.forget(arg),
            Op::Flush(arg) => self.flush(arg),
            Op::Release(arg) => self.release(arg),
            Op::ReleaseDir(arg) => self.release_dir(arg),
            Op::Fsync(arg) | Op::FsyncDir(arg) => self.fsync(arg),
            _ => return None,
        })
    }

    fn call_as(&self, who: &Who, op: &Op, payload: &[u8], cancel: &AtomicBool) -> Answer {
        match op {
            Op::Lookup(arg) => self.lookup(who, arg),
            Op::GetAttr(arg) => self.get_attr(arg),
            Op::SetAttr(arg) => self.set_attr(who, arg),
            Op::ReadLink(arg) => self.read_link(who, arg),
            Op::MkNod(arg) => self.mk_nod(who, arg),
            Op::MkDir(arg) => self.mk_dir(who, arg),
            Op::Unlink(arg) => self.unlink(who, arg, Removal::File),
            Op::RmDir(arg) => self.unlink(who, arg, Removal::Directory),
            Op::Symlink(arg) => self.symlink(who, arg),
            Op::Rename(arg) => self.rename(who, arg),
            Op::Link(arg) => self.link(who, arg),
            Op::Open(arg) => self.open(who, arg),
            Op::Create(arg) => self.create(who, arg),
            Op::Read(arg) => self.read(who, arg),
            Op::Write(arg) => self.write(who, arg, payload),
            Op::OpenDir(arg) => self.open_dir(who, arg),
            Op::ReadDir(arg) => self.read_dir(who, arg),
            Op::StatFs(arg) => self.stat_fs(arg),
            Op::Access(arg) => self.access(who, arg),
            Op::SetXattr(arg) => self.set_xattr(who, arg, payload),
            Op::GetXattr(arg) => self.get_xattr(who, arg),
            Op::ListXattr(arg) => self.list_xattr(who, arg),
            Op::RemoveXattr(arg) => self.remove_xattr(who, arg),
            Op::Fallocate(arg) => self.fallocate(who, arg),
            Op::Lseek(arg) => self.lseek(arg),
            Op::CopyFileRange(arg) => self.copy_file_range(who, arg),
            Op::GetLock(arg) => self.get_lock(arg),
            Op::SetLock(arg) => self.set_lock(arg, cancel),
            Op::DeputyFile(arg) => self.deputy_file(who, arg),
            Op::Forget(_)
            | Op::Flush(_)
            | Op::Release(_)
            | Op::ReleaseDir(_)
            | Op::Fsync(_)
            | Op::FsyncDir(_) => Err(Errno(libc::EINVAL)),
        }
    }
}

/// What kind of name is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Removal {
    File,
    Directory,
}

impl LocalFiles for ExportSession {
    fn backing_fd(&self, fh: u64) -> Option<OwnedFd> {
        Self::backing_fd(self, fh)
    }
}

impl FileService for ExportSession {
    fn call(&self, request: &FsRequest, payload: &[u8], cancel: &AtomicBool) -> Answer {
        let op = request.op.as_ref().ok_or(Errno(libc::EINVAL))?;
        if let Some(answer) = self.call_as_anyone(op) {
            return answer;
        }
        let caller = request.caller.as_ref().ok_or(Errno(libc::EINVAL))?;
        let who = self.who(caller, op)?;
        self.call_as(&who, op, payload, cancel)
    }

    fn serve_leases(&self, peer: Weak<dyn LeasePeer>) {
        // A session has one connection.
        let _ = self.lease_peer.set(peer);
    }

    fn lease_returned(&self, lease: u64) {
        self.export.leases.returned(self.lease_id(lease));
    }
}

impl Drop for ExportSession {
    fn drop(&mut self) {
        self.export.leases.session_ended(self.number);
    }
}
