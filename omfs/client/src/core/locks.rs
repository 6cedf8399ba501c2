//! Record locks and flock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{FsRequest, Lock};

use super::opens::OpenFile;
use super::waiters::Waiter;
use super::{Core, Outcome, errno};
use crate::caller::{self, LockKind, Who};
use omfs_service::Errno;

/// The last byte of a lock that reaches to the end of any file: OFFSET_MAX of the kernel.
const TO_THE_END: u64 = i64::MAX as u64;

/// A lock operation as the kernel asks for it.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// This session's open file.
    pub fh: u64,
    /// The kernel's opaque owner.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// The process for F_GETLK.
    pub pid: u32,
}

impl Core {
    fn lock_message(&self, who: Who, open: &OpenFile, request: LockRequest) -> Lock {
        let whole_file = request.start == 0 && request.end >= TO_THE_END;
        let flock = whole_file && caller::lock_kind(who.pid) == LockKind::Flock;
        Lock {
            fh: open.fh,
            owner: request.owner,
            start: request.start,
            end: request.end,
            r#type: request.kind.cast_unsigned(),
            pid: request.pid.cast_signed(),
            flock,
            wait: false,
            stored: self.mapping(open.id).is_stored_into,
        }
    }

    /// F_GETLK: the lock that would be in the way, or one of type F_UNLCK.
    pub fn getlk(&self, who: Who, request: LockRequest) -> Outcome<Lock> {
        let open = self.file(request.fh)?;
        let lock = Lock {
            flock: false,
            ..self.lock_message(who, &open, request)
        };
        let caller = self.caller_without_groups(who, open.route.node);
        let answer = self.ask(&open.route, caller, Op::GetLock(lock))?;
        match answer.reply.result {
            Some(Answer::Lock(lock)) => Ok(lock),
            _ => Err(errno(libc::EPROTO)),
        }
    }

    /// Sets or drops a lock without waiting. When it is taken and `sleep` is set, answers a
    /// waiter that is to be given to [`Core::wait_for_lock`].
    pub fn setlk(&self, who: Who, request: LockRequest, sleep: bool) -> Outcome<Option<Waiter>> {
        let open = self.file(request.fh)?;
        let lock = self.lock_message(who, &open, request);
        if request.kind != libc::F_UNLCK && !open.was_locked.swap(true, Ordering::Relaxed) {
            self.note_locked(request.fh);
        }
        if !lock.flock && request.kind != libc::F_UNLCK {
            // Before the lock is taken: it must not outlive a close that comes in between.
            let mut owners = open
                .lock_owners
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            owners.insert(request.owner);
        }
        let mut message = FsRequest {
            caller: Some(self.caller_without_groups(who, open.route.node)),
            op: Some(Op::SetLock(lock)),
        };
        match open.route.service.call(&message, &[], &super::NEVER) {
            Ok(_) => Ok(None),
            Err(Errno(libc::EAGAIN)) if sleep => {
                message.op = Some(Op::SetLock(Lock { wait: true, ..lock }));
                Ok(Some(Waiter {
                    route: open.route.clone(),
                    request: message,
                    pid: who.pid,
                    cancel: Arc::new(AtomicBool::new(false)),
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for a lock on a thread of its own and calls `done` there; or here and now with
    /// `ENOLCK` when too many wait already.
    pub fn wait_for_lock(&self, waiter: Waiter, done: impl FnOnce(Outcome<()>) + Send + 'static) {
        self.waiters.wait(waiter, Box::new(done));
    }

    /// Drops the locks of owners that never closed the file: open file description locks
    /// (F_OFD_SETLK), which belong to the description that ends here. Record locks of processes
    /// have gone with their `flush`.
    pub(super) fn drop_descriptor_locks(&self, who: Who, open: &OpenFile) {
        let mut owners = open
            .lock_owners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let owners = std::mem::take(&mut *owners);
        for owner in owners {
            let lock = Lock {
                fh: open.fh,
                owner,
                start: 0,
                end: TO_THE_END,
                r#type: libc::F_UNLCK.cast_unsigned(),
                pid: who.pid,
                flock: false,
                ..Lock::default()
            };
            let caller = self.caller_without_groups(who, open.route.node);
            // The release that follows ends them at the owner in any case.
            let _ = self.ask(&open.route, caller, Op::SetLock(lock));
        }
    }
}
