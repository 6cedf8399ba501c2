//! Names to files.

use proto::ids::{NodeId, Pid};
use proto::v1::fs_request::Op;
use proto::v1::{DeputyFile, Lookup};

use omfs_service::Errno;

use super::{Core, FilePlace, Found, Outcome, Place, entry_of, errno};
use crate::caller::Who;
use crate::inodes::Path;
use crate::namespace::{self, Synthetic, View};

impl Core {
    /// Finds a name in a directory.
    ///
    /// A directory that is known stays where it is while its owner cannot be asked, or does not
    /// answer this caller: an error would make the kernel take all mounts away that are on it or
    /// below, every guest's /proc among them, in all namespaces. Whoever uses the directory itself
    /// is told what is wrong.
    pub fn lookup(&self, who: Who, parent: u64, name: &[u8]) -> Outcome<Found> {
        let found = self.lookup_now(who, parent, name);
        match found.and_then(|found| self.check_special(who, found)) {
            Err(problem) if !is_about_the_name(problem) => {
                let known = self.inodes().directory_again(parent, name);
                known.map_or(Err(problem), |(id, attr)| Ok(Found { id, attr }))
            }
            outcome => outcome,
        }
    }

    fn lookup_now(&self, who: Who, parent: u64, name: &[u8]) -> Outcome<Found> {
        match self.place(parent)? {
            Place::File(place) => self.lookup_file(who, parent, &place, name),
            Place::Synthetic(what) => {
                Self::check_entry(what, who)?;
                self.lookup_synthetic(who, what, name)
            }
        }
    }

    fn lookup_file(&self, who: Who, parent: u64, place: &FilePlace, name: &[u8]) -> Outcome<Found> {
        let op = Op::Lookup(Lookup {
            parent: place.handle,
            name: name.to_vec(),
        });
        let caller = self.caller(who, place.route.node);
        match self.ask(&place.route, caller.clone(), op) {
            Ok(answer) => {
                let origin = self.origin(caller, Path::Name(parent, name.into()));
                let entry = entry_of(answer)?;
                let mut found = self.remember(&place.route, place.view, entry, &origin)?;
                if self.is_writing_behind(found.id) {
                    found.attr = self.getattr(who, found.id, None)?;
                }
                Ok(found)
            }
            // The owner's own `/mfs` (docs/export.md).
            Err(Errno(libc::ELOOP)) => self.found_synthetic(namespace::mount_point(parent, name)),
            Err(error) => Err(error),
        }
    }

    fn lookup_synthetic(&self, who: Who, parent: Synthetic, name: &[u8]) -> Outcome<Found> {
        match parent {
            Synthetic::Root => self.found_synthetic(self.root_name(who, name)?),
            Synthetic::Omfs => self.found_synthetic(self.omfs_name(name)?),
            Synthetic::Deputies => {
                let (_, node) = self.node_named(name).ok_or(errno(libc::ENOENT))?;
                self.found_synthetic(Synthetic::DeputyNode(node))
            }
            Synthetic::DeputyNode(node) => {
                let pid = namespace::parse_pid(name).ok_or(errno(libc::ENOENT))?;
                self.found_synthetic(Synthetic::Deputy(node, pid))
            }
            Synthetic::Deputy(node, pid) => self.deputy_name(who, node, pid, name),
            Synthetic::DeputyFds(node, pid) => {
                self.deputy_file(who, node, pid, &[b"fd/", name].concat())
            }
            Synthetic::DeputyMaps(node, pid) => {
                self.deputy_file(who, node, pid, &[b"map_files/", name].concat())
            }
            Synthetic::MountPoint(_) => Err(errno(libc::ELOOP)),
            Synthetic::Status(_) | Synthetic::NodeRoot(..) => Err(errno(libc::ENOTDIR)),
        }
    }

    /// `here`, `home`, a node's name, a node's id. The owner is not asked: a directory entry must
    /// stay where mounts may be on it, even while its node is down.
    fn root_name(&self, who: Who, name: &[u8]) -> Outcome<Synthetic> {
        match name {
            b".omfs" => Ok(Synthetic::Omfs),
            b"here" => Ok(Synthetic::NodeRoot(View::HERE, self.myself())),
            b"home" => Ok(Synthetic::NodeRoot(View::HOME, self.home_of(who))),
            _ => match self.node_named(name) {
                Some((view, node)) => Ok(Synthetic::NodeRoot(view, node)),
                None => Err(errno(libc::ENOENT)),
            },
        }
    }

    fn node_named(&self, name: &[u8]) -> Option<(View, NodeId)> {
        let text = std::str::from_utf8(name).ok()?;
        let peer = self.config.peers.by_name_or_id(text)?;
        if peer.name == text {
            return Some((View::NAME, peer.id));
        }
        namespace::parse_decimal(name).map(|_| (View::ID, peer.id))
    }

    fn omfs_name(&self, name: &[u8]) -> Outcome<Synthetic> {
        if name == b"deputy" {
            return Ok(Synthetic::Deputies);
        }
        let names = self.config.status.names();
        let index = names.iter().position(|known| known.as_bytes() == name);
        index.and_then(namespace::status).ok_or(errno(libc::ENOENT))
    }

    fn deputy_name(&self, who: Who, node: NodeId, pid: Pid, name: &[u8]) -> Outcome<Found> {
        match name {
            b"fd" => self.found_synthetic(Synthetic::DeputyFds(node, pid)),
            b"map_files" => self.found_synthetic(Synthetic::DeputyMaps(node, pid)),
            _ => self.deputy_file(who, node, pid, name),
        }
    }

    /// `path` is what follows the deputy's directory.
    fn deputy_file(&self, who: Who, node: NodeId, pid: Pid, path: &[u8]) -> Outcome<Found> {
        let what = namespace::deputy_what(path).ok_or(errno(libc::ENOENT))?;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let route = self.route(node)?;
        let op = Op::DeputyFile(DeputyFile {
            pid: pid.0,
            what: Some(what),
        });
        let caller = self.caller(who, node);
        let answer = self.ask(&route, caller.clone(), op)?;
        let origin = self.origin(caller, Path::Deputy(pid, path.into()));
        let view = View::deputy(node, pid, name);
        self.remember(&route, view, entry_of(answer)?, &origin)
    }
}

/// Whether a lookup failed because of what is there and who may see it, as path_resolution(7) has
/// it, or because the caller has been interrupted. All else says nothing about the name: EPERM, for
/// one, is said to a guest that has ended, or that belongs to another home.
fn is_about_the_name(error: Errno) -> bool {
    use libc::{EACCES, EINTR, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ESTALE};
    let errors = [
        EACCES,
        EINTR,
        EINVAL,
        ELOOP,
        ENAMETOOLONG,
        ENOENT,
        ENOTDIR,
        ESTALE,
    ];
    errors.contains(&error.0)
}
