//! Leases from end to end, but for the kernel's FUSE: two clients, an owner, and programs that use
//! the owner's files natively.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::config::{NoGuests, NoStatus, RemoteServices, RemoteSession};
use crate::journal::Journal;
use crate::namespace::ROOT;
use omfs_dataplane::{Remotes, Server};
use omfs_export::exports::Exports;
use omfs_export::{Export, ExportConfig};
use omfs_service::SessionPeer;
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use omfs_testing::lateness::Lateness;
use omfs_testing::network::{FakePeers, Proxy, local};
use omfs_testing::pki::TestCluster;

mod model;
mod unsent;

const WHO: Who = Who {
    uid: 0,
    gid: 0,
    pid: 0,
};
const PIECE: u32 = 32 << 10;

#[derive(Debug)]
struct Owner {
    dir: tempfile::TempDir,
    cluster: TestCluster,
    server: Server,
}

/// A client knows the owner as node 1 and itself as node 2, whatever its certificate says.
#[derive(Debug)]
struct World {
    peers: FakePeers,
    remotes: Arc<Remotes>,
}

impl PeerDirectory for World {
    fn myself(&self) -> NodeId {
        self.peers.myself()
    }

    fn peers(&self) -> Vec<Peer> {
        self.peers.peers()
    }
}

impl RemoteServices for World {
    fn session(&self, node: NodeId) -> Outcome<RemoteSession> {
        let session = self.remotes.session(node)?;
        Ok(RemoteSession {
            epoch: session.epoch(),
            service: session,
        })
    }
}

impl Owner {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = TestCluster::new("lab");
        let mut config = ExportConfig::new(dir.path());
        config.exports = Arc::new(Exports::unsquashed());
        let export = Export::new(config).unwrap();
        let factory = move |node, _: &_| {
            let is_local = false;
            Ok(export.session(SessionPeer { node, is_local }) as Arc<dyn FileService>)
        };
        let listener = TcpListener::bind(local(0)).unwrap();
        let first = cluster.first.clone();
        let server = Server::start(listener, first, 1, Box::new(factory)).unwrap();
        Self {
            dir,
            cluster,
            server,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, id: u32) -> Core {
        self.client_at(id, self.server.address())
    }

    fn client_at(&self, id: u32, address: std::net::SocketAddr) -> Core {
        self.client_with(id, address, Journal::none())
    }

    fn client_with(&self, id: u32, address: std::net::SocketAddr, journal: Journal) -> Core {
        let peers = || FakePeers(Mutex::new((address, Liveness::Alive)));
        let remotes = Remotes::new(self.cluster.join(id), Arc::new(peers()), 1);
        let world = Arc::new(World {
            peers: peers(),
            remotes,
        });
        let own = Export::new(ExportConfig::new(self.dir.path())).unwrap();
        let node = NodeId(2);
        let config = FsConfig {
            peers: world.clone(),
            local: own.session(SessionPeer {
                node,
                is_local: true,
            }),
            remote: world,
            guests: Arc::new(NoGuests),
            status: Arc::new(NoStatus),
            threads: 3,
            owner_wait: Duration::ZERO,
            passthrough: false,
        };
        Core::new(config, journal)
    }
}

fn find(core: &Core, name: &str) -> u64 {
    let root = core.lookup(WHO, ROOT, b"n1").unwrap().id;
    core.lookup(WHO, root, name.as_bytes()).unwrap().id
}

fn open(core: &Core, name: &str, flags: i32) -> u64 {
    core.open(WHO, find(core, name), flags).unwrap().fh
}

fn is_leased(core: &Core, fh: u64) -> bool {
    let open = core.opens.file(fh).unwrap();
    open.ahead.as_ref().is_some_and(|ahead| ahead.is_leased())
}

fn content(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at + seed) % 251) as u8).collect()
}

/// Reads on until a lease is held; returns where.
fn read_until_leased(core: &Core, fh: u64, expected: &[u8]) -> usize {
    let mut at = 0;
    while !is_leased(core, fh) {
        let data = core.read(WHO, fh, at as u64, PIECE).unwrap();
        assert!(!data.is_empty(), "no lease until the end of the file");
        assert_eq!(data, expected[at..at + data.len()]);
        at += data.len();
    }
    at
}

#[test]
fn a_whole_file_read_ahead_is_the_file() {
    let owner = Owner::new();
    let expected = content(1, (9 << 20) + 12_345);
    fs::write(owner.path("f"), &expected).unwrap();
    let core = owner.client(2);
    let fh = open(&core, "f", libc::O_RDONLY);
    let mut seen = Vec::new();
    loop {
        let data = core.read(WHO, fh, seen.len() as u64, PIECE).unwrap();
        if data.is_empty() {
            break;
        }
        seen.extend_from_slice(&data);
    }
    assert!(seen == expected);
    assert!(is_leased(&core, fh));
    core.release(WHO, fh, None).unwrap();
    assert_eq!(
        core.kept_bytes.load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[test]
fn a_native_writer_waits_for_the_lease_and_its_write_is_seen() {
    let owner = Owner::new();
    let old = content(1, 4 << 20);
    fs::write(owner.path("f"), &old).unwrap();
    let core = owner.client(2);
    let fh = open(&core, "f", libc::O_RDONLY);
    let at = read_until_leased(&core, fh, &old);
    let new = content(2, 4 << 20);
    let (began, late) = (Instant::now(), Lateness::watch());
    let file = OpenOptions::new()
        .write(true)
        .open(owner.path("f"))
        .unwrap();
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(2) + late.total(),
        "the lease was not given back"
    );
    file.write_all_at(&new, 0).unwrap();
    let data = core.read(WHO, fh, at as u64, PIECE).unwrap();
    assert_eq!(data, new[at..at + data.len()]);
    assert!(!is_leased(&core, fh));
}

#[test]
fn a_file_that_is_being_written_natively_is_not_leased() {
    let owner = Owner::new();
    fs::write(owner.path("f"), content(1, 1 << 20)).unwrap();
    let writer = OpenOptions::new()
        .write(true)
        .open(owner.path("f"))
        .unwrap();
    let core = owner.client(2);
    let fh = open(&core, "f", libc::O_RDONLY);
    for at in 0..16 {
        let offset = u64::from(at * PIECE);
        writer.write_all_at(&[at as u8; 9], offset).unwrap();
        let data = core.read(WHO, fh, offset, PIECE).unwrap();
        assert_eq!(data[..9], [at as u8; 9]);
        assert!(!is_leased(&core, fh));
    }
}

#[test]
fn a_writer_of_the_same_node_and_one_of_another_are_seen() {
    let owner = Owner::new();
    let old = content(1, 2 << 20);
    fs::write(owner.path("f"), &old).unwrap();
    let (reader, other) = (owner.client(2), owner.client(3));
    let fh = open(&reader, "f", libc::O_RDONLY);
    for (step, writer) in [(1, &reader), (2, &other)] {
        // Let the time pass after which a lease may be asked for again.
        let until = Instant::now() + Duration::from_secs(20);
        while !is_leased(&reader, fh) {
            assert!(Instant::now() < until);
            for at in 0..8 {
                reader.read(WHO, fh, u64::from(at * PIECE), PIECE).unwrap();
            }
        }
        let to = open(writer, "f", libc::O_WRONLY);
        writer.write(WHO, to, 9, &[step; 100_000], false).unwrap();
        let data = reader.read(WHO, fh, 0, PIECE).unwrap();
        assert_eq!(data[9..], [step; PIECE as usize - 9]);
        writer.release(WHO, to, None).unwrap();
    }
}

fn is_held_back(core: &Core, fh: u64) -> bool {
    let open = core.opens.file(fh).unwrap();
    open.behind
        .as_ref()
        .is_some_and(|behind| behind.is_leased())
}

/// Writes on until a lease is held; returns where.
fn write_until_leased(core: &Core, fh: u64, byte: u8) -> u64 {
    let mut at = 0;
    let until = Instant::now() + Duration::from_secs(20);
    while !is_held_back(core, fh) {
        assert!(Instant::now() < until, "no lease");
        let data = vec![byte; PIECE as usize];
        assert_eq!(core.write(WHO, fh, at, &data, false), Ok(PIECE));
        at += u64::from(PIECE);
    }
    at
}

/// A new file that its client may write behind, which has 1000 bytes after so many on the way.
fn held_back(core: &Core) -> (u64, u64) {
    let fh = create(core, "f");
    let at = write_until_leased(core, fh, 1);
    core.write(WHO, fh, at, &[2; 1000], false).unwrap();
    (fh, at)
}

fn create(core: &Core, name: &str) -> u64 {
    let root = core.lookup(WHO, ROOT, b"n1").unwrap().id;
    let new = NewName {
        parent: root,
        name: name.as_bytes(),
        umask: 0,
    };
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    core.create(WHO, new, 0o644, flags).unwrap().1.fh
}

#[test]
fn what_is_held_back_is_seen_by_whoever_opens_the_file() {
    let owner = Owner::new();
    let core = owner.client(2);
    let fh = create(&core, "f");
    let mut at = write_until_leased(&core, fh, 1);
    for _ in 0..3 {
        core.write(WHO, fh, at, &[2; 1000], false).unwrap();
        at += 1000;
    }
    // Natively, with the lease broken by open(2).
    let seen = fs::read(owner.path("f")).unwrap();
    assert_eq!(seen.len() as u64, at);
    assert!(seen[seen.len() - 3000..].iter().all(|byte| *byte == 2));
    core.write(WHO, fh, at, &[3; 1000], false).unwrap();
    assert_eq!(fs::read(owner.path("f")).unwrap().len() as u64, at + 1000);
    core.release(WHO, fh, None).unwrap();
}

#[test]
fn what_is_held_back_is_seen_by_other_nodes_attributes_and_lookups() {
    let owner = Owner::new();
    let (core, other) = (owner.client(2), owner.client(3));
    let (fh, at) = held_back(&core);
    let id = find(&core, "f");
    assert_eq!(core.getattr(WHO, id, None).unwrap().size, at + 1000);
    core.write(WHO, fh, at + 1000, &[2; 1000], false).unwrap();
    let root = other.lookup(WHO, ROOT, b"n1").unwrap().id;
    let found = other.lookup(WHO, root, b"f").unwrap();
    assert_eq!(found.attr.size, at + 2000);
}

#[test]
fn what_is_held_back_arrives_soon_and_with_close() {
    let owner = Owner::new();
    let core = owner.client(2);
    let (fh, at) = held_back(&core);
    let size = || fs::metadata(owner.path("f")).unwrap().len();
    let until = Instant::now() + Duration::from_secs(20);
    while size() < at + 1000 {
        assert!(Instant::now() < until, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
    core.write(WHO, fh, at + 1000, &[2; 1000], false).unwrap();
    core.flush(WHO, fh, 1).unwrap();
    assert_eq!(size(), at + 2000);
}

#[test]
fn after_close_the_next_opener_need_not_wait() {
    let owner = Owner::new();
    let core = owner.client(2);
    let (fh, at) = held_back(&core);
    core.flush(WHO, fh, 1).unwrap();
    let open = || {
        let mut options = fs::File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open(owner.path("f"))
    };
    assert_eq!(open().unwrap().metadata().unwrap().len(), at + 1000);
    let again = write_until_leased(&core, fh, 3);
    assert!(again > 0, "a lease is asked for again");
    let would_wait = open().map(drop).unwrap_err().kind();
    assert_eq!(would_wait, std::io::ErrorKind::WouldBlock);
    core.flush(WHO, fh, 1).unwrap();
    open().unwrap();
}

#[test]
fn bytes_that_are_lost_are_told_of_at_fsync_and_close() {
    let owner = Owner::new();
    let proxy = Proxy::new(owner.server.address());
    let core = owner.client_at(2, proxy.address);
    let fh = create(&core, "f");
    let at = write_until_leased(&core, fh, 1);
    proxy.hold(true);
    core.write(WHO, fh, at, &[2; 1000], false).unwrap();
    assert!(core.fsync(WHO, fh, true).is_err());
    assert!(core.flush(WHO, fh, 1).is_err());
    assert!(core.write(WHO, fh, at + 1000, &[2; 1000], false).is_err());
}

/// The promise of the whole: once an opener has got through, the client never shows old data.
#[test]
fn a_client_that_cannot_be_reached_shows_nothing_old() {
    let owner = Owner::new();
    let old = content(1, 4 << 20);
    fs::write(owner.path("f"), &old).unwrap();
    let proxy = Proxy::new(owner.server.address());
    let core = owner.client_at(2, proxy.address);
    let fh = open(&core, "f", libc::O_RDONLY);
    let at = read_until_leased(&core, fh, &old);
    proxy.hold(true);
    let (began, late) = (Instant::now(), Lateness::watch());
    let mut file = OpenOptions::new()
        .write(true)
        .open(owner.path("f"))
        .unwrap();
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(1500), "{waited:?}");
    assert!(
        waited < Duration::from_secs(10) + late.total(),
        "{waited:?}"
    );
    file.write_all(&content(2, 4 << 20)).unwrap();
    let answer = core.read(WHO, fh, at as u64, PIECE);
    assert!(matches!(answer, Err(Errno(libc::EHOSTDOWN))), "{answer:?}");
    proxy.hold(false);
    let answer = core.read(WHO, fh, at as u64, PIECE);
    assert!(answer.is_err(), "a handle of an ended session");
}

#[test]
fn trust_that_has_run_out_comes_back_with_the_next_answer() {
    let owner = Owner::new();
    let expected = content(1, 4 << 20);
    fs::write(owner.path("f"), &expected).unwrap();
    let core = owner.client(2);
    let fh = open(&core, "f", libc::O_RDONLY);
    let mut at = read_until_leased(&core, fh, &expected);
    std::thread::sleep(omfs_service::lease::TRUST + Duration::from_millis(100));
    for _ in 0..4 {
        let data = core.read(WHO, fh, at as u64, PIECE).unwrap();
        assert_eq!(data, expected[at..at + data.len()]);
        at += data.len();
    }
    assert!(is_leased(&core, fh));
}
