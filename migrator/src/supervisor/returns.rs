//! How often a guest tries to go home for a call: when home cannot take it, it stays and goes on.

use std::time::{Duration, Instant};

/// So many returns in a row may fail before calls do.
const FAILED_MAX: u32 = 3;
/// How long calls fail then, before a return is tried again.
const PAUSE: Duration = Duration::from_secs(10);

/// The returns of one guest that have failed.
#[derive(Debug, Default)]
pub(super) struct Returns {
    failed: u32,
    not_before: Option<Instant>,
}

impl Returns {
    /// Whether the guest may go home for a call now.
    pub(super) fn may_be_tried(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Home did not take it, or it could not be stopped.
    pub(super) fn failed(&mut self) {
        self.failed += 1;
        if self.failed >= FAILED_MAX {
            self.failed = 0;
            self.not_before = Some(Instant::now() + PAUSE);
        }
    }
}

/// What a call fails with that only home can make: what its manual page gives for a want of
/// resources.
pub(super) fn errno_for(number: i64) -> i32 {
    match number {
        libc::SYS_fork
        | libc::SYS_vfork
        | libc::SYS_clone
        | libc::SYS_clone3
        | libc::SYS_setuid
        | libc::SYS_setresuid
        | libc::SYS_setreuid => libc::EAGAIN,
        libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3 | libc::SYS_fcntl => libc::EMFILE,
        libc::SYS_open
        | libc::SYS_openat
        | libc::SYS_openat2
        | libc::SYS_creat
        | libc::SYS_socket
        | libc::SYS_socketpair
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_pipe
        | libc::SYS_pipe2
        | libc::SYS_eventfd2
        | libc::SYS_epoll_create
        | libc::SYS_epoll_create1 => libc::ENFILE,
        libc::SYS_flock => libc::ENOLCK,
        _ => libc::ENOMEM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_some_failures_it_is_left_for_a_while() {
        let mut returns = Returns::default();
        for _ in 0..FAILED_MAX {
            assert!(returns.may_be_tried());
            returns.failed();
        }
        assert!(!returns.may_be_tried());
        returns.not_before = Some(Instant::now());
        assert!(returns.may_be_tried());
        returns.failed();
        assert!(returns.may_be_tried());
    }

    #[test]
    fn no_call_is_said_not_to_exist() {
        for number in 0..470 {
            assert_ne!(errno_for(number), libc::ENOSYS);
        }
        assert_eq!(errno_for(libc::SYS_clone), libc::EAGAIN);
    }
}
