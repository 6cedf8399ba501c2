//! The directories and files that no node stores: `/mfs`, `/mfs/.omfs` and what is in them.

use proto::v1::{Attr, Time};

use super::{Core, Found, Outcome, errno};
use crate::caller::Who;
use crate::namespace::Synthetic;

const DIRECTORY: u32 = libc::S_IFDIR;
const REGULAR: u32 = libc::S_IFREG;

impl Core {
    /// Refuses callers that may not look into what is for the node's own programs only.
    pub(super) fn check_entry(what: Synthetic, who: Who) -> Outcome<()> {
        if what.is_root_only() && who.uid != 0 {
            return Err(errno(libc::EACCES));
        }
        Ok(())
    }

    pub(super) fn found_synthetic(&self, what: Synthetic) -> Outcome<Found> {
        Ok(Found {
            id: what.id(),
            attr: self.synthetic_attr(what)?,
        })
    }

    pub(super) fn synthetic_attr(&self, what: Synthetic) -> Outcome<Attr> {
        let size = match what {
            Synthetic::Status(index) => self.status_content(index)?.len() as u64,
            _ => 0,
        };
        let mode = match what {
            Synthetic::Status(_) => REGULAR | 0o444,
            _ if what.is_root_only() => DIRECTORY | 0o500,
            _ => DIRECTORY | 0o755,
        };
        let time: Option<Time> = Some(self.started);
        Ok(Attr {
            ino: what.id(),
            size,
            mode,
            nlink: if what.is_directory() { 2 } else { 1 },
            atime: time,
            mtime: time,
            ctime: time,
            blksize: 4096,
            ..Attr::default()
        })
    }

    pub(super) fn status_content(&self, index: usize) -> Outcome<Vec<u8>> {
        let names = self.config.status.names();
        let name = names.get(index).ok_or(errno(libc::ENOENT))?;
        let content = self.config.status.content(name);
        content.ok_or(errno(libc::ENOENT))
    }
}
