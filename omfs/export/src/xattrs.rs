//! Extended attributes. ACLs are among them: the kernel checks and applies `system.posix_acl_*`.

use std::os::fd::AsFd;

use bytes::Bytes;
use proto::v1::{GetXattr, ListXattr, NameArg, SetXattr};

use super::answer::{Answer, c_string, count, data, done};
use super::caller::Who;
use super::{Errno, ExportSession};
use omfs_sys::xattr;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of xattr(7).
const VALUE_BYTES_MAX: usize = 65_536;

impl ExportSession {
    pub(super) fn set_xattr(&self, who: &Who, arg: &SetXattr, value: &[u8]) -> Answer {
        let node = self.node(arg.node)?;
        let name = c_string(&arg.name)?;
        let flags = i32::try_from(arg.flags).map_err(|_| Errno(libc::EINVAL))?;
        let _as_caller = who.assume()?;
        xattr::set(node.fd.as_fd(), &name, value, flags)?;
        done()
    }

    pub(super) fn get_xattr(&self, who: &Who, arg: &GetXattr) -> Answer {
        let node = self.node(arg.node)?;
        let name = c_string(&arg.name)?;
        let _as_caller = who.assume()?;
        read_bounded(arg.max_bytes, |value| {
            xattr::get(node.fd.as_fd(), &name, value)
        })
    }

    pub(super) fn list_xattr(&self, who: &Who, arg: &ListXattr) -> Answer {
        let node = self.node(arg.node)?;
        let _as_caller = who.assume()?;
        read_bounded(arg.max_bytes, |names| xattr::list(node.fd.as_fd(), names))
    }

    pub(super) fn remove_xattr(&self, who: &Who, arg: &NameArg) -> Answer {
        let node = self.node(arg.node)?;
        let name = c_string(&arg.name)?;
        let _as_caller = who.assume()?;
        xattr::remove(node.fd.as_fd(), &name)?;
        done()
    }
}

/// Answers with the bytes, or with their number when there is no room for any.
fn read_bounded(max_bytes: u32, read: impl FnOnce(&mut [u8]) -> std::io::Result<usize>) -> Answer {
    let mut buffer = vec![0; (max_bytes as usize).min(VALUE_BYTES_MAX)];
    let size = read(&mut buffer)?;
    if max_bytes == 0 {
        return count(size as u64);
    }
    buffer.truncate(size);
    data(Bytes::from(buffer))
}
