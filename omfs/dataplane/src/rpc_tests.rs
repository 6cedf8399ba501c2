//! Client and server together: answers, concurrency, withdrawal, death and return.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{Fallocate, FsRequest, GetAttr, Lock, NodeArg, Read, Write};

use super::testing::{FakeService, Pair, Proxy, byte_at, local, serve};
use super::{FsSession, PURPOSE_FS, connect, hello};
use omfs_service::peers::Liveness;
use omfs_service::{Errno, FileService, FsAnswer};
use omfs_testing::lateness::Lateness;

static NEVER: AtomicBool = AtomicBool::new(false);
const DOWN: Errno = Errno(libc::EHOSTDOWN);
/// What issue 2 promises of a dead node.
const DOWN_WITHIN: Duration = Duration::from_secs(2);

fn call(session: &FsSession, op: Op) -> Result<FsAnswer, Errno> {
    session.call(
        &FsRequest {
            caller: None,
            op: Some(op),
        },
        &[],
        &NEVER,
    )
}

fn attr(node: u64) -> Op {
    Op::GetAttr(GetAttr { node, fh: None })
}

fn slow(length: u64) -> Op {
    Op::Fallocate(Fallocate {
        length,
        ..Fallocate::default()
    })
}

fn lock() -> Op {
    Op::SetLock(Lock {
        wait: true,
        ..Lock::default()
    })
}

fn echoes(session: &FsSession, node: u64) -> bool {
    match call(session, attr(node)) {
        Ok(answer) => matches!(answer.reply.result, Some(Answer::Attr(attr)) if attr.ino == node),
        Err(_) => false,
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn requests_are_answered_with_reply_payload_or_errno() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    assert!(echoes(&session, 77));
    let size = 1 << 20;
    let read = call(
        &session,
        Op::Read(Read {
            size,
            ..Read::default()
        }),
    )
    .unwrap();
    assert_eq!(read.payload.len(), size as usize);
    assert!(
        read.payload
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == byte_at(at))
    );
    let data: Vec<u8> = (0..700_001).map(byte_at).collect();
    let write = FsRequest {
        caller: None,
        op: Some(Op::Write(Write::default())),
    };
    let answer = session.call(&write, &data, &NEVER).unwrap();
    assert!(matches!(answer.reply.result, Some(Answer::Count(count)) if count.value == 700_001));
    assert_eq!(
        call(&session, Op::OpenDir(NodeArg::default())).unwrap_err(),
        Errno(libc::ENOSYS)
    );
    // The same connection is used again.
    assert_eq!(
        pair.remotes.session(NodeId(1)).unwrap().epoch(),
        session.epoch()
    );
}

#[test]
fn a_request_that_is_too_long_is_refused_and_harms_nobody() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    let write = FsRequest {
        caller: None,
        op: Some(Op::Write(Write::default())),
    };
    let result = session.call(&write, &vec![0; (4 << 20) + 1], &NEVER);
    assert_eq!(result.unwrap_err(), Errno(libc::EINVAL));
    assert!(echoes(&session, 1));
}

#[test]
fn an_answer_that_is_too_long_is_an_error_for_its_caller_only() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    let size = (4 << 20) + 1;
    let result = call(
        &session,
        Op::Read(Read {
            size,
            ..Read::default()
        }),
    );
    assert_eq!(result.unwrap_err(), Errno(libc::EMSGSIZE));
    assert!(echoes(&session, 1));
}

#[test]
fn a_defect_in_one_operation_is_eio_for_its_caller_only() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    assert_eq!(
        call(&session, Op::StatFs(NodeArg::default())).unwrap_err(),
        Errno(libc::EIO)
    );
    assert!(echoes(&session, 1));
}

#[test]
fn many_threads_each_get_their_own_answers() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    thread::scope(|scope| {
        for thread in 0..32u64 {
            let session = &session;
            scope.spawn(move || {
                for round in 0..100 {
                    assert!(echoes(session, thread << 32 | round));
                }
            });
        }
    });
    assert_eq!(pair.service.calls.load(Ordering::SeqCst), 3200);
}

#[test]
fn slow_requests_run_side_by_side_and_do_not_hold_up_quick_ones() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| call(&session, slow(1000)).unwrap());
        }
        until("eight run", || {
            pair.service.running.load(Ordering::SeqCst) == 8
        });
        let (began, late) = (Instant::now(), Lateness::watch());
        assert!(echoes(&session, 5));
        let took = began.elapsed();
        assert!(took < Duration::from_millis(500) + late.total(), "{took:?}");
    });
    assert!(pair.service.peak.load(Ordering::SeqCst) >= 8);
}

#[test]
fn a_busy_node_is_not_taken_for_dead() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    // More requests than threads, each longer than the silence that means death.
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| call(&session, slow(2000)).unwrap());
        }
    });
    assert!(echoes(&session, 5));
}

#[test]
fn more_requests_than_may_be_outstanding_wait_their_turn() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    let threads = super::client::OUTSTANDING_MAX + 40;
    thread::scope(|scope| {
        for node in 0..threads as u64 {
            let session = &session;
            scope.spawn(move || assert!(call(session, slow(20)).is_ok() && echoes(session, node)));
        }
    });
}

#[test]
fn waiting_for_locks_starves_nobody_and_can_be_withdrawn() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    let cancel = AtomicBool::new(false);
    let request = FsRequest {
        caller: None,
        op: Some(lock()),
    };
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..64)
            .map(|_| scope.spawn(|| session.call(&request, &[], &cancel)))
            .collect();
        until("all wait", || {
            pair.service.running.load(Ordering::SeqCst) == 64
        });
        assert!(echoes(&session, 9));
        // Nor do they take the threads that other requests need.
        let (began, late) = (Instant::now(), Lateness::watch());
        let slow: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| call(&session, slow(300))))
            .collect();
        assert!(slow.into_iter().all(|slow| slow.join().unwrap().is_ok()));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2) + late.total(), "{took:?}");
        let (began, late) = (Instant::now(), Lateness::watch());
        cancel.store(true, Ordering::SeqCst);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().unwrap_err(), Errno(libc::EINTR));
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1) + late.total(), "{took:?}");
    });
    assert_eq!(pair.service.running.load(Ordering::SeqCst), 0);
}

#[test]
fn when_the_asking_node_goes_its_waiting_requests_are_withdrawn() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| call(&session, lock()));
        until("it waits", || {
            pair.service.running.load(Ordering::SeqCst) == 1
        });
        session.close();
        assert_eq!(waiter.join().unwrap().unwrap_err(), DOWN);
    });
    until("withdrawn", || {
        pair.service.running.load(Ordering::SeqCst) == 0
    });
    until("connection gone", || pair.server.connections() == 0);
}

#[test]
fn a_node_that_falls_silent_is_down_within_two_seconds_and_comes_back_by_itself() {
    let pair = Pair::new();
    let proxy = Proxy::new(pair.server.address());
    pair.set_address(proxy.address);
    let session = pair.remotes.session(NodeId(1)).unwrap();
    assert!(echoes(&session, 1));
    proxy.hold(true);
    let (began, late) = (Instant::now(), Lateness::watch());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(call(&session, attr(1)).unwrap_err(), DOWN));
        }
        let data = vec![0; 4 << 20];
        let write = FsRequest {
            caller: None,
            op: Some(Op::Write(Write::default())),
        };
        assert_eq!(session.call(&write, &data, &NEVER).unwrap_err(), DOWN);
    });
    let took = began.elapsed();
    assert!(took < DOWN_WITHIN + late.total(), "{took:?}");
    // From now on it fails at once.
    let (began, late) = (Instant::now(), Lateness::watch());
    assert_eq!(pair.remotes.session(NodeId(1)).unwrap_err(), DOWN);
    let took = began.elapsed();
    let at_once = Duration::from_millis(200);
    assert!(took < at_once + late.total(), "{took:?}");
    proxy.hold(false);
    until("it is back", || {
        pair.remotes
            .session(NodeId(1))
            .is_ok_and(|back| echoes(&back, 2))
    });
    assert_ne!(
        pair.remotes.session(NodeId(1)).unwrap().epoch(),
        session.epoch()
    );
    assert_eq!(
        call(&session, attr(1)).unwrap_err(),
        DOWN,
        "the old session stays dead"
    );
}

#[test]
fn a_node_that_does_not_answer_the_connection_is_down_within_two_seconds() {
    let pair = Pair::new();
    // Accepted by the kernel, and nobody speaks.
    let silent = TcpListener::bind(local(0)).unwrap();
    pair.set_address(silent.local_addr().unwrap());
    let (began, late) = (Instant::now(), Lateness::watch());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(pair.remotes.session(NodeId(1)).unwrap_err(), DOWN));
        }
    });
    let took = began.elapsed();
    assert!(took < DOWN_WITHIN + late.total(), "{took:?}");
    pair.set_address(pair.server.address());
    until("it is back", || pair.remotes.session(NodeId(1)).is_ok());
}

#[test]
fn a_restarted_server_is_reached_by_a_new_session_at_once() {
    let mut pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    assert!(echoes(&session, 1));
    let address = pair.server.address();
    pair.server.shutdown();
    let one = pair.cluster.first.clone();
    pair.server = serve(&one, local(0), &Arc::new(FakeService::default()));
    assert_ne!(pair.server.address(), address);
    pair.set_address(pair.server.address());
    // Not one request fails: the unused connection was looked at before it was used.
    let fresh = pair.remotes.session(NodeId(1)).unwrap();
    assert!(echoes(&fresh, 2));
    assert_ne!(fresh.epoch(), session.epoch());
}

#[test]
fn a_node_declared_dead_fails_at_once_and_is_still_probed() {
    let pair = Pair::new();
    pair.set_liveness(Liveness::Dead);
    assert_eq!(pair.remotes.session(NodeId(1)).unwrap_err(), DOWN);
    // It answers the probe: the failure detector was wrong, or late.
    until("it is back", || pair.remotes.session(NodeId(1)).is_ok());
}

#[test]
fn unknown_nodes_and_closed_ports_are_down() {
    let pair = Pair::new();
    assert_eq!(pair.remotes.session(NodeId(99)).unwrap_err(), DOWN);
    pair.server.shutdown();
    assert_eq!(pair.remotes.session(NodeId(1)).unwrap_err(), DOWN);
}

#[test]
fn a_new_connection_of_a_peer_replaces_its_half_open_one() {
    let pair = Pair::new();
    let proxy = Proxy::new(pair.server.address());
    pair.set_address(proxy.address);
    let old = pair.remotes.session(NodeId(1)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| call(&old, lock()));
        until("it waits", || {
            pair.service.running.load(Ordering::SeqCst) == 1
        });
        proxy.hold(true);
        pair.set_address(pair.server.address());
        until("connected anew", || {
            pair.remotes
                .session(NodeId(1))
                .is_ok_and(|new| new.epoch() != old.epoch())
        });
        // The server still believed in the first connection, and has let it go.
        until("old lock gone", || {
            pair.service.running.load(Ordering::SeqCst) == 0
        });
        proxy.hold(false);
    });
    until("one connection", || pair.server.connections() == 1);
}

#[test]
fn silent_strangers_do_not_keep_nodes_out_however_many_they_are() {
    let pair = Pair::new();
    let places = super::server::UNAUTHENTICATED;
    let strangers: Vec<_> = (0..4 * (places.strangers + places.members))
        .map(|_| TcpStream::connect(pair.server.address()).unwrap())
        .collect();
    assert!(echoes(&pair.remotes.session(NodeId(1)).unwrap(), 3));
    drop(strangers);
    assert_eq!(pair.server.connections(), 1);
}

#[test]
fn strangers_that_send_a_part_of_a_record_do_not_keep_nodes_out() {
    let pair = Pair::new();
    let strangers: Vec<_> = (0..super::server::UNAUTHENTICATED.per_source * 2)
        .map(|_| {
            let mut stranger = TcpStream::connect(pair.server.address()).unwrap();
            io::Write::write_all(&mut stranger, &[22, 3, 1, 0, 200]).unwrap();
            stranger
        })
        .collect();
    assert!(echoes(&pair.remotes.session(NodeId(1)).unwrap(), 3));
    drop(strangers);
}

#[test]
fn one_node_cannot_take_all_connections() {
    let pair = Pair::new();
    let most = super::server::CONNECTIONS.per_key;
    let link = |number: usize| {
        let ours = hello(NodeId(2), PURPOSE_FS, &number.to_be_bytes(), 1);
        let deadline = Duration::from_secs(20);
        connect(pair.server.address(), &pair.two, NodeId(1), &ours, deadline).unwrap()
    };
    let links: Vec<_> = (0..most).map(link).collect();
    until("all are served", || pair.server.connections() == most);
    let (mut refused, _) = link(most);
    assert!(refused.source.recv().is_err(), "one more is closed");
    drop(links);
    until("nodes get in", || pair.remotes.session(NodeId(1)).is_ok());
}

#[test]
fn shutting_down_ends_connections_and_threads_within_its_deadline() {
    let pair = Pair::new();
    let session = pair.remotes.session(NodeId(1)).unwrap();
    assert!(echoes(&session, 1));
    let (began, late) = (Instant::now(), Lateness::watch());
    pair.server.shutdown();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1) + late.total(), "{took:?}");
    assert_eq!(pair.server.connections(), 0);
    assert_eq!(call(&session, attr(1)).unwrap_err(), DOWN);
    assert!(TcpStream::connect(pair.server.address()).is_err());
}
