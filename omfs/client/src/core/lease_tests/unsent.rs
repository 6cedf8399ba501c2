//! What becomes of bytes that were held back when a connection, or the daemon, ends.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::journal::Left;

/// A client behind a proxy that has written what cannot be sent; and where it goes on.
fn stuck(owner: &Owner, proxy: &Proxy, core: &Core) -> (u64, u64) {
    let fh = create(core, "f");
    let at = write_until_leased(core, fh, 1);
    core.fsync(WHO, fh, true).unwrap();
    assert_eq!(size(owner), at);
    proxy.hold(true);
    for piece in 0..3 {
        let offset = at + piece * 1000;
        assert_eq!(
            core.write(WHO, fh, offset, &[2; 1000], false),
            Ok(1000),
            "not held back"
        );
    }
    (fh, at)
}

fn size(owner: &Owner) -> u64 {
    fs::metadata(owner.path("f")).unwrap().len()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn expect(owner: &Owner, at: u64, end: u64, byte: u8) {
    let seen = fs::read(owner.path("f")).unwrap();
    assert_eq!(seen.len() as u64, end);
    let (old, new) = seen.split_at(usize::try_from(at).unwrap());
    assert!(old.iter().all(|byte| *byte == 1));
    assert!(new.iter().all(|seen| *seen == byte));
}

#[test]
fn held_bytes_outlive_their_connection() {
    let owner = Owner::new();
    let proxy = Proxy::new(owner.server.address());
    let core = Arc::new(owner.client_at(2, proxy.address));
    core.send_by_itself();
    let (fh, at) = stuck(&owner, &proxy, &core);
    assert_eq!(core.fsync(WHO, fh, true), Err(errno(libc::EHOSTDOWN)));
    proxy.hold(false);
    // Nobody has to ask for it.
    until("the bytes never came", || size(&owner) == at + 3000);
    expect(&owner, at, at + 3000, 2);
    core.write(WHO, fh, at + 3000, &[2; 1000], false).unwrap();
    core.flush(WHO, fh, 1).unwrap();
    expect(&owner, at, at + 4000, 2);
}

#[test]
fn held_bytes_never_overwrite_what_was_written_later() {
    let owner = Owner::new();
    let proxy = Proxy::new(owner.server.address());
    let core = owner.client_at(2, proxy.address);
    let (fh, at) = stuck(&owner, &proxy, &core);
    assert_eq!(core.fsync(WHO, fh, true), Err(errno(libc::EHOSTDOWN)));
    // Waits until the client is fenced.
    let native = OpenOptions::new().write(true).open(owner.path("f"));
    native.unwrap().write_all_at(&[3; 5000], at).unwrap();
    proxy.hold(false);
    let mut answer = Ok(());
    until("no word of lost bytes", || {
        answer = core.fsync(WHO, fh, true);
        answer != Err(errno(libc::EHOSTDOWN))
    });
    assert_eq!(answer, Err(errno(libc::EIO)));
    assert_eq!(core.flush(WHO, fh, 1), Err(errno(libc::EIO)));
    assert!(core.write(WHO, fh, at + 3000, &[2; 9], false).is_err());
    core.release(WHO, fh, None).unwrap();
    expect(&owner, at, at + 5000, 3);
}

/// A daemon that is killed, as far as its successor can tell: it does nothing more.
fn successor(owner: &Owner, dir: &tempfile::TempDir, address: std::net::SocketAddr) -> Arc<Core> {
    let path = dir.path().join("1");
    let left = Left::read(&path).unwrap();
    let journal = Journal::succeed(&path, &left);
    // A certificate is given only once; the owner does not mind whose it is.
    static CERTIFICATES: AtomicU32 = AtomicU32::new(10);
    let id = CERTIFICATES.fetch_add(1, Ordering::Relaxed);
    let core = Arc::new(owner.client_with(id, address, journal));
    core.inherit(left);
    core
}

/// A client that keeps a journal and has written what cannot be sent.
struct Doomed {
    owner: Owner,
    dir: tempfile::TempDir,
    proxy: Proxy,
    core: Core,
    fh: u64,
    at: u64,
}

fn doomed() -> Doomed {
    let (owner, dir) = (Owner::new(), tempfile::tempdir().unwrap());
    let proxy = Proxy::new(owner.server.address());
    let journal = Journal::create(&dir.path().join("1")).unwrap();
    let core = owner.client_with(2, proxy.address, journal);
    let (fh, at) = stuck(&owner, &proxy, &core);
    let id = core.opens.file(fh).unwrap().id;
    core.note_open(id, fh, (0, false));
    Doomed {
        owner,
        dir,
        proxy,
        core,
        fh,
        at,
    }
}

#[test]
fn the_next_daemon_sends_what_the_last_one_held() {
    let Doomed {
        owner,
        dir,
        core: _core,
        proxy: _proxy,
        fh,
        at,
    } = doomed();
    let next = successor(&owner, &dir, owner.server.address());
    next.send_by_itself();
    until("the bytes never came", || size(&owner) == at + 3000);
    next.write(WHO, fh, at + 3000, &[2; 1000], false).unwrap();
    next.release(WHO, fh, None).unwrap();
    expect(&owner, at, at + 4000, 2);
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "the journal, and nothing that was held back");
}

#[test]
fn losses_are_told_by_the_next_daemon_too() {
    let Doomed {
        owner,
        dir,
        core: _core,
        proxy: _proxy,
        fh,
        at,
    } = doomed();
    let native = OpenOptions::new().write(true).open(owner.path("f"));
    native.unwrap().write_all_at(&[3; 5000], at).unwrap();
    for _ in 0..2 {
        let next = successor(&owner, &dir, owner.server.address());
        assert_eq!(next.fsync(WHO, fh, true), Err(errno(libc::EIO)));
    }
    expect(&owner, at, at + 5000, 3);
}

#[test]
fn a_piece_that_arrived_without_word_of_it_is_no_change() {
    let Doomed {
        owner,
        dir,
        core,
        proxy: _proxy,
        fh,
        at,
    } = doomed();
    assert!(core.fsync(WHO, fh, true).is_err());
    // As the owner would have done it in its last moment, and not to its end.
    let native = OpenOptions::new().write(true).open(owner.path("f"));
    native.unwrap().write_all_at(&[2; 1700], at).unwrap();
    let next = successor(&owner, &dir, owner.server.address());
    next.fsync(WHO, fh, true).unwrap();
    expect(&owner, at, at + 3000, 2);
}

#[test]
fn a_daemon_that_is_told_to_end_sends_everything_and_holds_nothing_more() {
    let owner = Owner::new();
    let core = owner.client(2);
    let (fh, at) = held_back(&core);
    core.settle_all();
    assert_eq!(size(&owner), at + 1000);
    core.write(WHO, fh, at + 1000, &[2; 1000], false).unwrap();
    assert_eq!(size(&owner), at + 2000);
}
