//! A file service that misbehaves on demand, and two nodes of which one has it.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{Attr, Count, FsReply, FsRequest};

use super::{Remotes, Server};
use omfs_pki::TlsIdentity;
use omfs_service::peers::Liveness;
use omfs_service::{Errno, FileService, FsAnswer};
pub use omfs_testing::network::{FakePeers, Proxy, local};
use omfs_testing::pki::TestCluster;

/// Answers by the operation: see [`FakeService::call`].
#[derive(Debug, Default)]
pub struct FakeService {
    pub running: AtomicUsize,
    pub calls: AtomicUsize,
    /// Most calls that ran at the same time.
    pub peak: AtomicUsize,
}

pub fn byte_at(at: usize) -> u8 {
    (at % 251) as u8
}

fn number(value: u64) -> Result<FsAnswer, Errno> {
    let result = Some(Answer::Count(Count { value }));
    Ok(FsAnswer {
        reply: FsReply { result },
        ..FsAnswer::default()
    })
}

impl FakeService {
    fn perform(&self, op: &Op, payload: &[u8], cancel: &AtomicBool) -> Result<FsAnswer, Errno> {
        match op {
            // Echoes the number.
            Op::GetAttr(arg) => {
                let attr = Attr {
                    ino: arg.node,
                    ..Attr::default()
                };
                let result = Some(Answer::Attr(attr));
                Ok(FsAnswer {
                    reply: FsReply { result },
                    ..FsAnswer::default()
                })
            }
            Op::Read(arg) => {
                let payload: Vec<u8> = (0..arg.size as usize).map(byte_at).collect();
                Ok(FsAnswer {
                    payload: payload.into(),
                    ..FsAnswer::default()
                })
            }
            Op::Write(_) => {
                let good = payload
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == byte_at(at));
                if good {
                    number(payload.len() as u64)
                } else {
                    Err(Errno(libc::EBADMSG))
                }
            }
            // Takes as many milliseconds as asked for.
            Op::Fallocate(arg) => {
                thread::sleep(Duration::from_millis(arg.length));
                number(arg.length)
            }
            // Never granted.
            Op::SetLock(_) => {
                while !cancel.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(Errno(libc::EINTR))
            }
            Op::StatFs(_) => panic!("a defect"),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }
}

impl FileService for FakeService {
    fn call(
        &self,
        request: &FsRequest,
        payload: &[u8],
        cancel: &AtomicBool,
    ) -> Result<FsAnswer, Errno> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(running, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        let op = request.op.as_ref().ok_or(Errno(libc::EINVAL))?;
        let result = self.perform(op, payload, cancel);
        self.running.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// Two nodes: number 1 serves, number 2 asks.
#[derive(Debug)]
pub struct Pair {
    pub cluster: TestCluster,
    pub two: TlsIdentity,
    pub service: Arc<FakeService>,
    pub server: Server,
    pub peers: Arc<FakePeers>,
    pub remotes: Arc<Remotes>,
}

pub fn serve(identity: &TlsIdentity, at: SocketAddr, service: &Arc<FakeService>) -> Server {
    let service = Arc::clone(service);
    let factory = Box::new(move |_, _: &_| Ok(Arc::clone(&service) as Arc<dyn FileService>));
    let listener = TcpListener::bind(at).unwrap();
    Server::start(listener, identity.clone(), 1, factory).unwrap()
}

impl Pair {
    pub fn new() -> Self {
        let cluster = TestCluster::new("lab");
        let two = cluster.join(2);
        let service = Arc::new(FakeService::default());
        let server = serve(&cluster.first, local(0), &service);
        let peers = Arc::new(FakePeers(Mutex::new((server.address(), Liveness::Alive))));
        let remotes = Remotes::new(two.clone(), Arc::clone(&peers) as _, 1);
        Self {
            cluster,
            two,
            service,
            server,
            peers,
            remotes,
        }
    }

    pub fn set_address(&self, address: SocketAddr) {
        self.peers.0.lock().unwrap().0 = address;
    }

    pub fn set_liveness(&self, liveness: Liveness) {
        self.peers.0.lock().unwrap().1 = liveness;
    }
}
