//! Links over loopback: who gets one, what crosses it, and what garbage does.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use proto::frame::{Frame, FrameKind, MAX_PAYLOAD_BYTES};
use proto::ids::{NodeId, RequestId};
use proto::link::{FrameSink, FrameSource, Link, Outgoing};
use proto::v1::Hello;

use super::hello::hello;
use super::link::{TlsLink, accept_tls, connect_tls};
use super::{Accepted, accept, connect};
use omfs_pki::{PkiError, TlsIdentity};
use omfs_testing::lateness::Lateness;
use omfs_testing::pki::TestCluster;

const DEADLINE: Duration = Duration::from_secs(5);

struct Nodes {
    cluster: TestCluster,
    one: TlsIdentity,
    two: TlsIdentity,
}

fn nodes() -> &'static Nodes {
    static NODES: OnceLock<Nodes> = OnceLock::new();
    NODES.get_or_init(|| {
        let cluster = TestCluster::new("lab");
        let (one, two) = (cluster.first.clone(), cluster.join(2));
        cluster.remove_files();
        Nodes { cluster, one, two }
    })
}

fn fs_hello(identity: &TlsIdentity) -> Hello {
    hello(identity.node(), "fs", b"", 7)
}

/// Accepts one connection as `identity` on a thread.
fn accept_once(identity: &TlsIdentity) -> (SocketAddr, JoinHandle<io::Result<Accepted>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let identity = identity.clone();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        accept(stream, &identity, &fs_hello(&identity), DEADLINE)
    });
    (address, thread)
}

fn pair() -> (TlsLink, TlsLink) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let Nodes { one, two, .. } = nodes();
    let accepting = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        accept_tls(stream, one, &fs_hello(one), DEADLINE).unwrap()
    });
    let near = connect_tls(address, two, NodeId(1), &fs_hello(two), DEADLINE).unwrap();
    (near, accepting.join().unwrap())
}

fn pki_error(error: &io::Error) -> &PkiError {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref())
        .unwrap_or_else(|| panic!("{error:?}"))
}

fn event<'a>(id: u64, payload: &'a [&'a [u8]]) -> Outgoing<'a> {
    Outgoing {
        kind: FrameKind::Event,
        id: RequestId(id),
        status: 0,
        header: b"head",
        payload,
    }
}

#[test]
fn two_nodes_of_a_cluster_know_each_other_by_certificate() {
    let Nodes { one, two, .. } = nodes();
    let (address, accepting) = accept_once(one);
    let (link, theirs) = connect(address, two, NodeId(1), &fs_hello(two), DEADLINE).unwrap();
    let accepted = accepting.join().unwrap().unwrap();
    assert_eq!(
        (accepted.peer, accepted.hello.purpose.as_str()),
        (NodeId(2), "fs")
    );
    assert_eq!((theirs.node_id, theirs.boot_epoch), (1, 7));
    let Link { sink, .. } = link;
    sink.send(event(3, &[b"pay", b"load"])).unwrap();
    let frame = { accepted.link }.source.recv().unwrap();
    assert_eq!(
        (&frame.header[..], &frame.payload[..]),
        (&b"head"[..], &b"payload"[..])
    );
}

#[test]
fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let stranger = TestCluster::new("lab").first;
    let (address, accepting) = accept_once(&nodes().one);
    let error = connect(
        address,
        &stranger,
        NodeId(1),
        &fs_hello(&stranger),
        DEADLINE,
    )
    .unwrap_err();
    assert!(matches!(pki_error(&error), PkiError::Foreign), "{error}");
    let error = accepting.join().unwrap().unwrap_err();
    assert!(matches!(pki_error(&error), PkiError::Refused(_)), "{error}");
}

/// A client that accepts any server of the cluster but shows what it is told to.
fn odd_client(certificate: Option<(String, String)>) -> Arc<rustls::ClientConfig> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    let ca = nodes().cluster.ca_pem();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((pem, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// What the acceptor and a client with this certificate make of each other.
fn meet(certificate: Option<(String, String)>) -> (io::Error, io::Error) {
    let (address, accepting) = accept_once(&nodes().one);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let name = nodes().one.server_name(NodeId(1)).unwrap();
    let mut tls = rustls::ClientConnection::new(odd_client(certificate), name).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    let _ = stream.write_all(b"anything");
    let error = stream.read_exact(&mut [0; 1]).unwrap_err();
    (error, accepting.join().unwrap().unwrap_err())
}

fn alert(error: &io::Error) -> PkiError {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    PkiError::from(tls.unwrap_or_else(|| panic!("{error:?}")).clone())
}

#[test]
fn a_client_without_a_certificate_gets_nothing_but_the_reason() {
    let (client, server) = meet(None);
    assert!(
        matches!(pki_error(&server), PkiError::NoCertificate),
        "{server}"
    );
    assert!(matches!(alert(&client), PkiError::Refused(_)), "{client}");
}

#[test]
fn expired_and_unnamed_client_certificates_are_refused_by_reason() {
    let day = Duration::from_secs(24 * 3600);
    let (now, cluster) = (SystemTime::now(), &nodes().cluster);
    let expired = cluster.certificate_valid(5, now - 2 * day, now - day);
    let (client, server) = meet(Some(expired));
    assert!(matches!(pki_error(&server), PkiError::Expired), "{server}");
    assert!(client.to_string().contains("xpired"), "{client}");
    assert!(matches!(alert(&client), PkiError::Refused(_)), "{client}");
    let foreign = TestCluster::new("lab").certificate_valid(5, now - day, now + day);
    let (client, server) = meet(Some(foreign));
    assert!(matches!(pki_error(&server), PkiError::Foreign), "{server}");
    assert!(matches!(alert(&client), PkiError::Refused(_)), "{client}");
}

#[test]
fn a_client_notices_that_it_reached_another_node() {
    let Nodes { one, two, .. } = nodes();
    let (address, accepting) = accept_once(one);
    let error = connect(address, two, NodeId(3), &fs_hello(two), DEADLINE).unwrap_err();
    assert!(matches!(pki_error(&error), PkiError::WrongName), "{error}");
    assert!(accepting.join().unwrap().is_err());
}

#[test]
fn a_hello_in_another_nodes_name_is_refused() {
    let Nodes { one, two, .. } = nodes();
    let (address, accepting) = accept_once(one);
    let lie = Hello {
        node_id: 9,
        ..fs_hello(two)
    };
    assert!(connect(address, two, NodeId(1), &lie, DEADLINE).is_err());
    let error = accepting.join().unwrap().unwrap_err();
    assert!(
        matches!(pki_error(&error), PkiError::WrongNode { .. }),
        "{error}"
    );
}

#[test]
fn without_a_common_version_both_sides_say_so() {
    let Nodes { one, two, .. } = nodes();
    let (address, accepting) = accept_once(one);
    let newer = Hello {
        min_version: 8,
        max_version: 9,
        ..fs_hello(two)
    };
    let error = connect(address, two, NodeId(1), &newer, DEADLINE).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    assert!(
        error
            .to_string()
            .contains("versions 1 to 1, we speak 8 to 9"),
        "{error}"
    );
    let error = accepting.join().unwrap().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("versions 8 to 9, we speak 1 to 1"),
        "{error}"
    );
}

#[test]
fn garbage_and_silence_cost_the_deadline_at_most() {
    let identity = &nodes().one;
    let deadline = Duration::from_millis(300);
    let garbage: [&[u8]; 4] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff],
        &[0; 9000],
    ];
    for bytes in garbage {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _ = client.write_all(bytes);
        let (stream, _) = listener.accept().unwrap();
        let (began, late) = (Instant::now(), Lateness::watch());
        assert!(accept(stream, identity, &fs_hello(identity), deadline).is_err());
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2) + late.total(), "{bytes:?}");
    }
}

#[test]
fn a_client_that_trickles_is_cut_off_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let trickle = thread::spawn(move || {
        let mut client = TcpStream::connect(address).unwrap();
        let hello = [0x16, 3, 1, 0x10, 0];
        // Ends when the acceptor hangs up.
        while client.write_all(&hello[..1]).is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let (stream, _) = listener.accept().unwrap();
    let identity = &nodes().one;
    let (began, late) = (Instant::now(), Lateness::watch());
    let deadline = Duration::from_millis(300);
    assert!(accept(stream, identity, &fs_hello(identity), deadline).is_err());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2) + late.total(), "{took:?}");
    trickle.join().unwrap();
}

#[test]
fn frames_of_every_size_cross_whole_in_both_directions_at_once() {
    let (near, far) = pair();
    let sizes = [
        0,
        1,
        16_300,
        16_352,
        16_384,
        16_385,
        100_000,
        1 << 20,
        MAX_PAYLOAD_BYTES as usize,
    ];
    let exchange = move |mut link: TlsLink, salt: u8| {
        let sink = Arc::clone(&link.sink);
        let sending = thread::spawn(move || {
            for (id, size) in sizes.into_iter().enumerate() {
                let payload: Vec<u8> = (0..size).map(|at| (at as u8) ^ salt).collect();
                let (first, second) = payload.split_at(size / 3);
                sink.send(event(id as u64, &[first, second])).unwrap();
            }
        });
        let mut received = Vec::new();
        for _ in sizes {
            received.push(link.source.recv().unwrap());
        }
        sending.join().unwrap();
        received
    };
    let other = thread::spawn(move || exchange(far, 1));
    check_sizes(&exchange(near, 2), &sizes, 1);
    check_sizes(&other.join().unwrap(), &sizes, 2);
}

fn check_sizes(frames: &[Frame], sizes: &[usize], salt: u8) {
    for (id, (frame, size)) in frames.iter().zip(sizes).enumerate() {
        assert_eq!(frame.id, RequestId(id as u64));
        assert_eq!(frame.payload.len(), *size);
        let good = frame
            .payload
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == (at as u8) ^ salt);
        assert!(good, "payload of {size} bytes");
    }
}

#[test]
fn frames_of_many_threads_never_interleave() {
    let (near, mut far) = pair();
    let senders: Vec<_> = (0..8u64)
        .map(|thread| {
            let sink = Arc::clone(&near.sink);
            thread::spawn(move || {
                let payload = vec![thread as u8; 40_000];
                for _ in 0..20 {
                    sink.send(event(thread, &[&payload])).unwrap();
                }
            })
        })
        .collect();
    for _ in 0..160 {
        let frame = far.source.recv().unwrap();
        assert_eq!(frame.payload.len(), 40_000);
        assert!(
            frame
                .payload
                .iter()
                .all(|byte| u64::from(*byte) == frame.id.0)
        );
    }
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
}

#[test]
fn keys_are_renewed_in_both_directions_before_their_limit() {
    let (mut near, mut far) = pair();
    near.sink.set_key_limit(10);
    far.sink.set_key_limit(3);
    for id in 0..50 {
        near.sink.send(event(id, &[b"x"])).unwrap();
        assert_eq!(far.source.recv().unwrap().id, RequestId(id));
        far.sink.send(event(id, &[b"y"])).unwrap();
        assert_eq!(near.source.recv().unwrap().id, RequestId(id));
    }
}

#[test]
fn closing_wakes_both_readers_and_ends_sending() {
    let (near, mut far) = pair();
    let mut source = near.source;
    let reading = thread::spawn(move || source.recv());
    thread::sleep(Duration::from_millis(20));
    near.sink.close();
    assert!(reading.join().unwrap().is_err());
    assert_eq!(
        far.source.recv().unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert!(near.sink.send(event(0, &[])).is_err());
}

#[test]
fn closing_wakes_a_sender_whose_peer_does_not_read() {
    let (near, _far) = pair();
    let sink = Arc::clone(&near.sink);
    let sending = thread::spawn(move || {
        let payload = vec![0; 1 << 20];
        while sink.send(event(0, &[&payload])).is_ok() {}
    });
    thread::sleep(Duration::from_millis(200));
    let (began, late) = (Instant::now(), Lateness::watch());
    near.sink.close();
    sending.join().unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2) + late.total(), "{took:?}");
}

/// A proxy that changes byte number `at` of what the client sends after `skip` bytes.
fn flip_on_the_way(to: SocketAddr, at: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(to).unwrap();
        let (mut back_in, mut back_out) =
            (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut back_in, &mut back_out));
        let (mut seen, mut buffer) = (0, [0; 4096]);
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            if (seen..seen + count).contains(&at) {
                buffer[at - seen] ^= 1;
            }
            seen += count;
            if server.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    address
}

#[test]
fn a_changed_bit_on_the_wire_ends_the_connection() {
    let Nodes { one, two, .. } = nodes();
    let (address, accepting) = accept_once(one);
    let proxy = flip_on_the_way(address, 20_000);
    let (link, _) = connect(proxy, two, NodeId(1), &fs_hello(two), DEADLINE).unwrap();
    let mut far = accepting.join().unwrap().unwrap().link;
    let payload = [7; 1000];
    for id in 0..40 {
        if link.sink.send(event(id, &[&payload])).is_err() {
            break;
        }
    }
    let error = loop {
        match far.source.recv() {
            Ok(frame) => assert!(frame.payload.iter().all(|byte| *byte == 7)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}
