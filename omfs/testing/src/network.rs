//! A peer directory and a network that misbehave on demand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use proto::ids::NodeId;

/// One other node, at an address and of a liveness that tests change.
#[derive(Debug)]
pub struct FakePeers(pub Mutex<(SocketAddr, Liveness)>);

impl PeerDirectory for FakePeers {
    fn myself(&self) -> NodeId {
        NodeId(2)
    }

    fn peers(&self) -> Vec<Peer> {
        let (data, liveness) = *self.0.lock().unwrap();
        let control = data;
        vec![Peer {
            id: NodeId(1),
            name: "n1".into(),
            control,
            data,
            liveness,
        }]
    }
}

/// A port of this machine.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Forwards connections until told to hold them: then bytes go in and nothing comes out.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    held: Arc<AtomicBool>,
}

impl Proxy {
    pub fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::new(AtomicBool::new(false));
        let holding = Arc::clone(&held);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(to) else {
                    continue;
                };
                forward(&client, &server, &holding);
                forward(&server, &client, &holding);
            }
        });
        Self { address, held }
    }

    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }
}

fn forward(from: &TcpStream, to: &TcpStream, held: &Arc<AtomicBool>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let held = Arc::clone(held);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            while held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}
