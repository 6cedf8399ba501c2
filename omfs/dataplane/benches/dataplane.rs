//! The data plane against raw TCP, as ratios measured in the same run over loopback.
//!
//! `cargo bench --bench dataplane` (`--profile dev` to measure what the tests and the demo run).

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use omfs_dataplane::{FsSession, Remotes, Server};
use omfs_pki::{PendingJoin, Store};
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use omfs_service::{Errno, FileService, FsAnswer};
use proto::ids::NodeId;
use proto::v1::fs_request::Op;
use proto::v1::{FsRequest, GetAttr, Read as ReadOp, Write as WriteOp};

const MIB: usize = 1 << 20;
/// How long each figure is measured.
const SPAN: Duration = Duration::from_millis(1500);

static NEVER: AtomicBool = AtomicBool::new(false);

/// Answers at once, so that only the data plane is measured.
#[derive(Debug)]
struct Instantly(Bytes);

impl FileService for Instantly {
    fn call(&self, request: &FsRequest, payload: &[u8], _: &AtomicBool) -> Result<FsAnswer, Errno> {
        black_box(payload);
        match &request.op {
            Some(Op::Read(read)) => {
                let payload = self.0.slice(..read.size as usize);
                Ok(FsAnswer {
                    payload,
                    ..FsAnswer::default()
                })
            }
            _ => Ok(FsAnswer::default()),
        }
    }
}

#[derive(Debug)]
struct OnePeer(SocketAddr);

impl PeerDirectory for OnePeer {
    fn myself(&self) -> NodeId {
        NodeId(2)
    }

    fn peers(&self) -> Vec<Peer> {
        let (control, data) = (self.0, self.0);
        let (id, name, liveness) = (NodeId(1), "n1".to_owned(), Liveness::Alive);
        vec![Peer {
            id,
            name,
            control,
            data,
            liveness,
        }]
    }
}

/// Calls `operation` for [`SPAN`] after a warm-up; returns seconds per call.
fn seconds_per(mut operation: impl FnMut()) -> f64 {
    (0..20).for_each(|_| operation());
    let (began, mut count) = (Instant::now(), 0u32);
    while began.elapsed() < SPAN {
        operation();
        count += 1;
    }
    began.elapsed().as_secs_f64() / f64::from(count)
}

/// A raw connection whose other end answers every `ask` bytes by `reply` bytes.
fn raw(ask: usize, reply: usize) -> TcpStream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_nodelay(true).unwrap();
    thread::spawn(move || {
        let (mut buffer, answer) = (vec![0; ask], vec![7; reply]);
        while server.read_exact(&mut buffer).is_ok() && server.write_all(&answer).is_ok() {}
    });
    client
}

fn raw_seconds(ask: usize, reply: usize) -> f64 {
    let mut client = raw(ask, reply);
    let (question, mut buffer) = (vec![7; ask], vec![0; reply]);
    seconds_per(|| {
        client.write_all(&question).unwrap();
        client.read_exact(&mut buffer).unwrap();
    })
}

/// A server, and a client connected to it.
fn data_plane() -> (Server, Arc<FsSession>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let one = store
        .init_cluster(&"bench".parse().unwrap(), NodeId(1), "n1")
        .unwrap();
    let authority = store.authority().unwrap();
    let token = authority.issue_token(Duration::from_secs(60), 1).unwrap();
    let other = Store::new(&dir.path().join("2"));
    let pending = PendingJoin::new(&other, "n2").unwrap();
    let pem = authority.sign(pending.csr_der(), NodeId(2), "n2").unwrap();
    let two = pending
        .finish(&other, &token, NodeId(2), &one.pem().ca, &pem)
        .unwrap();
    let service = Arc::new(Instantly(Bytes::from(vec![7; 4 * MIB])));
    let factory = move |_, _: &_| Ok(Arc::clone(&service) as Arc<dyn FileService>);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = Server::start(listener, one, 1, Box::new(factory)).unwrap();
    let remotes = Remotes::new(two, Arc::new(OnePeer(server.address())), 1);
    (server, remotes.session(NodeId(1)).unwrap())
}

fn ask(session: &FsSession, op: Op, payload: &[u8]) {
    let request = FsRequest {
        caller: None,
        op: Some(op),
    };
    black_box(session.call(&request, payload, &NEVER).unwrap());
}

fn get_attr(session: &FsSession) {
    ask(session, Op::GetAttr(GetAttr { node: 1, fh: None }), &[]);
}

fn read(session: &FsSession, size: usize) {
    let size = u32::try_from(size).unwrap();
    ask(
        session,
        Op::Read(ReadOp {
            size,
            ..ReadOp::default()
        }),
        &[],
    );
}

/// Calls `operation` on so many threads for [`SPAN`]; returns seconds per call.
fn seconds_per_parallel(threads: usize, operation: impl Fn() + Sync) -> f64 {
    let began = Instant::now();
    let count: u32 = thread::scope(|scope| {
        let run = || {
            let mut count = 0;
            while began.elapsed() < SPAN {
                operation();
                count += 1;
            }
            count
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    began.elapsed().as_secs_f64() / f64::from(count)
}

fn line(what: &str, seconds: f64, reference: f64) {
    let ratio = seconds / reference;
    println!(
        "{what:<44} {:>9.1} us {ratio:>7.2} x raw TCP",
        seconds * 1e6
    );
}

fn main() {
    // `cargo test --benches` passes --test: there is nothing to test here.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let (_server, session) = data_plane();
    let round_trip = raw_seconds(64, 64);
    line("raw TCP round trip, 64 bytes", round_trip, round_trip);
    line(
        "request round trip",
        seconds_per(|| get_attr(&session)),
        round_trip,
    );
    let parallel = seconds_per_parallel(16, || get_attr(&session));
    line("request, 16 threads", parallel, round_trip);
    let bulk = raw_seconds(64, MIB);
    line("raw TCP, 1 MiB asked for", bulk, bulk);
    line("read of 1 MiB", seconds_per(|| read(&session, MIB)), bulk);
    line(
        "read of 1 MiB, 4 threads",
        seconds_per_parallel(4, || read(&session, MIB)),
        bulk,
    );
    let bulk = raw_seconds(MIB, 64);
    line("raw TCP, 1 MiB given", bulk, bulk);
    let data = vec![7; MIB];
    let write = || ask(&session, Op::Write(WriteOp::default()), &data);
    line("write of 1 MiB", seconds_per(write), bulk);
    line(
        "write of 1 MiB, 4 threads",
        seconds_per_parallel(4, write),
        bulk,
    );
    let small = raw_seconds(64, 4096);
    line("raw TCP, 4 KiB asked for", small, small);
    line("read of 4 KiB", seconds_per(|| read(&session, 4096)), small);
}
