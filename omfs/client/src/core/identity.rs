//! What a file is called at its owner.
//!
//! Numbers under `/mfs` are not the owner's: those of several nodes and devices would collide. A
//! guest however has to see of its home's files what it saw at home, since programs compare
//! (SQLite gives up a database whose number changes). Its supervisor asks here.

use bytes::Bytes;
use proto::ids::NodeId;

use super::{Core, Outcome, errno};
use crate::caller::Who;
use crate::inodes::OwnersNumbers;
use crate::namespace::Synthetic;

/// The attribute of a node's root directory that tells device and inode number, in decimal, of the
/// file that has the number behind this here. The kernel lets only CAP_SYS_ADMIN read it.
const PREFIX: &[u8] = b"trusted.omfs.owners-numbers.";

impl Core {
    /// The answer to such an attribute of the inode `root`; `None` for all other attributes.
    pub(super) fn owners_numbers(
        &self,
        who: Who,
        root: u64,
        name: &[u8],
    ) -> Option<Outcome<Bytes>> {
        let id = name.strip_prefix(PREFIX)?;
        let Some(Synthetic::NodeRoot(_, node)) = Synthetic::of(root) else {
            return Some(Err(errno(libc::ENODATA)));
        };
        let asked = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        let found = match asked {
            Some(id) if who.uid == 0 => self.numbers_at(who, node, id),
            _ => Err(errno(libc::ENODATA)),
        };
        Some(found.map(|found| format!("{} {}", found.dev, found.ino).into()))
    }

    fn numbers_at(&self, who: Who, node: NodeId, id: u64) -> Outcome<OwnersNumbers> {
        if let Some(Synthetic::NodeRoot(_, owner)) = Synthetic::of(id) {
            if owner != node {
                return Err(errno(libc::ENODATA));
            }
            let attr = self.getattr(who, id, None)?;
            let (dev, ino) = (attr.dev, attr.ino);
            return Ok(OwnersNumbers { node, dev, ino });
        }
        let found = self.inodes().owners_numbers(id);
        found
            .filter(|found| found.node == node)
            .ok_or(errno(libc::ENODATA))
    }
}
