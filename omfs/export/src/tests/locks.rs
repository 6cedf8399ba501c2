//! Locks exclude other owners, other nodes and native programs.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::v1::fs_reply::Result as Reply;
use proto::v1::fs_request::Op;
use proto::v1::{Flush, FsRequest, Lock};

use super::client::{Client, ROOT};
use crate::{Errno, FileService};
use omfs_sys::lock::{LockKind, Range, set_flock, set_record};

const AGAIN: Errno = Errno(libc::EAGAIN);
const TO_END: u64 = i64::MAX as u64;

fn lock(fh: u64, owner: u64, kind: i32, start: u64, end: u64) -> Lock {
    Lock {
        fh,
        owner,
        start,
        end,
        r#type: kind as u32,
        pid: owner as i32,
        ..Lock::default()
    }
}

fn set(client: &Client, lock: Lock) -> Result<(), Errno> {
    client.call(Op::SetLock(lock)).map(drop)
}

fn get(client: &Client, lock: Lock) -> Lock {
    match client.call(Op::GetLock(lock)).expect("getlk").reply.result {
        Some(Reply::Lock(lock)) => lock,
        other => panic!("no lock: {other:?}"),
    }
}

fn file(client: &Client, flags: i32) -> u64 {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(client.path("a"))
        .expect("create");
    let node = client.lookup(ROOT, "a").expect("lookup").node;
    client.open(node, flags).expect("open")
}

#[test]
fn owners_exclude_each_other_by_range() {
    let client = Client::new();
    let fh = file(&client, libc::O_RDWR);
    assert_eq!(set(&client, lock(fh, 1, libc::F_WRLCK, 0, 9)), Ok(()));
    assert_eq!(set(&client, lock(fh, 2, libc::F_WRLCK, 9, 9)), Err(AGAIN));
    assert_eq!(
        set(&client, lock(fh, 2, libc::F_RDLCK, 5, TO_END)),
        Err(AGAIN)
    );
    assert_eq!(set(&client, lock(fh, 2, libc::F_WRLCK, 10, TO_END)), Ok(()));
    assert_eq!(
        set(&client, lock(fh, 1, libc::F_RDLCK, 0, 9)),
        Ok(()),
        "own locks convert"
    );
    assert_eq!(set(&client, lock(fh, 2, libc::F_RDLCK, 0, 9)), Ok(()));
    assert_eq!(set(&client, lock(fh, 1, libc::F_UNLCK, 0, TO_END)), Ok(()));
    assert_eq!(set(&client, lock(fh, 2, libc::F_WRLCK, 0, TO_END)), Ok(()));
}

#[test]
fn getlk_tells_who_is_in_the_way() {
    let client = Client::new();
    let fh = file(&client, libc::O_RDWR);
    set(&client, lock(fh, 7, libc::F_WRLCK, 3, 4)).expect("lock");
    let found = get(&client, lock(fh, 8, libc::F_RDLCK, 0, TO_END));
    assert_eq!(
        (found.r#type, found.start, found.end),
        (libc::F_WRLCK as u32, 3, 4)
    );
    assert_eq!(found.pid, 7);
    let own = get(&client, lock(fh, 7, libc::F_RDLCK, 0, TO_END));
    assert_eq!(own.r#type, libc::F_UNLCK as u32);
}

#[test]
fn other_nodes_and_native_programs_are_excluded() {
    let client = Client::new();
    let other = client.elsewhere();
    let (here, there) = (file(&client, libc::O_RDWR), file(&other, libc::O_RDWR));
    let native = File::options()
        .read(true)
        .write(true)
        .open(client.path("a"))
        .expect("open");
    let all = Range {
        start: 0,
        length: 0,
    };
    set(&client, lock(here, 1, libc::F_WRLCK, 0, TO_END)).expect("lock");
    assert_eq!(
        set(&other, lock(there, 1, libc::F_WRLCK, 0, TO_END)),
        Err(AGAIN)
    );
    assert!(set_record(native.as_fd(), LockKind::Shared, all).is_err());
    drop(client);
    set(&other, lock(there, 1, libc::F_RDLCK, 0, TO_END)).expect("a session's end unlocks");
    set_record(native.as_fd(), LockKind::Shared, all).expect("shared");
}

#[test]
fn flush_drops_the_owners_locks_only() {
    let client = Client::new();
    let fh = file(&client, libc::O_RDWR);
    set(&client, lock(fh, 1, libc::F_WRLCK, 0, 4)).expect("lock");
    set(&client, lock(fh, 2, libc::F_WRLCK, 5, 9)).expect("lock");
    client
        .call(Op::Flush(Flush {
            fh,
            lock_owner: 1,
            lease: 0,
        }))
        .expect("flush");
    assert_eq!(set(&client, lock(fh, 3, libc::F_WRLCK, 0, 4)), Ok(()));
    assert_eq!(set(&client, lock(fh, 3, libc::F_WRLCK, 5, 9)), Err(AGAIN));
    client.release(fh).expect("release");
    let fh = file(&client, libc::O_RDWR);
    assert_eq!(
        set(&client, lock(fh, 4, libc::F_WRLCK, 0, TO_END)),
        Ok(()),
        "nobody has it open"
    );
}

#[test]
fn one_owner_may_lock_through_differently_opened_files() {
    let client = Client::new();
    let (reading, writing) = (file(&client, libc::O_RDONLY), file(&client, libc::O_WRONLY));
    set(&client, lock(reading, 1, libc::F_RDLCK, 0, 4)).expect("shared");
    set(&client, lock(reading, 1, libc::F_RDLCK, 8, 9)).expect("shared");
    set(&client, lock(writing, 1, libc::F_WRLCK, 4, 6)).expect("exclusive");
    // All three are still held.
    for (start, end) in [(0, 3), (4, 4), (6, 6), (8, 9)] {
        let other = lock(writing, 2, libc::F_WRLCK, start, end);
        assert_eq!(set(&client, other), Err(AGAIN), "{start}");
    }
    assert_eq!(set(&client, lock(writing, 2, libc::F_WRLCK, 7, 7)), Ok(()));
    assert_eq!(
        set(&client, lock(reading, 3, libc::F_RDLCK, 4, 4)),
        Err(AGAIN)
    );
    assert_eq!(
        set(&client, lock(reading, 3, libc::F_WRLCK, 90, 91)),
        Err(Errno(libc::EBADF))
    );
}

fn flock(fh: u64, kind: i32) -> Lock {
    Lock {
        flock: true,
        ..lock(fh, 0, kind, 0, TO_END)
    }
}

#[test]
fn flocks_belong_to_open_files() {
    let client = Client::new();
    let other = client.elsewhere();
    let (here, again) = (file(&client, libc::O_RDONLY), file(&client, libc::O_RDONLY));
    let there = file(&other, libc::O_RDONLY);
    let native = File::open(client.path("a")).expect("open");
    set(&client, flock(here, libc::F_WRLCK)).expect("lock");
    assert_eq!(set(&client, flock(again, libc::F_RDLCK)), Err(AGAIN));
    assert_eq!(set(&other, flock(there, libc::F_RDLCK)), Err(AGAIN));
    assert!(set_flock(native.as_fd(), LockKind::Shared).is_err());
    let backing = client.session.backing_fd(here).expect("regular");
    client.release(here).expect("release");
    set(&client, flock(again, libc::F_RDLCK)).expect("though the backing file is open");
    set(&other, flock(there, libc::F_RDLCK)).expect("shared");
    drop(backing);
    set(&other, flock(there, libc::F_UNLCK)).expect("unlock");
    set(&client, flock(again, libc::F_WRLCK)).expect("convert");
}

fn wait_for(client: &Client, lock: Lock, cancel: &AtomicBool) -> Result<(), Errno> {
    let op = Some(Op::SetLock(Lock { wait: true, ..lock }));
    let request = FsRequest {
        caller: Some(client.caller.clone()),
        op,
    };
    client.session.call(&request, &[], cancel).map(drop)
}

/// Until somebody waits in the session.
fn until_waiting(client: &Client) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.session.locks.waiting() == 0 {
        assert!(Instant::now() < deadline, "nobody waits");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn waiting_ends_when_the_holder_releases() {
    let client = Client::new();
    let other = client.elsewhere();
    let (here, there) = (file(&client, libc::O_RDWR), file(&other, libc::O_RDWR));
    let never = AtomicBool::new(false);
    for is_flock in [false, true] {
        let kind = |fh, kind| Lock {
            flock: is_flock,
            ..lock(fh, 1, kind, 0, TO_END)
        };
        set(&client, kind(here, libc::F_WRLCK)).expect("lock");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_for(&other, kind(there, libc::F_WRLCK), &never));
            until_waiting(&other);
            assert!(!waiter.is_finished());
            set(&client, kind(here, libc::F_UNLCK)).expect("unlock");
            assert_eq!(waiter.join().expect("waiter"), Ok(()));
        });
        set(&other, kind(there, libc::F_UNLCK)).expect("unlock");
    }
}

#[test]
fn waiting_can_be_withdrawn() {
    let client = Client::new();
    let fh = file(&client, libc::O_RDWR);
    set(&client, lock(fh, 1, libc::F_WRLCK, 0, TO_END)).expect("lock");
    let cancel = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| wait_for(&client, lock(fh, 2, libc::F_WRLCK, 0, 0), &cancel));
        until_waiting(&client);
        cancel.store(true, Ordering::Release);
        assert_eq!(waiter.join().expect("waiter"), Err(Errno(libc::EINTR)));
    });
    set(&client, lock(fh, 1, libc::F_UNLCK, 0, TO_END)).expect("unlock");
    set(&client, lock(fh, 3, libc::F_WRLCK, 0, TO_END)).expect("the withdrawn one holds nothing");
}
