//! A kernel made of a socket: every request that is answered waits for an owner that restarts.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fuser::SessionACL;
use proto::ids::{NodeId, Pid};
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{Attr, Count, DirEntries, Entry, FsReply, FsRequest, Lock, Opened, StatFs};

use super::succession::init_request;
use super::{Adapter, options};
use crate::config::{FsConfig, Guest, GuestHomes, NoStatus, RemoteServices, RemoteSession};
use crate::journal::Journal;
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use omfs_service::{Errno, FileService, FsAnswer, LocalFiles};

const OWNER: NodeId = NodeId(2);
const FILE: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;
const ROOT: u64 = 1;

/// Node 1 with an owner beside it that fails as often as it is told to. This process is a guest of the
/// owner's, if there are guests.
#[derive(Debug, Default)]
struct World {
    failures: AtomicUsize,
    has_guests: AtomicBool,
}

impl FileService for World {
    fn call(&self, request: &FsRequest, _: &[u8], _: &AtomicBool) -> Result<FsAnswer, Errno> {
        let take = |left: usize| left.checked_sub(1);
        let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
        if self.failures.fetch_update(set, get, take).is_ok() {
            return Err(Errno(libc::EHOSTDOWN));
        }
        let result = request.op.as_ref().and_then(answer);
        Ok(FsAnswer {
            reply: FsReply { result },
            ..FsAnswer::default()
        })
    }
}

fn attr(mode: u32, ino: u64) -> Attr {
    Attr {
        mode,
        ino,
        ..Attr::default()
    }
}

fn answer(op: &Op) -> Option<Answer> {
    let entry = |mode, ino| {
        Answer::Entry(Entry {
            node: ino,
            attr: Some(attr(mode, ino)),
            fh: 7,
            ..Entry::default()
        })
    };
    Some(match op {
        Op::Lookup(lookup) if lookup.name == b"d" => entry(DIRECTORY, 20),
        Op::Lookup(_) => entry(FILE, 21),
        Op::MkDir(_) => entry(DIRECTORY, 22),
        Op::MkNod(_) | Op::Link(_) | Op::Create(_) => entry(FILE, 21),
        Op::Symlink(_) => entry(0o120_777, 23),
        Op::GetAttr(_) | Op::SetAttr(_) => Answer::Attr(attr(FILE, 21)),
        Op::Open(_) | Op::OpenDir(_) => Answer::Opened(Opened {
            fh: 7,
            ..Opened::default()
        }),
        Op::ReadDir(_) => Answer::DirEntries(DirEntries::default()),
        Op::StatFs(_) => Answer::StatFs(StatFs::default()),
        Op::GetLock(lock) => Answer::Lock(Lock { r#type: 2, ..*lock }),
        Op::Write(_) | Op::Lseek(_) | Op::CopyFileRange(_) => Answer::Count(Count { value: 0 }),
        _ => return None,
    })
}

impl LocalFiles for World {
    fn backing_fd(&self, _fh: u64) -> Option<OwnedFd> {
        None
    }
}

impl PeerDirectory for World {
    fn myself(&self) -> NodeId {
        NodeId(1)
    }

    fn peers(&self) -> Vec<Peer> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let peer = |(id, liveness)| Peer {
            id: NodeId(id),
            name: format!("n{id}"),
            control: address,
            data: address,
            liveness,
        };
        [(1, Liveness::Myself), (2, Liveness::Alive)]
            .map(peer)
            .to_vec()
    }
}

#[derive(Debug)]
struct Owner(Arc<World>);

impl RemoteServices for Owner {
    fn session(&self, _node: NodeId) -> Result<RemoteSession, Errno> {
        Ok(RemoteSession {
            epoch: 1,
            service: self.0.clone(),
        })
    }
}

impl GuestHomes for World {
    fn guest(&self, _pid: i32) -> Option<Guest> {
        let is_guest = self.has_guests.load(Ordering::SeqCst);
        is_guest.then_some(Guest {
            home: OWNER,
            pid: Pid(4711),
        })
    }
}

/// The kernel's end of a session.
struct Kernel {
    world: Arc<World>,
    socket: UnixDatagram,
    unique: u64,
}

/// Words of 64 bits, then names.
fn body(words: &[u64], names: &[&[u8]]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    for name in names {
        bytes.extend_from_slice(name);
        bytes.push(0);
    }
    bytes
}

impl Kernel {
    fn new(owner_wait: Duration) -> Self {
        let world: Arc<World> = Arc::default();
        let config = FsConfig {
            peers: world.clone(),
            local: world.clone(),
            remote: Arc::new(Owner(world.clone())),
            guests: world.clone(),
            status: Arc::new(NoStatus),
            threads: 3,
            owner_wait,
            passthrough: false,
        };
        let fuse = std::fs::File::open("/dev/null").unwrap().into();
        let adapter = Adapter::new(&fuse, config, Journal::none()).unwrap();
        let (socket, ours) = UnixDatagram::pair().unwrap();
        socket.send(&init_request()).unwrap();
        let session =
            fuser::Session::from_fd(adapter, ours.into(), SessionACL::All, options(3)).unwrap();
        socket.recv(&mut [0; 1024]).unwrap();
        // The session lasts as long as this test's process.
        std::mem::forget(session.spawn().unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            world,
            socket,
            unique: 10,
        }
    }

    /// The error and the rest of the reply.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        self.unique += 2;
        let length = u32::try_from(40 + body.len()).unwrap();
        let mut message = Vec::new();
        for word in [length, opcode] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [self.unique, node] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [0, 0, std::process::id(), 0] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        self.socket.send(&message).unwrap();
        let mut reply = vec![0; 65536];
        let length = self.socket.recv(&mut reply).unwrap();
        reply.truncate(length);
        assert_eq!(
            reply[8..16],
            self.unique.to_ne_bytes(),
            "of another request"
        );
        let error = i32::from_ne_bytes(reply[4..8].try_into().unwrap());
        (error, reply.split_off(16))
    }

    /// The first word of a reply: a number of a file or of something open.
    fn number(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        let (error, reply) = self.ask(opcode, node, body);
        assert_eq!(error, 0, "opcode {opcode}");
        u64::from_ne_bytes(reply[..8].try_into().unwrap())
    }
}

/// What is asked about: a directory and a file of the owner's, and both of them open.
struct Known {
    directory: u64,
    file: u64,
    fh: u64,
    dir_fh: u64,
}

fn known(kernel: &mut Kernel) -> Known {
    let node = kernel.number(1, ROOT, &body(&[], &[b"n2"]));
    let directory = kernel.number(1, node, &body(&[], &[b"d"]));
    let file = kernel.number(1, directory, &body(&[], &[b"f"]));
    Known {
        directory,
        file,
        fh: kernel.number(14, file, &body(&[2], &[])),
        dir_fh: kernel.number(27, directory, &body(&[0], &[])),
    }
}

/// Every request that has an answer for its caller, and that asks the owner (`include/uapi/linux/fuse.h`).
fn requests(known: &Known) -> Vec<(&'static str, u32, u64, Vec<u8>)> {
    let Known {
        directory,
        file,
        fh,
        dir_fh,
    } = *known;
    let name: &[&[u8]] = &[b"f"];
    let names: &[&[u8]] = &[b"f", b"g"];
    let lock = &[fh, 9, 0, 10, 1, 0][..];
    vec![
        ("lookup", 1, directory, body(&[], name)),
        ("getattr", 3, file, body(&[0, 0], &[])),
        (
            "setattr",
            4,
            file,
            body(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
        ),
        ("readlink", 5, file, Vec::new()),
        ("symlink", 6, directory, body(&[], names)),
        ("mknod", 8, directory, body(&[0o100_644, 0], name)),
        ("mkdir", 9, directory, body(&[0o755], name)),
        ("unlink", 10, directory, body(&[], name)),
        ("rmdir", 11, directory, body(&[], name)),
        ("rename", 12, directory, body(&[directory], names)),
        ("link", 13, directory, body(&[file], name)),
        ("open", 14, file, body(&[0], &[])),
        ("read", 15, file, body(&[fh, 0, 0x2_0000_0001, 0, 0], &[])),
        ("write", 16, file, body(&[fh, 0, 1, 0, 0], &[b""])),
        ("statfs", 17, file, Vec::new()),
        ("fsync", 20, file, body(&[fh, 0], &[])),
        ("setxattr", 21, file, body(&[1], &[b"user.a", b""])),
        ("getxattr", 22, file, body(&[10], &[b"user.a"])),
        ("listxattr", 23, file, body(&[10], &[])),
        ("removexattr", 24, file, body(&[], &[b"user.a"])),
        ("opendir", 27, directory, body(&[0], &[])),
        (
            "readdir",
            28,
            directory,
            body(&[dir_fh, 0, 4096, 0, 0], &[]),
        ),
        ("fsyncdir", 30, directory, body(&[dir_fh, 0], &[])),
        ("getlk", 31, file, body(lock, &[])),
        ("setlk", 32, file, body(lock, &[])),
        ("setlkw", 33, file, body(lock, &[])),
        ("access", 34, file, body(&[4], &[])),
        ("create", 35, directory, body(&[0, 0], name)),
        ("fallocate", 43, file, body(&[fh, 0, 10, 0], &[])),
        ("rename2", 45, directory, body(&[directory, 0], names)),
        ("lseek", 46, file, body(&[fh, 0, 3], &[])),
        (
            "copy_file_range",
            47,
            file,
            body(&[fh, 0, file, fh, 20, 10, 0], &[]),
        ),
    ]
}

/// Asks everything of an owner that is away for a moment; the requests that failed therefore.
fn failing(kernel: &mut Kernel) -> Vec<&'static str> {
    let known = known(kernel);
    let mut failed = Vec::new();
    for (name, opcode, node, body) in requests(&known) {
        kernel.world.failures.store(2, Ordering::SeqCst);
        let (error, _) = kernel.ask(opcode, node, &body);
        let left = kernel.world.failures.swap(0, Ordering::SeqCst);
        if error == -libc::EHOSTDOWN {
            failed.push(name);
        } else {
            assert_eq!((error, left), (0, 0), "{name} has not asked its owner");
        }
    }
    failed
}

#[test]
fn every_request_of_a_guest_waits_for_its_home() {
    let mut kernel = Kernel::new(Duration::ZERO);
    kernel.world.has_guests.store(true, Ordering::SeqCst);
    assert_eq!(failing(&mut kernel), [""; 0]);
}

#[test]
fn every_request_of_a_user_waits_unless_it_may_have_been_carried_out() {
    let mut kernel = Kernel::new(Duration::from_secs(10));
    let unsure = [
        "symlink",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "rename",
        "link",
        "removexattr",
        "create",
        "rename2",
    ];
    assert_eq!(failing(&mut kernel), unsure);
}

#[test]
fn nobody_waits_longer_than_is_configured() {
    let mut kernel = Kernel::new(Duration::from_millis(50));
    let known = known(&mut kernel);
    kernel.world.failures.store(usize::MAX, Ordering::SeqCst);
    let began = std::time::Instant::now();
    let (error, _) = kernel.ask(3, known.file, &body(&[0, 0], &[]));
    assert_eq!(error, -libc::EHOSTDOWN);
    assert!(began.elapsed() >= Duration::from_millis(50));
}
