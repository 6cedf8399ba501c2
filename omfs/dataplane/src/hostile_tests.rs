//! Peers that send anything at all: before they have shown a certificate, and after.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proto::frame::FrameKind;
use proto::ids::{NodeId, RequestId};
use proto::link::{FrameSink, FrameSource, Outgoing};
use proto::v1::{FsRequest, GetAttr, fs_request::Op};

use super::hello::hello;
use super::link::connect_tls;
use super::testing::Pair;
use super::{FsSession, accept};
use omfs_service::FileService;
use omfs_testing::lateness::Lateness;

/// Cases cost a TLS handshake each.
const CASES: u32 = 48;

fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| {
        let pair = Pair::new();
        pair.cluster.remove_files();
        pair
    })
}

/// The first bytes a real client sends.
fn client_hello() -> Vec<u8> {
    let (config, name) = (
        pair().two.client_config(),
        pair().two.server_name(NodeId(1)).unwrap(),
    );
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Accepts a connection on which these bytes came and nothing else.
fn refuses(bytes: &[u8]) -> bool {
    let identity = &pair().cluster.first;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let ours = hello(identity.node(), "fs", &[], 1);
    let (began, late) = (Instant::now(), Lateness::watch());
    let refused = accept(stream, identity, &ours, Duration::from_secs(5)).is_err();
    let took = began.elapsed();
    refused && took < Duration::from_secs(4) + late.total()
}

fn is_served(session: &FsSession) -> bool {
    let op = Some(Op::GetAttr(GetAttr { node: 4, fh: None }));
    session
        .call(
            &FsRequest { caller: None, op },
            &[],
            &AtomicBool::new(false),
        )
        .is_ok()
}

#[derive(Debug, Clone)]
struct AnyFrame {
    kind: FrameKind,
    id: u64,
    status: i32,
    header: Vec<u8>,
    payload: Vec<u8>,
}

fn any_frame() -> impl Strategy<Value = AnyFrame> {
    use FrameKind as K;
    let kind = prop_oneof![
        5 => Just(K::Request),
        1 => prop::sample::select(vec![
            K::Hello, K::Reply, K::Cancel, K::Event, K::Ping, K::Pong,
        ]),
    ];
    // Few ids, so that some are used twice and some cancels hit.
    let parts = (
        kind,
        0..6u64,
        any::<i32>(),
        any::<Vec<u8>>(),
        any::<Vec<u8>>(),
    );
    parts.prop_map(|(kind, id, status, header, payload)| AnyFrame {
        kind,
        id,
        status,
        header,
        payload,
    })
}

fn send_all(frames: &[AnyFrame]) {
    let two = &pair().two;
    let ours = hello(two.node(), "fs", b"hostile", 1);
    let to = pair().server.address();
    let deadline = Duration::from_secs(5);
    let mut link = connect_tls(to, two, NodeId(1), &ours, deadline).unwrap();
    for frame in frames {
        let AnyFrame {
            kind,
            id,
            status,
            header,
            payload,
        } = frame;
        let (kind, id, status) = (*kind, RequestId(*id), *status);
        let out = Outgoing {
            kind,
            id,
            status,
            header,
            payload: &[payload],
        };
        if link.sink.send(out).is_err() {
            break;
        }
    }
    // Whatever the server does with it, it does not leave us waiting.
    let (kind, id) = (FrameKind::Ping, RequestId(99));
    let _ = link.sink.send(Outgoing {
        kind,
        id,
        status: 0,
        header: &[],
        payload: &[],
    });
    link.source.set_tick(Some(deadline)).unwrap();
    link.source.set_until(Some(Instant::now() + deadline));
    loop {
        match link.source.recv() {
            Ok(frame) if frame.kind == FrameKind::Pong && frame.id == id => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => panic!("no end: {error}"),
            Err(_) => return,
        }
    }
}

#[test]
fn a_whole_client_hello_and_no_more_is_refused() {
    assert!(refuses(&client_hello()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn bytes_before_the_handshake_end_in_an_error(bytes: Vec<u8>) {
        prop_assert!(refuses(&bytes));
    }

    #[test]
    fn a_changed_client_hello_ends_in_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        tail: Vec<u8>,
    ) {
        let mut bytes = client_hello();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        bytes.extend_from_slice(&tail);
        prop_assert!(refuses(&bytes));
    }

    #[test]
    fn frames_of_any_kind_and_content_harm_no_other_connection(
        frames in prop::collection::vec(any_frame(), 0..12),
    ) {
        let session = pair().remotes.session(NodeId(1)).unwrap();
        send_all(&frames);
        prop_assert!(is_served(&session));
    }
}
