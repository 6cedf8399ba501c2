//! Connections to a port before their clients have shown a certificate.
//!
//! One thread watches all that are silent, and hands on those whose first TLS record has arrived.
//! So whoever only connects costs a descriptor and a place, both of them bounded per source address,
//! and is displaced by the next one of the same source.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use omfs_limits::connections::{ConnectionId, Connections, Policy, Refusal, Room};
use omfs_limits::repeats::Repeats;
use omfs_limits::source::Source;

/// A record that has arrived in part is looked at again after this time.
const PART_PAUSE: Duration = Duration::from_millis(2);
/// How often it is looked who is overdue.
const TICK: Duration = Duration::from_millis(500);
/// Connections that are taken from the kernel before others are looked at.
const ACCEPTED_AT_ONCE_MAX: usize = 64;
/// The longest first record, header included: a ClientHello has a few hundred bytes.
const RECORD_BYTES_MAX: usize = 4096;
/// TLS: type handshake.
const HANDSHAKE_TYPE: u8 = 22;
/// A handshake ends by its own deadline, long before this.
const HANDSHAKE_ENDS: Duration = Duration::from_secs(3600);

/// Places of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// For one source address.
    pub per_source: usize,
    /// For all sources that are no members' together.
    pub strangers: usize,
    /// For all members' addresses together.
    pub members: usize,
    /// How long a client may be silent.
    pub silent_max: Duration,
}

/// Whether an address is a member's.
pub type IsMember = dyn Fn(IpAddr) -> bool + Send + Sync;

type Table = Mutex<Connections<Source>>;

fn lock(table: &Table) -> MutexGuard<'_, Connections<Source>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place, until it is dropped.
#[derive(Debug)]
struct Place {
    id: ConnectionId,
    table: Arc<Table>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.table).remove(self.id);
    }
}

/// A connection whose client has begun a handshake; it keeps its place until it is dropped.
#[derive(Debug)]
pub struct Candidate {
    stream: TcpStream,
    /// Where it comes from.
    pub from: SocketAddr,
    place: Place,
}

/// What a candidate still counts against.
#[derive(Debug)]
pub struct Counted {
    _place: Place,
}

impl Candidate {
    /// Another descriptor of the connection, to hang up on it.
    ///
    /// # Errors
    /// That of dup(2).
    pub fn try_clone(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// The connection, and what makes it count until that is dropped.
    #[must_use]
    pub fn split(self) -> (TcpStream, Counted) {
        let counted = Counted { _place: self.place };
        (self.stream, counted)
    }
}

#[derive(Debug)]
struct Silent {
    stream: TcpStream,
    from: SocketAddr,
    place: Place,
    /// Part of a record is there: poll(2) would say so again at once.
    has_part: bool,
}

/// The silent connections of one port, and the count of all that are not authenticated yet.
pub struct Preauth {
    table: Arc<Table>,
    silent: Vec<Silent>,
    is_member: Box<IsMember>,
    repeats: Repeats<Event>,
}

/// What is told of at most once a minute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Event {
    Refused(Refusal),
    Displaced,
    Silent,
    NoTls,
}

impl std::fmt::Debug for Preauth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preauth")
            .field("silent", &self.silent.len())
            .finish_non_exhaustive()
    }
}

impl Preauth {
    /// For a port with these places.
    #[must_use]
    pub fn new(places: &Places, is_member: Box<IsMember>) -> Self {
        let policy = Policy {
            per_key: places.per_source,
            common: places.strangers,
            reserved: places.members,
            // What is authenticated is counted elsewhere.
            known: 0,
            silent_max: places.silent_max,
            idle_max: HANDSHAKE_ENDS,
            idle_min: HANDSHAKE_ENDS,
        };
        Self {
            table: Arc::new(Mutex::new(Connections::new(policy))),
            silent: Vec::new(),
            is_member,
            repeats: Repeats::default(),
        }
    }

    /// Accepts connections, and returns those whose first record is there: none, if `until` has come
    /// or `wake` can be read.
    ///
    /// # Errors
    /// Those of the listener, which has to be non-blocking.
    pub fn wait(
        &mut self,
        listener: &TcpListener,
        wake: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> io::Result<Vec<Candidate>> {
        loop {
            let (accepts, is_woken) = self.poll(listener, wake, until)?;
            if accepts {
                self.accept(listener)?;
            }
            self.drop_overdue();
            let ready = self.take_ready();
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if is_woken || is_over || !ready.is_empty() {
                return Ok(ready);
            }
        }
    }

    fn poll(
        &self,
        listener: &TcpListener,
        wake: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> io::Result<(bool, bool)> {
        let watched = self.silent.iter().filter(|one| !one.has_part);
        let fds = [listener.as_fd()].into_iter().chain(wake);
        let fds = fds.chain(watched.map(|one| one.stream.as_fd()));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, self.timeout(until)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok((false, false)),
            Err(error) => return Err(error.into()),
        }
        let happened = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        Ok((happened(0), wake.is_some() && happened(1)))
    }

    fn timeout(&self, until: Option<Instant>) -> PollTimeout {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let tick = match self.silent.iter().any(|one| one.has_part) {
            true => Some(PART_PAUSE),
            false => (!self.silent.is_empty()).then_some(TICK),
        };
        match left.into_iter().chain(tick).min() {
            // Rounded up: a poll of 0 ms before the time has come would be repeated at once.
            Some(least) => {
                let millis = least.as_micros().div_ceil(1000);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        for _ in 0..ACCEPTED_AT_ONCE_MAX {
            match listener.accept() {
                Ok((stream, from)) => self.admit(stream, from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn admit(&mut self, stream: TcpStream, from: SocketAddr) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let room = match (self.is_member)(from.ip()) {
            true => Room::Reserved,
            false => Room::Common,
        };
        let admitted = lock(&self.table).admit(Source::from(from.ip()), room, Instant::now());
        match admitted {
            Ok(admitted) => {
                if let Some(displaced) = admitted.displaced {
                    self.silent.retain(|one| one.place.id != displaced);
                    self.tell(Event::Displaced, from);
                }
                let (id, table) = (admitted.id, Arc::clone(&self.table));
                let place = Place { id, table };
                let has_part = false;
                self.silent.push(Silent {
                    stream,
                    from,
                    place,
                    has_part,
                });
            }
            Err(refusal) => self.tell(Event::Refused(refusal), from),
        }
    }

    fn drop_overdue(&mut self) {
        let overdue = lock(&self.table).take_overdue(Instant::now());
        if !overdue.is_empty() {
            let gone = self
                .silent
                .extract_if(.., |one| overdue.contains(&one.place.id));
            let gone: Vec<Silent> = gone.collect();
            gone.iter()
                .for_each(|one| self.tell(Event::Silent, one.from));
        }
    }

    fn take_ready(&mut self) -> Vec<Candidate> {
        let mut ready = Vec::new();
        for mut one in std::mem::take(&mut self.silent) {
            match arrived(&one.stream) {
                Arrived::Nothing => self.silent.push(one),
                Arrived::Part => {
                    one.has_part = true;
                    self.silent.push(one);
                }
                // It hung up, which is nothing to tell of.
                Arrived::End => {}
                Arrived::Other => self.tell(Event::NoTls, one.from),
                Arrived::Whole => {
                    lock(&self.table).spoke(one.place.id, Instant::now());
                    let Silent {
                        stream,
                        from,
                        place,
                        ..
                    } = one;
                    ready.push(Candidate {
                        stream,
                        from,
                        place,
                    });
                }
            }
        }
        ready
    }

    fn tell(&mut self, event: Event, from: SocketAddr) {
        let Some(count) = self.repeats.note(&event, Instant::now()) else {
            return;
        };
        match event {
            Event::Refused(Refusal::KeyFull) => {
                tracing::warn!(%from, count, "refused: too many handshakes of this address");
            }
            Event::Refused(Refusal::RoomFull) => {
                tracing::warn!(%from, count, "refused: too many handshakes");
            }
            Event::Displaced => {
                tracing::warn!(%from, count, "a silent connection was closed: too many of them");
            }
            Event::Silent => tracing::info!(%from, count, "closed: silent for too long"),
            Event::NoTls => tracing::info!(%from, count, "closed: not TLS"),
        }
    }
}

/// Errors of accept(2) that concern only the connection that was to be accepted (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    const OWN: [Errno; 10] = [
        Errno::EINTR,
        Errno::ECONNABORTED,
        Errno::ENETDOWN,
        Errno::EPROTO,
        Errno::ENOPROTOOPT,
        Errno::EHOSTDOWN,
        Errno::ENONET,
        Errno::EHOSTUNREACH,
        Errno::EOPNOTSUPP,
        Errno::ENETUNREACH,
    ];
    let number = error.raw_os_error();
    OWN.iter().any(|errno| number == Some(*errno as i32))
}

/// How much of a connection's first record is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arrived {
    Nothing,
    Part,
    Whole,
    /// It has ended.
    End,
    /// This is not TLS.
    Other,
}

fn arrived(stream: &TcpStream) -> Arrived {
    let mut bytes = [0; RECORD_BYTES_MAX];
    match stream.peek(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Arrived::Nothing,
        Err(_) | Ok(0) => Arrived::End,
        Ok(count) => match bytes.get(..count).unwrap_or_default() {
            [HANDSHAKE_TYPE, _, _, high, low, rest @ ..] => {
                let wanted = usize::from(u16::from_be_bytes([*high, *low]));
                match rest.len() {
                    _ if wanted > RECORD_BYTES_MAX - 5 => Arrived::Other,
                    there if there >= wanted => Arrived::Whole,
                    _ => Arrived::Part,
                }
            }
            [HANDSHAKE_TYPE, ..] => Arrived::Part,
            _ => Arrived::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const PLACES: Places = Places {
        per_source: 4,
        strangers: 8,
        members: 8,
        silent_max: Duration::from_secs(5),
    };
    const RECORD: [u8; 7] = [HANDSHAKE_TYPE, 3, 1, 0, 2, 7, 7];

    fn listen() -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    fn connect(listener: &TcpListener) -> TcpStream {
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(20))
    }

    #[test]
    fn only_whole_records_of_tls_are_heard() {
        let listener = listen();
        let seen_after = |bytes: &[u8]| {
            let mut client = connect(&listener);
            let (stream, _) = loop {
                match listener.accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    accepted => break accepted.unwrap(),
                }
            };
            client.write_all(bytes).unwrap();
            if !bytes.is_empty() {
                stream.peek(&mut [0]).unwrap();
            }
            stream.set_nonblocking(true).unwrap();
            arrived(&stream)
        };
        assert_eq!(seen_after(b""), Arrived::Nothing);
        assert_eq!(seen_after(&[22, 3]), Arrived::Part);
        assert_eq!(seen_after(&[22, 3, 1, 0, 2, 7]), Arrived::Part);
        assert_eq!(seen_after(&RECORD), Arrived::Whole);
        assert_eq!(seen_after(&[22, 3, 1, 255, 2, 7]), Arrived::Other);
        assert_eq!(seen_after(b"GET /"), Arrived::Other);
    }

    #[test]
    fn whoever_speaks_is_heard_beside_any_number_of_silent_ones() {
        let listener = listen();
        let mut preauth = Preauth::new(&PLACES, Box::new(|_| false));
        let silent: Vec<_> = (0..40).map(|_| connect(&listener)).collect();
        let mut slow = connect(&listener);
        slow.write_all(&RECORD[..3]).unwrap();
        let mut client = connect(&listener);
        client.write_all(&RECORD).unwrap();
        let ready = preauth.wait(&listener, None, soon()).unwrap();
        let from: Vec<_> = ready.iter().map(|one| one.from).collect();
        assert_eq!(from, [client.local_addr().unwrap()]);
        assert!(preauth.silent.len() <= PLACES.per_source);
        slow.write_all(&RECORD[3..]).unwrap();
        let ready = preauth.wait(&listener, None, soon()).unwrap();
        assert_eq!(ready[0].from, slow.local_addr().unwrap());
        drop(silent);
    }

    #[test]
    fn handshakes_under_way_are_bounded_per_source_and_give_their_places_back() {
        let listener = listen();
        let mut preauth = Preauth::new(&PLACES, Box::new(|_| true));
        let mut held = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..PLACES.per_source {
            let mut client = connect(&listener);
            client.write_all(&RECORD).unwrap();
            held.extend(preauth.wait(&listener, None, soon()).unwrap());
            clients.push(client);
        }
        let mut refused = connect(&listener);
        refused.write_all(&RECORD).unwrap();
        let until = Some(Instant::now() + Duration::from_millis(200));
        assert!(preauth.wait(&listener, None, until).unwrap().is_empty());
        drop(held);
        let mut next = connect(&listener);
        next.write_all(&RECORD).unwrap();
        assert_eq!(preauth.wait(&listener, None, soon()).unwrap().len(), 1);
    }
}
