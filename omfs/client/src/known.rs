//! Files of the kernel as a journal names them.

use std::sync::Arc;

use proto::ids::{NodeId, Pid};
use proto::v1::{KnownFile, Time};

use super::inodes::{FileKey, Identity, Origin, Path};
use super::namespace::View;

/// No connection's: whatever was known on it has to be found again.
pub const GONE_EPOCH: u64 = u64::MAX;

/// A file's words.
#[must_use]
pub fn describe(id: u64, key: &FileKey, identity: &Identity, origin: &Origin) -> KnownFile {
    let time = |(s, ns)| Time { s, ns };
    let (parent, deputy, name) = match &origin.path {
        Path::Name(parent, name) => (*parent, 0, name),
        Path::Deputy(pid, path) => (0, pid.0, path),
    };
    KnownFile {
        id,
        node: key.node.0,
        view: key.view.0,
        dev: identity.dev,
        ino: identity.ino,
        kind: identity.kind,
        created: identity.created.map(time),
        parent,
        name: name.to_vec(),
        deputy,
        caller: Some((*origin.caller).clone()),
    }
}

/// What they mean.
#[must_use]
pub fn understand(file: &KnownFile) -> (FileKey, Identity, Origin) {
    let key = FileKey {
        node: NodeId(file.node),
        epoch: GONE_EPOCH,
        handle: 0,
        view: View(file.view),
    };
    let identity = Identity {
        dev: file.dev,
        ino: file.ino,
        kind: file.kind,
        created: file.created.map(|time| (time.s, time.ns)),
    };
    let name: Box<[u8]> = file.name.clone().into();
    let path = if file.deputy == 0 {
        Path::Name(file.parent, name)
    } else {
        Path::Deputy(Pid(file.deputy), name)
    };
    let caller = Arc::new(file.caller.clone().unwrap_or_default());
    (key, identity, Origin { path, caller })
}

#[cfg(test)]
mod tests {
    use proto::v1::Caller;

    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        let key = FileKey {
            node: NodeId(2),
            epoch: 7,
            handle: 9,
            view: View::HERE,
        };
        let identity = Identity {
            dev: 3,
            ino: 4,
            kind: libc::S_IFDIR,
            created: Some((5, 6)),
        };
        let caller = Caller {
            uid: 1000,
            groups: vec![5],
            ..Caller::default()
        };
        let name: Box<[u8]> = b"name"[..].into();
        for path in [Path::Name(11, name.clone()), Path::Deputy(Pid(12), name)] {
            let origin = Origin {
                path,
                caller: Arc::new(caller.clone()),
            };
            let file = describe(1, &key, &identity, &origin);
            let (place, again, found) = understand(&file);
            assert_eq!((again, found), (identity, origin));
            assert_eq!((place.node, place.view), (key.node, key.view));
            assert_eq!(place.epoch, GONE_EPOCH);
        }
    }
}
