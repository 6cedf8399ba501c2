//! Opening, creating and closing files.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use proto::v1::fs_reply::Result as Reply;
use proto::v1::{Create, Entry, FhArg, Flush, NodeArg, Open, Opened, Release};

use super::answer::{Answer, attr, component, done, reply};
use super::caller::Who;
use super::deputy::only_description;
use super::files::OpenFile;
use super::gate::check_found;
use super::lookup::open_path;
use super::nodes::{Keep, NodeRef};
use super::writers::{Known, Writing};
use super::{Errno, ExportSession};
use omfs_sys::file::{self, Freshness, Stat};

/// What the kernel adds to the flags when it opens a program to execute it (`__FMODE_EXEC`).
const FMODE_EXEC: i32 = 0x20;
/// Flags that say how to find a file, or that belong to the peer's own descriptor.
const NOT_OURS: i32 = libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_NOFOLLOW
    | libc::O_ASYNC
    | libc::O_DIRECT
    | libc::O_APPEND
    | libc::O_CLOEXEC
    | FMODE_EXEC;
/// How often a create retries while others make and remove the same name.
const CREATE_ATTEMPTS_MAX: usize = 16;

impl ExportSession {
    pub(super) fn open(&self, who: &Who, arg: &Open) -> Answer {
        let node = self.node(arg.node)?;
        check_flags(arg.flags)?;
        let may_map = self.may_map(who, &node, arg.flags);
        let fd = match open_node(who, &node, arg.flags) {
            Err(error) => self.open_as_holder(who, &node, arg.flags).ok_or(error)?,
            Ok(fd) => fd,
        };
        let (fh, may_map) = self.add_file(fd, &node, arg.flags, may_map)?;
        reply(Reply::Opened(Opened {
            fh,
            unmappable: !may_map,
        }))
    }

    pub(super) fn open_dir(&self, who: &Who, arg: &NodeArg) -> Answer {
        let node = self.node(arg.node)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NONBLOCK;
        let opened = {
            let _as_caller = who.assume()?;
            file::reopen(node.fd.as_fd(), flags)
        };
        let fd = match opened {
            Err(error) => self.open_as_holder(who, &node, flags).ok_or(error)?,
            Ok(fd) => fd,
        };
        let (fh, _) = self.add_file(fd, &node, flags, true)?;
        reply(Reply::Opened(Opened {
            fh,
            ..Opened::default()
        }))
    }

    /// Opens what a deputy has open as well, for its host; the deputy's ids need not suffice.
    fn open_as_holder(&self, who: &Who, node: &NodeRef, flags: i32) -> Option<OwnedFd> {
        let (pid, grant) = (who.deputy()?, self.nodes.granted(node.id)?);
        let is_file = matches!(node.kind, libc::S_IFREG | libc::S_IFDIR);
        if !is_file || !grant.covers(pid, flags) {
            return None;
        }
        file::reopen(node.fd.as_fd(), (flags & !NOT_OURS) | libc::O_NONBLOCK).ok()
    }

    /// Whether the session may map a file shared and writable that it is about to open. Only of
    /// interest when it opens it for writing.
    fn may_map(&self, who: &Who, node: &NodeRef, flags: i32) -> bool {
        // What this node's own users map are the owner's pages.
        if self.peer.is_local || !counts_as_writing(node, flags) {
            return true;
        }
        let Ok(stat) = file::stat(node.fd.as_fd(), Freshness::Known) else {
            return false;
        };
        let inode = (stat.dev, stat.ino);
        match self.export.writers.known(inode, self.number) {
            Known::Own(may_map) => may_map,
            Known::Others => false,
            Known::Nobody => !self.has_native_writer(who, node, inode, flags),
        }
    }

    /// Whether a program of this node has a file open for writing. The parked deputy of the guest that
    /// asks does not count: it does not use its descriptors.
    fn has_native_writer(&self, who: &Who, node: &NodeRef, inode: (u64, u64), flags: i32) -> bool {
        let reader = file::reopen(node.fd.as_fd(), libc::O_RDONLY | libc::O_NONBLOCK);
        let has_writer = match reader {
            Ok(reader) => self.export.leases.is_open_for_writing(reader.as_fd()),
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        };
        let way = flags & (libc::O_ACCMODE | libc::O_APPEND);
        let is_deputys = |pid| only_description(pid, inode, way).is_some();
        has_writer && !who.guest_pid().is_some_and(is_deputys)
    }

    /// The handle of an open file, and whether the session may map it shared and writable.
    fn add_file(
        &self,
        fd: OwnedFd,
        node: &NodeRef,
        flags: i32,
        may_map: bool,
    ) -> Result<(u64, bool), Errno> {
        let fd = self.files.count(Arc::new(fd))?;
        let stat = file::stat(fd.as_fd(), Freshness::Known)?;
        let writing = self.note_writer(node, (stat.dev, stat.ino), flags, may_map);
        let may_map = writing.as_ref().is_none_or(|writing| writing.may_map);
        let fh = self.files.add(OpenFile {
            fd,
            _keeps_node: Arc::clone(&node.fd),
            is_regular: stat.mode & libc::S_IFMT == libc::S_IFREG,
            is_directory: stat.mode & libc::S_IFMT == libc::S_IFDIR,
            is_writable: is_writable(flags),
            mount: Arc::clone(&node.mount),
            place: Arc::clone(&node.place),
            inode: (stat.dev, stat.ino),
            dir_offset: Mutex::new(0),
            is_flocked: AtomicBool::new(false),
            is_adopted: false,
            writing,
        });
        Ok((fh, may_map))
    }

    fn note_writer(
        &self,
        node: &NodeRef,
        inode: (u64, u64),
        flags: i32,
        may_map: bool,
    ) -> Option<Arc<Writing>> {
        let writers = &self.export.writers;
        let session = (self.number, self.peer.is_local);
        counts_as_writing(node, flags).then(|| writers.enter(inode, session, may_map))
    }

    pub(super) fn create(&self, who: &Who, arg: &Create) -> Answer {
        let parent = self.node(arg.parent)?;
        let name = component(&arg.name)?;
        check_flags(arg.flags)?;
        for _ in 0..CREATE_ATTEMPTS_MAX {
            match self.create_new(who, &parent, &name, arg) {
                Err(Errno(libc::EEXIST)) if arg.flags & libc::O_EXCL == 0 => {}
                answer => return answer,
            }
            match self.open_existing(who, &parent, &name, arg.flags) {
                Err(Errno(libc::ENOENT)) => {}
                answer => return answer,
            }
        }
        Err(Errno(libc::EBUSY))
    }

    fn create_new(&self, who: &Who, parent: &NodeRef, name: &CStr, arg: &Create) -> Answer {
        let flags = (arg.flags & !NOT_OURS) | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let fd = {
            let _as_caller = who.assume_creating()?;
            file::open_at(Some(parent.fd.as_fd()), name, flags, arg.mode & 0o7777)?
        };
        let (stat, mount) = self.inspect(&fd, &parent.mount)?;
        // Where the descriptor itself has to name the inode, it must not keep it open for writing.
        let path_fd = if mount.anchor.is_some() {
            None
        } else {
            Some(Arc::new(file::reopen(fd.as_fd(), libc::O_PATH)?))
        };
        let fd = Arc::new(fd);
        let path_fd = path_fd.unwrap_or_else(|| Arc::clone(&fd));
        let at = (&mount, &parent.place);
        let node = self.nodes.enter(&path_fd, &stat, at, Keep::Nothing)?;
        let kind = stat.mode & libc::S_IFMT;
        let node = NodeRef {
            id: node,
            fd: path_fd,
            kind,
            mount,
            place: Arc::clone(&parent.place),
        };
        self.answer_created(fd, &node, &stat, (arg.flags, true))
    }

    fn open_existing(&self, who: &Who, parent: &NodeRef, name: &CStr, flags: i32) -> Answer {
        let path_fd = open_path(who, parent, name)?;
        let (stat, mount) = self.inspect(&path_fd, &parent.mount)?;
        if stat.mode & libc::S_IFMT != libc::S_IFREG {
            // The peer believed there was nothing; ESTALE makes its kernel look again.
            return Err(Errno(libc::ESTALE));
        }
        let path_fd = Arc::new(path_fd);
        let kind = stat.mode & libc::S_IFMT;
        let mut node = NodeRef {
            id: 0,
            fd: path_fd,
            kind,
            mount,
            place: Arc::clone(&parent.place),
        };
        if who.is_stranger() {
            check_found(&node.mount, &parent.mount, kind)?;
        }
        let may_map = self.may_map(who, &node, flags);
        let fd = Arc::new(open_node(who, &node, flags)?);
        node.id = self
            .nodes
            .enter(&node.fd, &stat, (&node.mount, &node.place), Keep::Nothing)?;
        let stat = file::stat(fd.as_fd(), Freshness::Fresh)?;
        self.answer_created(fd, &node, &stat, (flags, may_map))
    }

    fn answer_created(
        &self,
        fd: Arc<OwnedFd>,
        node: &NodeRef,
        stat: &Stat,
        (flags, may_map): (i32, bool),
    ) -> Answer {
        let counted = self
            .files
            .count(fd)
            .inspect_err(|_| self.nodes.forget(node.id, 1))?;
        let writing = self.note_writer(node, (stat.dev, stat.ino), flags, may_map);
        let unmappable = writing.as_ref().is_some_and(|writing| !writing.may_map);
        let fh = self.files.add(OpenFile {
            fd: counted,
            _keeps_node: Arc::clone(&node.fd),
            is_regular: true,
            is_directory: false,
            is_writable: is_writable(flags),
            mount: Arc::clone(&node.mount),
            place: Arc::clone(&node.place),
            inode: (stat.dev, stat.ino),
            dir_offset: Mutex::new(0),
            is_flocked: AtomicBool::new(false),
            is_adopted: false,
            writing,
        });
        reply(Reply::Entry(Entry {
            node: node.id,
            attr: Some(attr(stat)),
            fh,
            unmappable,
        }))
    }

    pub(super) fn flush(&self, arg: &Flush) -> Answer {
        let open = self.files.get(arg.fh)?;
        self.locks.drop_owner(open.inode, arg.lock_owner);
        if arg.lease != 0 {
            self.export.leases.returned(self.lease_id(arg.lease));
        }
        done()
    }

    pub(super) fn release(&self, arg: &Release) -> Answer {
        let open = self.files.remove(arg.fh)?;
        self.export.leases.closed(&open);
        self.unlock_released(&open);
        done()
    }

    pub(super) fn release_dir(&self, arg: &FhArg) -> Answer {
        self.files.remove(arg.fh)?;
        done()
    }
}

fn is_writable(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Content that is made up as it is read is nobody's to map.
fn counts_as_writing(node: &NodeRef, flags: i32) -> bool {
    is_writable(flags) && node.kind == libc::S_IFREG && !node.mount.is_synthetic
}

/// # Errors
/// `EOPNOTSUPP` for files without a name, `EINVAL` for descriptors without a file.
fn check_flags(flags: i32) -> Result<(), Errno> {
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if flags & libc::O_PATH != 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(())
}

/// Opens a file or directory as the caller. Special files are opened by the peer's own kernel.
fn open_node(who: &Who, node: &NodeRef, flags: i32) -> Result<OwnedFd, Errno> {
    match node.kind {
        libc::S_IFREG | libc::S_IFDIR => {}
        libc::S_IFLNK => return Err(Errno(libc::ELOOP)),
        _ => return Err(Errno(libc::ENXIO)),
    }
    // Of a regular file, not waiting could only mean not waiting for a lease to be given back.
    let mut ours = flags & !NOT_OURS;
    if node.kind == libc::S_IFREG {
        ours &= !libc::O_NONBLOCK;
    }
    if flags & FMODE_EXEC != 0 && node.kind == libc::S_IFREG {
        return open_to_execute(who, node);
    }
    let _as_caller = who.assume()?;
    match file::reopen(node.fd.as_fd(), ours) {
        // An append-only inode (chattr(1), a) opens for writing with O_APPEND alone; elsewhere it
        // is left away because it would also catch writes that have their place.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && flags & libc::O_APPEND != 0 => {
            Ok(file::reopen(node.fd.as_fd(), ours | libc::O_APPEND)?)
        }
        result => Ok(result?),
    }
}

/// A program needs not be readable to be executed.
fn open_to_execute(who: &Who, node: &NodeRef) -> Result<OwnedFd, Errno> {
    {
        let _as_caller = who.assume()?;
        file::access(node.fd.as_fd(), libc::X_OK as u32)?;
    }
    Ok(file::reopen(node.fd.as_fd(), libc::O_RDONLY)?)
}
