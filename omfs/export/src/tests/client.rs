//! A peer that speaks to an export in the same process.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use omfs_authz::export::User;
use proto::ids::NodeId;
use proto::v1::fs_reply::Result as Reply;
use proto::v1::fs_request::Op;
use proto::v1::{
    Attr, Caller, Create, Entry, FhArg, Forget, ForgetOne, FsRequest, GetAttr, Lookup, MkDir,
    NameArg, NodeArg, Open, Read, ReadDir, Release, Rename, SetAttr, Write,
};

use crate::exports::Exports;
use crate::jobs::JobHosts;
use crate::limits::Limits;
use crate::users::Users;
use crate::{Errno, Export, ExportConfig, ExportSession, FileService, FsAnswer, SessionPeer};

pub(super) const ROOT: u64 = 1;

/// Node 2, where tests are, has all jobs.
#[derive(Debug)]
struct EverythingAtTwo;

impl JobHosts for EverythingAtTwo {
    fn is_host(&self, _pid: i32, node: NodeId) -> bool {
        node == NodeId(2)
    }
}

/// Users are in the groups that a test last gave them.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeUsers(Arc<Mutex<HashMap<u32, User>>>);

impl Users for FakeUsers {
    fn user(&self, uid: u32, _gid: u32) -> User {
        let known = self.0.lock().expect("users");
        let group_exists = false;
        let unknown = User::Unknown { group_exists };
        known.get(&uid).cloned().unwrap_or(unknown)
    }
}

/// One user at a peer.
#[derive(Debug)]
pub(super) struct Client {
    pub dir: Arc<tempfile::TempDir>,
    pub export: Arc<Export>,
    pub session: Arc<ExportSession>,
    pub caller: Caller,
    pub users: FakeUsers,
}

impl Client {
    /// This process' own user on a fresh directory.
    pub fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("temporary directory"));
        Self::on(dir, Limits::from_process())
    }

    pub fn on(dir: Arc<tempfile::TempDir>, limits: Limits) -> Self {
        let users = FakeUsers::default();
        let mut config = ExportConfig::new(dir.path());
        config.exports = Arc::new(Exports::unsquashed());
        config.users = Arc::new(users.clone());
        config.jobs = Arc::new(EverythingAtTwo);
        let export = Export::with_limits(config, limits).expect("export");
        let session = export.session(SessionPeer {
            node: NodeId(2),
            is_local: false,
        });
        let caller = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            umask: 0o022,
            ..Caller::default()
        };
        Self {
            dir,
            export,
            session,
            caller,
            users,
        }
    }

    /// Another user in the same session.
    pub fn user(&self, uid: u32, gid: u32, groups: &[u32]) -> Self {
        let known = User::Known {
            gid,
            groups: groups.to_vec(),
        };
        self.users.0.lock().expect("users").insert(uid, known);
        let caller = Caller {
            uid,
            gid,
            groups: groups.to_vec(),
            ..self.caller.clone()
        };
        Self {
            dir: Arc::clone(&self.dir),
            export: Arc::clone(&self.export),
            session: Arc::clone(&self.session),
            caller,
            users: self.users.clone(),
        }
    }

    /// The same user in a session of another node.
    pub fn elsewhere(&self) -> Self {
        let session = self.export.session(SessionPeer {
            node: NodeId(3),
            is_local: false,
        });
        Self {
            dir: Arc::clone(&self.dir),
            export: Arc::clone(&self.export),
            session,
            caller: self.caller.clone(),
            users: self.users.clone(),
        }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub fn call_with(&self, op: Op, payload: &[u8]) -> Result<FsAnswer, Errno> {
        let request = FsRequest {
            caller: Some(self.caller.clone()),
            op: Some(op),
        };
        self.session
            .call(&request, payload, &AtomicBool::new(false))
    }

    pub fn call(&self, op: Op) -> Result<FsAnswer, Errno> {
        self.call_with(op, &[])
    }

    fn entry(&self, op: Op) -> Result<Entry, Errno> {
        match self.call(op)?.reply.result {
            Some(Reply::Entry(entry)) => Ok(entry),
            other => panic!("no entry: {other:?}"),
        }
    }

    pub fn lookup(&self, parent: u64, name: &str) -> Result<Entry, Errno> {
        self.entry(Op::Lookup(Lookup {
            parent,
            name: name.into(),
        }))
    }

    /// Looks up one component after the other.
    pub fn walk(&self, path: &str) -> Result<Entry, Errno> {
        let mut entry = Entry {
            node: ROOT,
            ..Entry::default()
        };
        for name in path.split('/') {
            entry = self.lookup(entry.node, name)?;
        }
        Ok(entry)
    }

    pub fn mkdir(&self, parent: u64, name: &str, mode: u32) -> Result<Entry, Errno> {
        self.entry(Op::MkDir(MkDir {
            parent,
            name: name.into(),
            mode,
        }))
    }

    pub fn create(&self, parent: u64, name: &str, mode: u32, flags: i32) -> Result<Entry, Errno> {
        self.entry(Op::Create(Create {
            parent,
            name: name.into(),
            mode,
            flags,
        }))
    }

    pub fn entry_by(&self, op: Op) -> Result<Entry, Errno> {
        self.entry(op)
    }

    pub fn attr(&self, op: Op) -> Result<Attr, Errno> {
        match self.call(op)?.reply.result {
            Some(Reply::Attr(attr)) => Ok(attr),
            other => panic!("no attributes: {other:?}"),
        }
    }

    pub fn get_attr(&self, node: u64) -> Result<Attr, Errno> {
        self.attr(Op::GetAttr(GetAttr { node, fh: None }))
    }

    pub fn set_attr(&self, set: SetAttr) -> Result<Attr, Errno> {
        self.attr(Op::SetAttr(set))
    }

    pub fn opened(&self, op: Op) -> Result<u64, Errno> {
        match self.call(op)?.reply.result {
            Some(Reply::Opened(opened)) => Ok(opened.fh),
            other => panic!("not opened: {other:?}"),
        }
    }

    pub fn open(&self, node: u64, flags: i32) -> Result<u64, Errno> {
        self.opened(Op::Open(Open { node, flags }))
    }

    pub fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Bytes, Errno> {
        Ok(self
            .call(Op::Read(Read {
                fh,
                offset,
                size,
                ..Read::default()
            }))?
            .payload)
    }

    pub fn count_with(&self, op: Op, payload: &[u8]) -> Result<u64, Errno> {
        match self.call_with(op, payload)?.reply.result {
            Some(Reply::Count(count)) => Ok(count.value),
            other => panic!("no count: {other:?}"),
        }
    }

    pub fn write(&self, fh: u64, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
        self.count_with(
            Op::Write(Write {
                fh,
                offset,
                ..Write::default()
            }),
            bytes,
        )
    }

    pub fn append(&self, fh: u64, bytes: &[u8]) -> Result<u64, Errno> {
        self.count_with(
            Op::Write(Write {
                fh,
                append: true,
                ..Write::default()
            }),
            bytes,
        )
    }

    pub fn release(&self, fh: u64) -> Result<(), Errno> {
        self.call(Op::Release(Release {
            fh,
            flock_owner: None,
        }))
        .map(drop)
    }

    pub fn forget(&self, node: u64, count: u64) {
        let nodes = vec![ForgetOne { node, count }];
        self.call(Op::Forget(Forget { nodes }))
            .expect("forget never fails");
    }

    pub fn unlink(&self, parent: u64, name: &str) -> Result<(), Errno> {
        self.call(Op::Unlink(NameArg {
            node: parent,
            name: name.into(),
        }))
        .map(drop)
    }

    pub fn rmdir(&self, parent: u64, name: &str) -> Result<(), Errno> {
        self.call(Op::RmDir(NameArg {
            node: parent,
            name: name.into(),
        }))
        .map(drop)
    }

    pub fn rename(&self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), Errno> {
        let arg = Rename {
            parent: from.0,
            name: from.1.into(),
            new_parent: to.0,
            new_name: to.1.into(),
            flags,
        };
        self.call(Op::Rename(arg)).map(drop)
    }

    /// Reads a whole directory, `max_bytes` at a time.
    pub fn list(&self, node: u64, max_bytes: u32, plus: bool) -> Result<Vec<ListItem>, Errno> {
        let fh = self.opened(Op::OpenDir(NodeArg { node }))?;
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let items = self.list_from(fh, offset, max_bytes, plus)?;
            let Some(last) = items.last() else { break };
            offset = last.next_offset;
            all.extend(items);
        }
        self.call(Op::ReleaseDir(FhArg { fh }))?;
        Ok(all)
    }

    pub fn list_from(
        &self,
        fh: u64,
        offset: i64,
        max_bytes: u32,
        plus: bool,
    ) -> Result<Vec<ListItem>, Errno> {
        let op = Op::ReadDir(ReadDir {
            fh,
            offset,
            max_bytes,
            plus,
        });
        match self.call(op)?.reply.result {
            Some(Reply::DirEntries(entries)) => Ok(entries.entries),
            other => panic!("no entries: {other:?}"),
        }
    }
}

pub(super) type ListItem = proto::v1::DirEntry;

/// Stops a test that would prove nothing without root.
pub(super) fn need_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test acts as other users: run it as root"
    );
}
