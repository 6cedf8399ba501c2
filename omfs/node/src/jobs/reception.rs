//! Who connects to a supervisor's port: the guest that is awaited, or strangers.
//!
//! Several connections are heard at the same time, each by a thread, so that a client that is slow or
//! silent keeps nobody waiting. All these threads have ended when [`await_guest`] returns: the
//! supervisor must not have a second one, since it is about to fork.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use omfs_dataplane::preauth::{Candidate, Places, Preauth};
use omfs_dataplane::{self as dataplane, PURPOSE_JOB};
use omfs_limits::repeats::Repeats;
use omfs_pki::TlsIdentity;
use proto::ids::NodeId;
use proto::link::Link;

/// A handshake with somebody who speaks TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Connections that are not the awaited one, as far as is known.
const PLACES: Places = Places {
    per_source: 8,
    strangers: 32,
    members: 0,
    silent_max: HANDSHAKE_MAX,
};
/// A thread that was joined is counted for a moment longer.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// The guest that is awaited, and how it is recognised.
struct Expected<'a> {
    identity: &'a TlsIdentity,
    home: NodeId,
    token: &'a str,
    until: Instant,
    repeats: Mutex<Repeats<io::ErrorKind>>,
}

impl Expected<'_> {
    /// How often connections have failed like this since that was last told, if it is to be told.
    fn note(&self, error: io::ErrorKind) -> Option<u64> {
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        repeats.note(&error, Instant::now())
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
    listener.set_nonblocking(true)?;
    let expected = Expected {
        identity,
        home,
        token,
        until,
        repeats: Mutex::default(),
    };
    let before = threads();
    let found = thread::scope(|scope| {
        let mut heard = Vec::new();
        let found = hear_all(scope, listener, &expected, &mut heard);
        // Ends the handshakes under way, and with them their threads.
        let others = heard
            .iter()
            .filter(|one| Some(one.number) != number_of(&found));
        others.for_each(|one| drop(one.stream.shutdown(Shutdown::Both)));
        found
    });
    wait_for_threads(before);
    found.map(|found| found.link)
}

/// A connection that a thread hears, so that it can be hung up on.
struct Heard {
    number: usize,
    stream: TcpStream,
}

/// The connection that brought the token.
struct Found {
    number: usize,
    link: Link,
}

fn number_of(found: &io::Result<Found>) -> Option<usize> {
    found.as_ref().ok().map(|found| found.number)
}

fn hear_all<'scope, 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    listener: &TcpListener,
    expected: &'env Expected<'env>,
    heard: &mut Vec<Heard>,
) -> io::Result<Found> {
    let (wake, woken) = UnixStream::pair()?;
    let (found, finds): (Sender<Found>, Receiver<Found>) = channel();
    let mut preauth = Preauth::new(&PLACES, Box::new(|_| false));
    let mut number = 0;
    loop {
        let candidates = preauth.wait(listener, Some(woken.as_fd()), Some(expected.until))?;
        if let Ok(found) = finds.try_recv() {
            return Ok(found);
        }
        for candidate in candidates {
            number += 1;
            let (stream, from) = (candidate.try_clone()?, candidate.from);
            let (found, wake) = (found.clone(), wake.try_clone()?);
            let hear = move || {
                if let Some(link) = hear(candidate, expected) {
                    let _ = found.send(Found { number, link });
                    let _ = io::Write::write(&mut &wake, &[0]);
                }
            };
            match thread::Builder::new().spawn_scoped(scope, hear) {
                Ok(_) => heard.push(Heard { number, stream }),
                Err(error) => tracing::warn!("{from} is not heard: {error}"),
            }
        }
        if Instant::now() >= expected.until {
            let text = "nobody came in time";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
    }
}

/// The guest's link, if it is the guest.
fn hear(candidate: Candidate, expected: &Expected<'_>) -> Option<Link> {
    let from = candidate.from;
    let (stream, _counted) = candidate.split();
    let left = expected.until.saturating_duration_since(Instant::now());
    let hello = dataplane::hello(expected.identity.node(), PURPOSE_JOB, &[], 0);
    match dataplane::accept(stream, expected.identity, &hello, left.min(HANDSHAKE_MAX)) {
        Ok(accepted) if is_expected(&accepted, expected.home, expected.token) => {
            return Some(accepted.link);
        }
        Ok(accepted) => {
            if let Some(count) = expected.note(io::ErrorKind::PermissionDenied) {
                let peer = accepted.peer;
                tracing::warn!(count, "{from}, node {peer}, is not the guest awaited");
            }
            accepted.link.sink.close();
        }
        Err(error) => {
            if let Some(count) = expected.note(error.kind()) {
                tracing::info!(count, "{from}: {error}");
            }
        }
    }
    None
}

/// Threads that were joined are counted as this process' until the kernel has let them go, and some
/// system calls want a process without any (unshare(2)).
fn wait_for_threads(most: usize) {
    let until = Instant::now() + ENDS_WITHIN;
    while threads() > most && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
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
        io::Write::write_all(&mut slow, &[22, 3, 1, 0]).unwrap();
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
            "a silent client keeps the guest waiting"
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

    /// What a client sends first.
    fn client_hello(identity: &TlsIdentity) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = address(&listener.local_addr().unwrap().to_string(), NodeId(1));
        let connector = TlsConnector::new(identity.clone());
        let connecting = thread::spawn(move || connector.connect(&there, "").is_ok());
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 5];
        io::Read::read_exact(&mut stream, &mut head).unwrap();
        let mut record = head.to_vec();
        record.resize(5 + usize::from(u16::from_be_bytes([head[3], head[4]])), 0);
        io::Read::read_exact(&mut stream, &mut record[5..]).unwrap();
        drop(stream);
        assert!(!connecting.join().unwrap());
        record
    }

    #[test]
    fn strangers_that_begin_handshakes_and_stop_stall_nobody() {
        let identity = identity();
        let record = client_hello(&identity);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let strangers: Vec<_> = (1..PLACES.per_source)
            .map(|_| {
                let mut stranger = TcpStream::connect(there).unwrap();
                io::Write::write_all(&mut stranger, &record).unwrap();
                stranger
            })
            .collect();
        let connector = TlsConnector::new(identity.clone());
        let until = Instant::now() + Duration::from_secs(60);
        let start = Instant::now();
        let awaited =
            thread::spawn(move || await_guest(&listener, &identity, NodeId(1), "00ff", until));
        connector
            .connect(&address(&there.to_string(), NodeId(1)), "00ff")
            .unwrap();
        awaited.join().unwrap().unwrap();
        // One after the other they would have taken as many times the deadline.
        assert!(start.elapsed() < HANDSHAKE_MAX, "{:?}", start.elapsed());
        drop(strangers);
    }
}
