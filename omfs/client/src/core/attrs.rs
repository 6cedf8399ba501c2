//! Attributes, extended attributes, access checks, space.

use bytes::Bytes;
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{
    Access, Attr, GetAttr, GetXattr, ListXattr, NameArg, NodeArg, SetAttr, SetXattr, StatFs,
};

use super::{Core, FilePlace, Outcome, Place, attr_of, count_of, errno};
use crate::caller::Who;
use omfs_service::{Errno, FsAnswer};

/// S_ISUID and S_ISGID of `inode(7)`.
const SET_ID_BITS: u32 = 0o6000;
const PERMISSION_BITS: u32 = 0o7777;

/// The answer to a request for an extended attribute.
#[derive(Debug)]
pub enum XattrAnswer {
    /// Its size, when that was asked.
    Size(u32),
    /// Its value.
    Value(Bytes),
}

impl Core {
    pub fn getattr(&self, who: Who, id: u64, fh: Option<u64>) -> Outcome<Attr> {
        self.settle_writes(id);
        let open = fh.and_then(|fh| self.file(fh).ok());
        if let Some(open) = open {
            let op = Op::GetAttr(GetAttr {
                node: open.handle,
                fh: Some(open.fh),
            });
            let caller = self.caller_without_groups(who, open.route.node);
            return attr_of(self.ask(&open.route, caller, op)?);
        }
        match self.place(id)? {
            Place::Synthetic(what) => self.synthetic_attr(what),
            Place::File(place) => {
                let op = Op::GetAttr(GetAttr {
                    node: place.handle,
                    fh: None,
                });
                let caller = self.caller_without_groups(who, place.route.node);
                attr_of(self.ask(&place.route, caller, op)?)
            }
        }
    }

    /// Changes attributes. `change.node` is filled in here; `change.fh` is this session's.
    ///
    /// Clearing set-id bits is the owner's affair: it acts with the caller's identity, so its
    /// own kernel clears them on truncate and chown. The mode that our kernel adds to these
    /// requests for that purpose is dropped, since only the file's owner may change a mode.
    pub fn setattr(&self, who: Who, id: u64, mut change: SetAttr) -> Outcome<Attr> {
        self.settle_for_change(id);
        if change.size.is_some() || change.uid.is_some() || change.gid.is_some() {
            change.mode = None;
        }
        let open = change.fh.take().and_then(|fh| self.file(fh).ok());
        let (route, handle) = match open {
            Some(open) => {
                change.fh = Some(open.fh);
                (open.route.clone(), open.handle)
            }
            None => {
                let place = self.real(id, libc::EPERM)?;
                (place.route, place.handle)
            }
        };
        change.node = handle;
        let op = Op::SetAttr(change);
        let caller = self.caller(who, route.node);
        match self.ask(&route, caller.clone(), op) {
            Ok(answer) => attr_of(answer),
            Err(Errno(libc::EPERM)) if change_is_mode_only(&change) => {
                let place = self.real(id, libc::EPERM)?;
                self.clear_set_id(who, id, &place, change)
            }
            Err(error) => Err(error),
        }
    }

    /// A write through FUSE passthrough makes our kernel ask for the set-id bits to be cleared,
    /// in the writer's name, who need not own the file. Whoever has the file open for writing
    /// may cause that by writing, so it is granted then, and nothing else is.
    fn clear_set_id(
        &self,
        who: Who,
        id: u64,
        place: &FilePlace,
        mut change: SetAttr,
    ) -> Outcome<Attr> {
        let current = self.getattr(who, id, None)?;
        let wanted = change.mode.unwrap_or(current.mode) & PERMISSION_BITS;
        let present = current.mode & PERMISSION_BITS;
        let only_clears = wanted & !SET_ID_BITS == present & !SET_ID_BITS && wanted & !present == 0;
        if !only_clears || !self.opens.has_writer(id) {
            return Err(errno(libc::EPERM));
        }
        change.fh = None;
        change.node = place.handle;
        let mut caller = self.caller_without_groups(who, place.route.node);
        caller.uid = current.uid;
        caller.gid = current.gid;
        attr_of(self.ask(&place.route, caller, Op::SetAttr(change))?)
    }

    pub fn access(&self, who: Who, id: u64, mask: u32) -> Outcome<()> {
        match self.place(id)? {
            Place::Synthetic(what) => {
                Self::check_entry(what, who)?;
                let write = mask & libc::W_OK.cast_unsigned() != 0;
                let execute = mask & libc::X_OK.cast_unsigned() != 0;
                if write || execute && !what.is_directory() {
                    return Err(errno(libc::EACCES));
                }
                Ok(())
            }
            Place::File(place) => {
                let op = Op::Access(Access {
                    node: place.handle,
                    mask,
                });
                let caller = self.caller(who, place.route.node);
                self.ask(&place.route, caller, op).map(drop)
            }
        }
    }

    pub fn statfs(&self, who: Who, id: u64) -> Outcome<StatFs> {
        match self.place(id)? {
            Place::Synthetic(_) => Ok(StatFs {
                bsize: 4096,
                frsize: 4096,
                namelen: 255,
                ..StatFs::default()
            }),
            Place::File(place) => {
                let op = Op::StatFs(NodeArg { node: place.handle });
                let caller = self.caller_without_groups(who, place.route.node);
                match self.ask(&place.route, caller, op)?.reply.result {
                    Some(Answer::StatFs(space)) => Ok(space),
                    _ => Err(errno(libc::EPROTO)),
                }
            }
        }
    }

    pub fn setxattr(
        &self,
        who: Who,
        id: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Outcome<()> {
        let place = self.real(id, libc::EPERM)?;
        let op = Op::SetXattr(SetXattr {
            node: place.handle,
            name: name.to_vec(),
            flags,
        });
        let caller = self.caller(who, place.route.node);
        self.ask_with(&place.route, caller, op, value).map(drop)
    }

    pub fn getxattr(&self, who: Who, id: u64, name: &[u8], size: u32) -> Outcome<XattrAnswer> {
        if let Some(numbers) = self.owners_numbers(who, id, name) {
            let numbers = numbers?;
            return Ok(if size == 0 {
                XattrAnswer::Size(u32::try_from(numbers.len()).unwrap_or(u32::MAX))
            } else if numbers.len() > size as usize {
                return Err(errno(libc::ERANGE));
            } else {
                XattrAnswer::Value(numbers)
            });
        }
        let place = self.real(id, libc::ENODATA)?;
        let op = Op::GetXattr(GetXattr {
            node: place.handle,
            name: name.to_vec(),
            max_bytes: size,
        });
        let caller = self.caller(who, place.route.node);
        xattr_answer(self.ask(&place.route, caller, op)?, size)
    }

    pub fn listxattr(&self, who: Who, id: u64, size: u32) -> Outcome<XattrAnswer> {
        let place = match self.place(id)? {
            Place::Synthetic(_) if size == 0 => return Ok(XattrAnswer::Size(0)),
            Place::Synthetic(_) => return Ok(XattrAnswer::Value(Bytes::new())),
            Place::File(place) => place,
        };
        let op = Op::ListXattr(ListXattr {
            node: place.handle,
            max_bytes: size,
        });
        let caller = self.caller(who, place.route.node);
        xattr_answer(self.ask(&place.route, caller, op)?, size)
    }

    pub fn removexattr(&self, who: Who, id: u64, name: &[u8]) -> Outcome<()> {
        let place = self.real(id, libc::EPERM)?;
        let op = Op::RemoveXattr(NameArg {
            node: place.handle,
            name: name.to_vec(),
        });
        let caller = self.caller(who, place.route.node);
        self.ask(&place.route, caller, op).map(drop)
    }
}

fn change_is_mode_only(change: &SetAttr) -> bool {
    let others = change.size.is_some() || change.uid.is_some() || change.gid.is_some();
    change.mode.is_some() && !others && change.atime.is_none() && change.mtime.is_none()
}

fn xattr_answer(answer: FsAnswer, size: u32) -> Outcome<XattrAnswer> {
    if size == 0 {
        let count = u32::try_from(count_of(&answer)?).map_err(|_| errno(libc::E2BIG))?;
        return Ok(XattrAnswer::Size(count));
    }
    if answer.payload.len() > size as usize {
        return Err(errno(libc::ERANGE));
    }
    Ok(XattrAnswer::Value(answer.payload))
}
