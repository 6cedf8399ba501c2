//! Nodes of one cluster in this process, each in a runtime of its own, over real TLS on loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use omfs_cluster::control::{ControlClients, ControlError};
use omfs_cluster::directory::Directory;
use omfs_cluster::join::{self, JoinError, NewNode};
use omfs_config::Config;
use omfs_pki::{Store, TlsIdentity, Token};
use omfs_service::peers::{Liveness, PeerDirectory};
use proto::ids::NodeId;
use proto::v1;
use proto::v1::cluster_client::ClusterClient;
use tokio::runtime::Runtime;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::wiring::Node;
use omfs_testing::lateness::Lateness;

struct TestNode {
    config: Arc<Config>,
    running: Option<(Runtime, Node)>,
}

fn config(dir: &Path, name: &str) -> Arc<Config> {
    let home = dir.join(name);
    std::fs::create_dir_all(home.join("run")).unwrap();
    let text = format!(
        "[node]\nname = {name:?}\nstate_dir = {state:?}\nrun_dir = {run:?}\n\
         [network]\nlisten = \"127.0.0.1\"\ncontrol_port = 0\ndata_port = 0\n\
         [export]\nroot = {home:?}\n",
        state = home.join("state"),
        run = home.join("run"),
    );
    Arc::new(Config::parse(Path::new("test.toml"), &text).unwrap())
}

impl TestNode {
    fn init(dir: &Path, name: &str, cluster: &str) -> Self {
        let config = config(dir, name);
        join::init(&config, &cluster.parse().unwrap(), name).unwrap();
        Self {
            config,
            running: None,
        }
        .start()
    }

    fn start(mut self) -> Self {
        let runtime = Runtime::new().unwrap();
        let identity = self.identity();
        let start = Node::start(Arc::clone(&self.config), None, identity);
        let node = runtime.block_on(start).unwrap();
        self.running = Some((runtime, node));
        self
    }

    /// As if the power went: every task and socket vanishes.
    fn kill(&mut self) {
        if let Some((runtime, node)) = self.running.take() {
            drop(node);
            runtime.shutdown_background();
        }
    }

    fn identity(&self) -> TlsIdentity {
        Store::new(&self.config.node.state_dir).load().unwrap()
    }

    fn directory(&self) -> Arc<Directory> {
        self.running.as_ref().unwrap().1.directory()
    }

    fn control(&self) -> std::net::SocketAddr {
        let directory = self.directory();
        directory.by_id(directory.myself()).unwrap().control
    }

    fn token(&self, lifetime: Duration) -> Token {
        let store = Store::new(&self.config.node.state_dir);
        store.authority().unwrap().issue_token(lifetime, 1).unwrap()
    }

    /// What `omfs cluster join` does on another machine.
    fn join(&self, dir: &Path, name: &str, token: &Token) -> Result<Self, JoinError> {
        let config = config(dir, name);
        let any = "127.0.0.1:0".parse().unwrap();
        let new = NewNode {
            name: name.into(),
            control: any,
            data: any,
            id: None,
        };
        let joining = join::join(&config, self.control(), token, &new);
        Runtime::new().unwrap().block_on(joining)?;
        Ok(Self {
            config,
            running: None,
        })
    }

    fn sees(&self, id: u32, liveness: Liveness) -> bool {
        let peer = self.directory().by_id(NodeId(id));
        peer.is_some_and(|peer| peer.liveness == liveness)
    }
}

fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < limit,
            "{what} did not happen within {limit:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

const SOON: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_machine_joins_is_seen_dies_is_missed_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    let mut second = first.join(dir.path(), "b", &first.token(HOUR)).unwrap();
    assert_eq!(second.identity().node(), NodeId(2));
    second = second.start();
    until("meeting", SOON, || {
        first.sees(2, Liveness::Alive) && second.sees(1, Liveness::Alive)
    });

    let late = Lateness::watch();
    second.kill();
    let noticed = until("death", SOON, || first.sees(2, Liveness::Dead));
    // 2.5 s where nothing else runs (docs/protocol-control.md).
    let limit = Duration::from_secs(4) + late.total();
    assert!(noticed < limit, "death took {noticed:?}");

    second = second.start();
    until("return", SOON, || {
        first.sees(2, Liveness::Alive) && second.sees(1, Liveness::Alive)
    });

    let (runtime, node) = second.running.take().unwrap();
    runtime.block_on(node.stop());
    let late = Lateness::watch();
    let noticed = until("leaving", SOON, || first.sees(2, Liveness::Dead));
    let limit = Duration::from_millis(500) + late.total();
    assert!(noticed < limit, "leaving took {noticed:?}");
}

#[test]
fn wrong_expired_and_foreign_tokens_and_taken_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    let other = TestNode::init(dir.path(), "z", "other");

    let mut wrong = first.token(HOUR);
    wrong.secret[0] ^= 1;
    let cases = [
        (wrong, "not known here"),
        (first.token(Duration::ZERO), "expired"),
        (other.token(HOUR), "another cluster"),
    ];
    for (token, reason) in cases {
        match first.join(dir.path(), "b", &token) {
            Err(JoinError::Token(text)) => assert!(text.contains(reason), "{text}"),
            Err(error) => panic!("{reason}: {error}"),
            Ok(_) => panic!("{reason}: it was accepted"),
        }
    }
    let taken = dir.path().join("elsewhere");
    match first.join(&taken, "a", &first.token(HOUR)) {
        Err(JoinError::Refused(text)) => assert!(text.contains("named a"), "{text}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a second node of the same name was accepted"),
    }
    assert!(!Store::new(&dir.path().join("b/state")).is_member());
}

#[test]
fn without_a_certificate_of_the_cluster_a_caller_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    let stranger = TestNode::init(dir.path(), "a2", "lab");
    let address = first.control();
    let runtime = Runtime::new().unwrap();

    // No certificate at all: TLS lets it in, the service does not.
    let identity = first.identity();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&identity.pem().ca))
        .domain_name(identity.domain_of(NodeId(1)));
    let status = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
        ClusterClient::new(channel)
            .processes(v1::ProcessesRequest::default())
            .await
            .unwrap_err()
    });
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");

    // A node of another cluster that even has the same name.
    let peer = first.directory().by_id(NodeId(1)).unwrap();
    let strange = Directory::peer(NodeId(9), "me", address, address);
    let directory = Arc::new(Directory::new(strange, [peer]));
    let error = runtime.block_on(async {
        let clients = ControlClients::new(directory, stranger.identity());
        clients
            .processes(NodeId(1), v1::ProcessesRequest::default())
            .await
            .unwrap_err()
    });
    assert!(matches!(error, ControlError::Unreachable(_)), "{error:?}");
}

#[test]
fn garbage_on_the_control_port_does_no_harm() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        &[0x16, 3, 1, 0xff, 0xff, 1, 2],
    ] {
        let mut stream = std::net::TcpStream::connect(first.control()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        stream.write_all(garbage).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    assert!(first.join(dir.path(), "b", &first.token(HOUR)).is_ok());
}

/// Whether a server has closed a connection on which nothing was sent.
fn is_closed(stream: &std::net::TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.peek(&mut [0]).is_ok_and(|count| count == 0)
}

#[test]
fn strangers_at_the_control_port_are_bounded_and_keep_no_node_out() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    let second = first.join(dir.path(), "b", &first.token(HOUR)).unwrap();
    let connect = |_| std::net::TcpStream::connect(first.control()).unwrap();
    let strangers: Vec<_> = (0..500).map(connect).collect();
    let second = second.start();
    until("meeting", SOON, || {
        first.sees(2, Liveness::Alive) && second.sees(1, Liveness::Alive)
    });
    let most = super::gates::CONTROL_CONNECTIONS.per_key;
    let open = || strangers.iter().filter(|one| !is_closed(one)).count();
    until("most are closed", SOON, || open() <= most);
    // Those that are left are silent for too long.
    until("all are closed", SOON, || open() == 0);
}

/// Whether a server has a connection still, whatever it has sent.
fn is_open(mut stream: &std::os::unix::net::UnixStream) -> bool {
    use std::io::{ErrorKind, Read};
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut [0; 256]) {
            Ok(1..) => {}
            Ok(0) => return false,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn one_users_connections_to_the_admin_socket_leave_room_for_his_next() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    let socket = first.config.admin_socket();
    let connect = |_| std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let silent: Vec<_> = (0..1000).map(connect).collect();
    let path = first.config.admin_socket();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let connecting = tokio::net::UnixStream::connect(path.clone());
        async move { connecting.await.map(hyper_util::rt::TokioIo::new) }
    });
    let status = Runtime::new().unwrap().block_on(async {
        let endpoint = Endpoint::from_static("http://admin.invalid");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        let mut client = v1::admin_client::AdminClient::new(channel);
        client
            .status(v1::Empty {})
            .await
            .map(|reply| reply.into_inner())
    });
    assert_eq!(status.unwrap().nodes_alive, 1);
    let open = silent.iter().filter(|one| is_open(one)).count();
    assert!(open <= super::gates::ADMIN_CONNECTIONS.per_key, "{open}");
}

#[test]
fn work_that_blocks_all_its_threads_kills_no_node() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestNode::init(dir.path(), "a", "lab");
    let second = first
        .join(dir.path(), "b", &first.token(HOUR))
        .unwrap()
        .start();
    until("meeting", SOON, || {
        first.sees(2, Liveness::Alive) && second.sees(1, Liveness::Alive)
    });
    let work = first.running.as_ref().unwrap().1.work();
    let busy_for = Duration::from_secs(6);
    for _ in 0..8 {
        work.spawn(async move { std::thread::sleep(busy_for) });
    }
    // Longer than a node that says nothing is believed to live.
    let end = Instant::now() + busy_for;
    while Instant::now() < end {
        assert!(second.sees(1, Liveness::Alive), "it is taken for dead");
        std::thread::sleep(Duration::from_millis(20));
    }
}
