//! Routing, against services that only note what they are asked.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use proto::ids::Pid;
use proto::v1::{ForgetOne, FsReply, KnownOpen};

use super::*;
use crate::config::{Guest, GuestHomes, RemoteServices, RemoteSession, StatusFiles};
use crate::core::dirs::DirItem;
use crate::journal::Left;
use crate::namespace::{self, ROOT};
use omfs_service::LocalFiles;
use omfs_service::peers::{Liveness, Peer, PeerDirectory};

const ROOT_USER: Who = Who {
    uid: 0,
    gid: 0,
    pid: 0,
};
const USER: Who = Who {
    uid: 7,
    gid: 7,
    pid: 0,
};
const HERE: NodeId = NodeId(1);
const ALIVE: NodeId = NodeId(2);
const DEAD: NodeId = NodeId(3);
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// What it was asked, by whom, and the error that it gives to every lookup, if any.
#[derive(Debug, Default)]
struct Service(Mutex<Vec<Op>>, Mutex<Vec<Caller>>, AtomicI32);

/// A name that starts with "d" is a directory; its number is the sum of its bytes.
fn entry(name: &[u8]) -> Entry {
    let number = name.iter().map(|byte| u64::from(*byte)).sum();
    let mode = if name.starts_with(b"d") {
        DIRECTORY
    } else {
        FILE
    };
    let attr = Attr {
        ino: number,
        mode,
        ..Attr::default()
    };
    Entry {
        node: number,
        fh: 5,
        attr: Some(attr),
        ..Entry::default()
    }
}

impl FileService for Service {
    fn call(
        &self,
        request: &FsRequest,
        _payload: &[u8],
        _cancel: &AtomicBool,
    ) -> Outcome<FsAnswer> {
        let op = request.op.clone().unwrap();
        let error = self.2.load(Ordering::Relaxed);
        if error != 0 && matches!(op, Op::Lookup(_)) {
            return Err(errno(error));
        }
        let result = match &op {
            Op::Lookup(lookup) => Some(Answer::Entry(entry(&lookup.name))),
            Op::Create(create) => Some(Answer::Entry(entry(&create.name))),
            Op::DeputyFile(_) => Some(Answer::Entry(entry(b"file"))),
            Op::GetAttr(_) => Some(Answer::Attr(Attr {
                mode: FILE,
                uid: 99,
                ..Attr::default()
            })),
            _ => None,
        };
        self.0.lock().unwrap().push(op);
        self.1.lock().unwrap().push(request.caller.clone().unwrap());
        Ok(FsAnswer {
            reply: FsReply { result },
            ..FsAnswer::default()
        })
    }
}

impl LocalFiles for Service {
    fn backing_fd(&self, _fh: u64) -> Option<OwnedFd> {
        None
    }
}

/// Three nodes: this one, one alive, one dead; process 42 is a guest of the second.
#[derive(Debug, Default)]
struct World {
    local: Arc<Service>,
    remote: Arc<Service>,
    epoch: AtomicU64,
}

impl PeerDirectory for World {
    fn myself(&self) -> NodeId {
        HERE
    }

    fn peers(&self) -> Vec<Peer> {
        let all = [
            (HERE, Liveness::Myself),
            (ALIVE, Liveness::Alive),
            (DEAD, Liveness::Dead),
        ];
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let peer = |(id, liveness): (NodeId, Liveness)| Peer {
            id,
            name: format!("n{id}"),
            control: address,
            data: address,
            liveness,
        };
        all.map(peer).to_vec()
    }
}

impl RemoteServices for World {
    fn session(&self, node: NodeId) -> Outcome<RemoteSession> {
        if node != ALIVE {
            return Err(errno(libc::EHOSTDOWN));
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        Ok(RemoteSession {
            epoch,
            service: self.remote.clone(),
        })
    }
}

impl GuestHomes for World {
    fn guest(&self, pid: i32) -> Option<Guest> {
        let pid = (pid == 42).then_some(Pid(4711))?;
        Some(Guest { home: ALIVE, pid })
    }
}

impl StatusFiles for World {
    fn names(&self) -> Vec<String> {
        vec!["nodes".into()]
    }

    fn content(&self, name: &str) -> Option<Vec<u8>> {
        (name == "nodes").then(|| b"n1 alive\n".to_vec())
    }
}

fn world() -> (Arc<World>, Core) {
    let world = Arc::new(World::default());
    let config = FsConfig {
        peers: world.clone(),
        local: world.local.clone(),
        remote: world.clone(),
        guests: world.clone(),
        status: world.clone(),
        threads: 3,
        owner_wait: std::time::Duration::ZERO,
        passthrough: false,
    };
    let core = Core::new(config, Journal::none());
    (world, core)
}

/// Walks a path below `/mfs`.
fn walk(core: &Core, who: Who, path: &str) -> Outcome<Found> {
    let mut found = None;
    for name in path.split('/') {
        let parent = found.map_or(ROOT, |found: Found| found.id);
        found = Some(core.lookup(who, parent, name.as_bytes())?);
    }
    Ok(found.unwrap())
}

fn refusal<T: std::fmt::Debug>(outcome: Outcome<T>) -> i32 {
    outcome.unwrap_err().0
}

#[test]
fn each_operation_goes_to_the_owner() {
    let (world, core) = world();
    for (path, remote) in [
        ("n1/d", false),
        ("here/d", false),
        ("1/d", false),
        ("n2/d", true),
    ] {
        assert_eq!(
            core.is_remote(walk(&core, USER, path).unwrap().id),
            remote,
            "{path}"
        );
    }
    assert_eq!(world.local.0.lock().unwrap().len(), 3);
    assert_eq!(world.remote.0.lock().unwrap().len(), 1);
}

#[test]
fn home_is_the_guests_own_node_and_root_there() {
    let (world, core) = world();
    let guest = Who {
        pid: 42,
        ..ROOT_USER
    };
    assert!(core.is_remote(walk(&core, guest, "home/f").unwrap().id));
    assert!(!core.is_remote(walk(&core, ROOT_USER, "home/f").unwrap().id));
    walk(&core, guest, "here/f").unwrap();
    let told = |service: &Service| {
        let all = service.1.lock().unwrap();
        let last = all.last().unwrap();
        (last.from_home_guest, last.guest_pid)
    };
    assert_eq!(told(&world.remote), (true, 4711));
    assert_eq!(told(&world.local), (false, 0));
}

#[test]
fn a_dead_node_is_named_but_down_and_never_asked() {
    let (_, core) = world();
    let root = walk(&core, USER, "n3").unwrap();
    assert_eq!(refusal(core.getattr(USER, root.id, None)), libc::EHOSTDOWN);
    assert_eq!(refusal(core.lookup(USER, root.id, b"x")), libc::EHOSTDOWN);
    assert_eq!(refusal(core.opendir(USER, root.id)), libc::EHOSTDOWN);
    assert_eq!(refusal(walk(&core, USER, "n4")), libc::ENOENT);
    assert_eq!(refusal(walk(&core, USER, "02")), libc::ENOENT);
}

#[test]
fn a_known_directory_stays_unless_its_owner_says_that_it_is_not_there() {
    let (world, core) = world();
    let known = walk(&core, USER, "n2/d").unwrap();
    walk(&core, USER, "n2/f").unwrap();
    let look = |name: &str| walk(&core, USER, &format!("n2/{name}"));
    for error in [libc::EPERM, libc::EHOSTDOWN, libc::EIO, libc::ENFILE] {
        world.remote.2.store(error, Ordering::Relaxed);
        assert_eq!(look("d").unwrap().id, known.id);
        assert_eq!(refusal(look("f")), error, "a file");
        assert_eq!(refusal(look("d2")), error, "a directory nobody knows");
    }
    for error in [libc::ENOENT, libc::EACCES, libc::ESTALE, libc::EINTR] {
        world.remote.2.store(error, Ordering::Relaxed);
        assert_eq!(refusal(look("d")), error);
    }
}

#[test]
fn files_of_an_ended_connection_are_found_again_from_the_top() {
    let (world, core) = world();
    walk(&core, USER, "n2/d/d1/f").unwrap();
    let file = walk(&core, USER, "n2/d/d1/f").unwrap();
    world.epoch.store(1, Ordering::Relaxed);
    world.remote.0.lock().unwrap().clear();
    assert!(core.getattr(ROOT_USER, file.id, None).is_ok());
    let names: Vec<Vec<u8>> = {
        let asked = world.remote.0.lock().unwrap();
        let name = |op: &Op| match op {
            Op::Lookup(lookup) => Some(lookup.name.clone()),
            _ => None,
        };
        asked.iter().filter_map(name).collect()
    };
    assert_eq!(names, [&b"d"[..], b"d1", b"f"]);
    let callers = world.remote.1.lock().unwrap();
    assert!(
        callers
            .iter()
            .rev()
            .skip(1)
            .all(|caller| caller.uid == USER.uid)
    );
    drop(callers);
}

#[test]
fn what_is_open_for_a_successor_is_opened_again_when_it_is_used() {
    let (_, core) = world();
    let directory = walk(&core, USER, "n2/d").unwrap();
    let fh = core.opendir(USER, namespace::ROOT).unwrap();
    let (world, heir) = world();
    let mut files = Vec::new();
    files.extend(core.inodes().all());
    let open = |fh, id, directory| KnownOpen {
        fh,
        id,
        directory,
        ..KnownOpen::default()
    };
    heir.inherit(Left {
        files,
        opens: vec![
            open(fh, namespace::ROOT, true),
            open(77, directory.id, false),
        ],
    });
    let mut names = 0;
    let count = &mut |_: &DirItem| {
        names += 1;
        false
    };
    heir.readdir(USER, fh, 0, count).unwrap();
    assert!(names > 3);
    assert!(
        world.remote.0.lock().unwrap().is_empty(),
        "nobody was asked"
    );
    // The service answers an open with nothing, which is the proof that it was asked.
    assert_eq!(refusal(heir.fsync(USER, 77, false)), libc::EPROTO);
    assert!(heir.opendir(USER, namespace::ROOT).unwrap() > 77);
}

#[test]
fn forgetting_gives_back_what_was_given_in_all() {
    let (world, core) = world();
    let old = walk(&core, USER, "n2/d").unwrap();
    world.epoch.store(1, Ordering::Relaxed);
    assert!(core.getattr(USER, old.id, None).is_ok());
    let new = walk(&core, USER, "n2/d").unwrap();
    assert_eq!(new.id, old.id);
    assert!(core.getattr(USER, old.id, None).is_ok());
    core.forget(old.id, 2);
    let forgets = |op: &Op| matches!(op, Op::Forget(forget) if forget.nodes == [ForgetOne { node: 100, count: 2 }]);
    let asked = world.remote.0.lock().unwrap();
    assert_eq!(
        asked.iter().filter(|op| forgets(op)).count(),
        1,
        "{asked:?}"
    );
}

#[test]
fn nothing_is_renamed_linked_or_copied_between_nodes() {
    let (_, core) = world();
    let (mine, theirs) = (
        walk(&core, USER, "n1").unwrap().id,
        walk(&core, USER, "n2").unwrap().id,
    );
    let renamed = core.rename(USER, (mine, b"a"), (theirs, b"b"), 0);
    assert_eq!(refusal(renamed), libc::EXDEV);
    let file = walk(&core, USER, "n1/f").unwrap().id;
    assert_eq!(refusal(core.link(USER, file, theirs, b"b")), libc::EXDEV);
    let open = |parent| {
        let new = NewName {
            parent,
            name: b"f",
            umask: 0,
        };
        core.create(USER, new, 0o644, libc::O_RDWR).unwrap().1.fh
    };
    let copied = core.copy_file_range(USER, (open(mine), 0), (open(theirs), 0), 1);
    assert_eq!(refusal(copied), libc::EXDEV);
}

#[test]
fn what_omfs_makes_up_cannot_be_changed() {
    let (_, core) = world();
    let new = NewName {
        parent: ROOT,
        name: b"x",
        umask: 0,
    };
    assert_eq!(refusal(core.mkdir(ROOT_USER, new, 0o755)), libc::EPERM);
    assert_eq!(refusal(core.unlink(ROOT_USER, ROOT, b"here")), libc::EPERM);
    let nodes = walk(&core, USER, ".omfs/nodes").unwrap();
    assert_eq!(nodes.attr.size, 9);
    assert_eq!(
        refusal(core.open(ROOT_USER, nodes.id, libc::O_WRONLY)),
        libc::EACCES
    );
    let opened = core.open(USER, nodes.id, libc::O_RDONLY).unwrap();
    assert_eq!(&core.read(USER, opened.fh, 3, 100).unwrap()[..], b"alive\n");
    assert_eq!(&core.read(USER, opened.fh, u64::MAX, 100).unwrap()[..], b"");
}

#[test]
fn what_deputies_have_open_is_for_root_only_and_asked_of_its_node() {
    let (world, core) = world();
    assert_eq!(
        refusal(walk(&core, USER, ".omfs/deputy/n2/7")),
        libc::EACCES
    );
    walk(&core, ROOT_USER, ".omfs/deputy/n2/7/fd/3").unwrap();
    let asked = world.remote.0.lock().unwrap();
    assert!(matches!(asked.last(), Some(Op::DeputyFile(file)) if file.pid == 7));
}

/// The mode that the kernel adds when it wants set-id bits cleared is not the caller's wish.
#[test]
fn truncation_carries_no_mode() {
    let (world, core) = world();
    let file = walk(&core, USER, "n1/f").unwrap().id;
    let change = proto::v1::SetAttr {
        mode: Some(FILE),
        size: Some(0),
        ..Default::default()
    };
    // This service does not know the operation; what it was asked counts.
    let _ = core.setattr(USER, file, change);
    let asked = world.local.0.lock().unwrap();
    assert!(
        matches!(asked.last(), Some(Op::SetAttr(set)) if set.mode.is_none() && set.size == Some(0))
    );
}

#[test]
fn only_root_is_told_what_a_file_is_called_at_its_owner() {
    let (_world, core) = world();
    let root = |node| Synthetic::NodeRoot(View::NAME, node).id();
    let file = walk(&core, ROOT_USER, "n2/file").unwrap();
    let name = format!("trusted.omfs.owners-numbers.{}", file.id);
    let ask = |who, at| core.getxattr(who, at, name.as_bytes(), 64);
    let Ok(attrs::XattrAnswer::Value(value)) = ask(ROOT_USER, root(ALIVE)) else {
        panic!("no answer");
    };
    assert_eq!(value, format!("0 {}", file.attr.ino));
    assert_eq!(refusal(ask(USER, root(ALIVE))), libc::ENODATA);
    let not_its_owner = ask(ROOT_USER, root(HERE));
    assert_eq!(refusal(not_its_owner), libc::ENODATA);
    assert_eq!(refusal(ask(ROOT_USER, file.id)), libc::ENODATA);
}
