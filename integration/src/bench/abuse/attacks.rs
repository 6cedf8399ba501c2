//! The attackers, in a node: each gives how much it did per second.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use omfs_cluster::control::ControlClients;
use omfs_cluster::directory::Directory;
use omfs_cluster::roster::{Entry, Roster};
use omfs_pki::Store;
use proto::ids::NodeId;
use proto::v1::PrepareGuestRequest;

const ATTACKER_UID: u32 = 1000;
/// Connections that an attacker holds.
const HELD_MAX: usize = 4000;
/// Programs that he runs at the same time.
const PROGRAMS: usize = 16;
/// Processes that he has moved, and their mappings: as many as the kernel gives by default.
const HUGE: usize = 4;
const MAPPINGS: usize = 64_000;
const PAGE: usize = 4096;
const CONNECT_MAX: Duration = Duration::from_millis(500);
/// HTTP/2: the client's preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const CONTROL_PORT: u16 = 7780;
const DATA_PORT: u16 = 7781;
const GUEST_PORTS: std::ops::RangeInclusive<u16> = 7800..=7807;
const STATE_DIR: &str = "/var/lib/omfs";

/// Becomes an ordinary user.
pub fn become_user(uid: u32) -> Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(uid))?;
    setuid(Uid::from_raw(uid))?;
    Ok(())
}

/// Attacks for that many seconds; gives how often it did what it does, per second.
pub fn run(attack: &str, target: &str, seconds: u64) -> Result<f64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let clock = Clock::new(seconds);
    // A member is root of its own node; all others are users or strangers.
    if attack != "prepare" {
        become_user(ATTACKER_UID)?;
    }
    match attack {
        "admin-connections" => hold(&clock, || Ok(UnixStream::connect("/run/omfs/admin.sock")?)),
        "ps" => programs(&clock, |_| vec!["ps".into(), "-a".into()]),
        "silent-connections" => {
            let address = resolve(target, DATA_PORT)?;
            hold(&clock, || {
                Ok(TcpStream::connect_timeout(&address, CONNECT_MAX)?)
            })
        }
        "tls-connections" => {
            let address = resolve(target, CONTROL_PORT)?;
            hold(&clock, || tls::connect(address))
        }
        "half-handshakes" => {
            let hello = tls::client_hello()?;
            let mut ports = GUEST_PORTS.cycle();
            hold(&clock, || half_handshake(target, ports.next(), &hello))
        }
        "prepare" => prepare(&clock, NodeId(target.parse()?)),
        "open-close" => count(&clock, || drop(File::open(target))),
        "huge-moves" => huge_moves(&clock, target),
        "unlink" => unlink(&clock, Path::new(target)),
        _ => bail!("no such attack: {attack}"),
    }
}

/// Until when, and since when.
struct Clock {
    start: Instant,
    end: Instant,
}

impl Clock {
    fn new(seconds: u64) -> Self {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        Self { start, end }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    fn per_second(&self, count: u64) -> Result<f64> {
        Ok(count as f64 / self.start.elapsed().as_secs_f64())
    }
}

fn count(clock: &Clock, mut act: impl FnMut()) -> Result<f64> {
    let mut count = 0;
    while !clock.is_over() {
        act();
        count += 1;
    }
    clock.per_second(count)
}

/// Makes connections and keeps the latest.
fn hold<T>(clock: &Clock, mut connect: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut held = VecDeque::new();
    let mut count = 0;
    while !clock.is_over() {
        match connect() {
            Ok(connection) => {
                count += 1;
                held.push_back(connection);
                if held.len() > HELD_MAX {
                    held.pop_front();
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    clock.per_second(count)
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    let mut addresses = (host, port).to_socket_addrs()?;
    addresses.next().context("no address")
}

fn half_handshake(host: &str, port: Option<u16>, hello: &[u8]) -> Result<TcpStream> {
    let address = resolve(host, port.context("no port")?)?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_MAX)?;
    stream.write_all(hello)?;
    Ok(stream)
}

/// Runs programs side by side, over and over.
fn programs(clock: &Clock, arguments: impl Fn(usize) -> Vec<String> + Sync) -> Result<f64> {
    let ended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..PROGRAMS {
            let (ended, arguments) = (&ended, &arguments);
            scope.spawn(move || {
                while !clock.is_over() {
                    let mut program = Command::new("omfs");
                    program.args(arguments(number));
                    program.stdout(Stdio::null()).stderr(Stdio::null());
                    let _ = program.status();
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    clock.per_second(ended.into_inner())
}

/// Processes that are ended with the attack.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn huge_moves(clock: &Clock, target: &str) -> Result<f64> {
    let start = || {
        let mut huge = Command::new("/proc/self/exe");
        huge.args([super::super::probe::SUBCOMMAND, "huge"]);
        huge.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    };
    let processes = Processes((0..HUGE).map(|_| start()).collect::<Result<_, _>>()?);
    let pids: Vec<String> = processes.0.iter().map(|one| one.id().to_string()).collect();
    programs(clock, |number| {
        let pid = pids.get(number % pids.len()).cloned().unwrap_or_default();
        vec!["migrate".into(), pid, target.into()]
    })
}

/// A process with as many mappings as it gets, until its standard input ends.
pub fn huge() -> Result<()> {
    let length = std::num::NonZeroUsize::new(PAGE).context("a page")?;
    for number in 0..MAPPINGS {
        // Alternating, since the kernel joins what is alike.
        let protection = match number % 2 {
            0 => ProtFlags::PROT_READ,
            _ => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        if crate::sys::map::anonymous(length, protection, MapFlags::MAP_SHARED).is_err() {
            break;
        }
    }
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn unlink(clock: &Clock, top: &Path) -> Result<f64> {
    let mut count = 0;
    while !clock.is_over() {
        let mut directories: Vec<PathBuf> = vec![top.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if clock.is_over() {
                    return clock.per_second(count);
                }
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                    _ => {
                        let _ = fs::remove_file(entry.path());
                        count += 1;
                    }
                }
            }
        }
    }
    clock.per_second(count)
}

/// Asks a node for places for guests that do not exist.
fn prepare(clock: &Clock, target: NodeId) -> Result<f64> {
    let identity = Store::new(Path::new(STATE_DIR)).load()?;
    let roster = Roster::open(Path::new(STATE_DIR))?;
    let peer = |node: &Entry| Directory::peer(node.id, &node.name, node.control, node.data);
    let known: Vec<_> = roster.nodes().iter().map(peer).collect();
    let myself = known
        .iter()
        .find(|peer| peer.id == identity.node())
        .cloned();
    let directory = Directory::new(myself.context("this node is not in its own file")?, known);
    let home = identity.node();
    let clients = ControlClients::new(Arc::new(directory), identity);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut count = 0;
        while !clock.is_over() {
            let request = PrepareGuestRequest {
                home_id: home.0,
                pid: i32::try_from(count % 100_000 + 1000).unwrap_or(1000),
                command: "x".into(),
                memory_bytes: 4096,
                ..PrepareGuestRequest::default()
            };
            let _ = clients.prepare_guest(target, request).await;
            count += 1;
        }
        clock.per_second(count)
    })
}

/// TLS without a certificate, and without looking at the server's.
mod tls {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::Arc;

    use anyhow::Result;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::ring;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{
        ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    };

    use super::{CONNECT_MAX, PREFACE};

    #[derive(Debug)]
    struct AnyServer;

    impl ServerCertVerifier for AnyServer {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let provider = ring::default_provider();
            provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    }

    fn client() -> Result<ClientConnection> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("n1.lab.omfs")?;
        Ok(ClientConnection::new(Arc::new(config), name)?)
    }

    /// The first record of a handshake.
    pub fn client_hello() -> Result<Vec<u8>> {
        let mut record = Vec::new();
        client()?.write_tls(&mut record)?;
        Ok(record)
    }

    /// A connection that has said that it speaks HTTP/2, and heard the same.
    pub fn connect(address: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_MAX)?;
        stream.set_read_timeout(Some(CONNECT_MAX))?;
        let mut tls = StreamOwned::new(client()?, stream);
        tls.write_all(PREFACE)?;
        tls.read_exact(&mut [0; 9])?;
        Ok(tls)
    }
}
