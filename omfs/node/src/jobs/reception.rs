//! Who connects to a supervisor's port: the guest that is awaited, or strangers.
//!
//! The supervisor must not have a second thread, since it is about to fork. So that a stranger who
//! says nothing does not keep the guest waiting, a connection is heard only when its first TLS
//! record has arrived.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use omfs_dataplane::{self as dataplane, PURPOSE_JOB};
use omfs_pki::TlsIdentity;
use proto::ids::NodeId;
use proto::link::Link;

/// A handshake with somebody who speaks TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Connections that have not said anything yet.
const PENDING_MAX: usize = 32;
/// A record that has arrived in part is looked at again after this time.
const PART_PAUSE: Duration = Duration::from_millis(2);
/// The longest first record, header included: a ClientHello has a few hundred bytes.
const RECORD_BYTES_MAX: usize = 4096;
/// TLS: type handshake.
const HANDSHAKE_TYPE: u8 = 22;

/// How much of a connection's first record is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arrived {
    Nothing,
    Part,
    Whole,
    /// It has ended, or this is not TLS.
    Never,
}

fn arrived(stream: &TcpStream) -> Arrived {
    let mut bytes = [0; RECORD_BYTES_MAX];
    match stream.peek(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Arrived::Nothing,
        Err(_) | Ok(0) => Arrived::Never,
        Ok(count) => match bytes.get(..count).unwrap_or_default() {
            [HANDSHAKE_TYPE, _, _, high, low, rest @ ..] => {
                let wanted = usize::from(u16::from_be_bytes([*high, *low]));
                match rest.len() {
                    _ if wanted > RECORD_BYTES_MAX - 5 => Arrived::Never,
                    there if there >= wanted => Arrived::Whole,
                    _ => Arrived::Part,
                }
            }
            [HANDSHAKE_TYPE, ..] => Arrived::Part,
            _ => Arrived::Never,
        },
    }
}

/// Accepts connections until one brings the token from the right node.
///
/// # Errors
/// `TimedOut` when nobody has by then.
pub fn await_guest(
    listener: &TcpListener,
    identity: &TlsIdentity,
    home: NodeId,
    token: &str,
    until: Instant,
) -> io::Result<Link> {
    let mut pending: Vec<(TcpStream, SocketAddr)> = Vec::new();
    loop {
        let fds = pending.iter().map(|one| one.0.as_fd());
        wait(fds.chain([listener.as_fd()]).collect(), until)?;
        if wait(vec![listener.as_fd()], Instant::now()).is_ok() {
            let (stream, from) = listener.accept()?;
            stream.set_nonblocking(true)?;
            pending.push((stream, from));
        }
        if pending.len() > PENDING_MAX {
            let (_, from) = pending.remove(0);
            tracing::warn!("{from} is not heard: too many strangers");
        }
        let states: Vec<Arrived> = pending.iter().map(|one| arrived(&one.0)).collect();
        let mut left = Vec::new();
        for ((stream, from), state) in pending.into_iter().zip(&states) {
            match state {
                Arrived::Nothing | Arrived::Part => left.push((stream, from)),
                Arrived::Never => tracing::warn!("{from} does not speak TLS"),
                Arrived::Whole => {
                    if let Some(link) = hear(stream, from, identity, home, token, until) {
                        return Ok(link);
                    }
                }
            }
        }
        pending = left;
        if states.contains(&Arrived::Part) {
            thread::sleep(PART_PAUSE);
        }
    }
}

/// The guest's link, if it is the guest.
fn hear(
    stream: TcpStream,
    from: SocketAddr,
    identity: &TlsIdentity,
    home: NodeId,
    token: &str,
    until: Instant,
) -> Option<Link> {
    stream.set_nonblocking(false).ok()?;
    let left = until.saturating_duration_since(Instant::now());
    let hello = dataplane::hello(identity.node(), PURPOSE_JOB, &[], 0);
    match dataplane::accept(stream, identity, &hello, left.min(HANDSHAKE_MAX)) {
        Ok(accepted) if is_expected(&accepted, home, token) => return Some(accepted.link),
        Ok(accepted) => {
            tracing::warn!("{from}, node {}, is not the guest awaited", accepted.peer);
            accepted.link.sink.close();
        }
        Err(error) => tracing::warn!("{from}: {error}"),
    }
    None
}

fn is_expected(accepted: &dataplane::Accepted, home: NodeId, token: &str) -> bool {
    let told: String = accepted
        .hello
        .token
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let difference = told
        .bytes()
        .zip(token.bytes())
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    accepted.peer == home
        && accepted.hello.purpose == PURPOSE_JOB
        && told.len() == token.len()
        && difference == 0
}

/// Waits until one of them can be read; looks at least once.
fn wait(fds: Vec<BorrowedFd<'_>>, until: Instant) -> io::Result<()> {
    let mut fds: Vec<_> = fds
        .into_iter()
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) if left.is_zero() => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nobody came in time",
                ));
            }
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrator::shim::Connector;
    use omfs_pki::Store;

    use super::super::shim_main::{TlsConnector, address};

    fn identity() -> TlsIdentity {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let cluster = "c".parse().unwrap();
        store.init_cluster(&cluster, NodeId(1), "n1").unwrap()
    }

    #[test]
    fn only_who_brings_the_token_gets_in() {
        let identity = identity();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = address(&listener.local_addr().unwrap().to_string(), NodeId(1));
        let connector = TlsConnector::new(identity.clone());
        let until = Instant::now() + Duration::from_secs(10);
        let awaited = std::thread::spawn(move || {
            await_guest(&listener, &identity, NodeId(1), "00ff", until).map(drop)
        });
        let mut garbage = TcpStream::connect(there.split('#').next().unwrap()).unwrap();
        io::Write::write_all(&mut garbage, b"GET / HTTP/1.0\r\n\r\n").unwrap();
        drop(garbage);
        let _silent = TcpStream::connect(there.split('#').next().unwrap()).unwrap();
        let mut slow = TcpStream::connect(there.split('#').next().unwrap()).unwrap();
        io::Write::write_all(&mut slow, &[HANDSHAKE_TYPE, 3, 1, 0]).unwrap();
        for wrong in ["00fe", "00", "00ff00", ""] {
            let link = connector.connect(&there, wrong);
            let refused = link.is_err() || link.unwrap().source.recv().is_err();
            assert!(refused, "{wrong:?}");
        }
        assert!(!awaited.is_finished());
        let start = Instant::now();
        connector.connect(&there, "00ff").unwrap();
        awaited.join().unwrap().unwrap();
        assert!(
            start.elapsed() < HANDSHAKE_MAX,
            "who is silent keeps the guest waiting"
        );
    }

    #[test]
    fn nobody_is_awaited_for_ever() {
        let identity = identity();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let error = await_guest(&listener, &identity, NodeId(1), "00", until).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_whole_records_of_tls_are_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let seen_after = |bytes: &[u8]| {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            io::Write::write_all(&mut client, bytes).unwrap();
            let until = Instant::now() + Duration::from_secs(5);
            if !bytes.is_empty() {
                wait(vec![stream.as_fd()], until).unwrap();
            }
            arrived(&stream)
        };
        assert_eq!(seen_after(b""), Arrived::Nothing);
        assert_eq!(seen_after(&[22, 3]), Arrived::Part);
        assert_eq!(seen_after(&[22, 3, 1, 0, 2, 7]), Arrived::Part);
        assert_eq!(seen_after(&[22, 3, 1, 0, 2, 7, 7]), Arrived::Whole);
        assert_eq!(seen_after(&[22, 3, 1, 255, 2, 7]), Arrived::Never);
        assert_eq!(seen_after(b"GET /"), Arrived::Never);
    }
}
