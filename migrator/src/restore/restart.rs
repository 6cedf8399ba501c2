//! What becomes of the system call a thread was interrupted in when it continues elsewhere.
//!
//! The kernel marks a call to be restarted by a private errno in rax, and applies its rules when
//! the thread leaves signal handling (arch/x86/kernel/signal.c). Threads are continued from a stop
//! inside signal handling, so those rules work at the new place, too, with two exceptions that
//! are settled here.

use crate::image::PAGE_BYTES;
use crate::sys::regs::Regs;
use crate::tracee::inject::restart_wait;

const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const TIMER_ABSTIME: u64 = 1;

/// Registers with which a thread continues in another kernel.
///
/// A call with -ERESTART_RESTARTBLOCK is continued by a record inside the old kernel, which does
/// not move: it becomes -ERESTARTNOHAND, that is: EINTR if a handler runs, else the same call
/// again. A sleep that has a place for the remaining time finds it filled in, and goes on with
/// just that.
///
/// Calls that fail with EINTR on any interruption (signal(7), "Interruption of system calls … by
/// stop signals") fail so for being frozen, which at home would not have happened: the same.
#[must_use]
pub fn elsewhere(regs: &Regs) -> Regs {
    let Some(number) = regs.syscall_number() else {
        return *regs;
    };
    let mut regs = *regs;
    match regs.rax as i64 {
        ERESTART_RESTARTBLOCK => {
            continue_sleep(number, &mut regs);
            regs.rax = ERESTARTNOHAND as u64;
        }
        _ => regs = restart_wait(&regs),
    }
    regs
}

/// nanosleep(request, remaining) and clock_nanosleep(clock, flags, request, remaining).
fn continue_sleep(number: i64, regs: &mut Regs) {
    if number == libc::SYS_nanosleep && regs.rsi >= PAGE_BYTES {
        regs.rdi = regs.rsi;
    }
    let relative = regs.rsi & TIMER_ABSTIME == 0;
    if number == libc::SYS_clock_nanosleep && relative && regs.r10 >= PAGE_BYTES {
        regs.rdx = regs.r10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped_in(number: i64, rax: i64, args: [u64; 6]) -> Regs {
        let regs = Regs::default().for_call(0x1000, 0, args);
        Regs {
            rax: rax as u64,
            orig_rax: number as u64,
            ..regs
        }
    }

    #[test]
    fn the_kernels_own_rules_are_left_to_it() {
        for rax in [-512, -513, -514, 0, 17, -9] {
            let regs = stopped_in(libc::SYS_read, rax, [0, 0x5000, 10, 0, 0, 0]);
            assert_eq!(elsewhere(&regs), regs);
        }
        let outside = Regs {
            orig_rax: u64::MAX,
            rax: -516_i64 as u64,
            ..Regs::default()
        };
        assert_eq!(elsewhere(&outside), outside);
    }

    #[test]
    fn a_sleep_goes_on_with_what_remains() {
        let regs = stopped_in(libc::SYS_nanosleep, -516, [0x5000, 0x6000, 0, 0, 0, 0]);
        let after = elsewhere(&regs);
        assert_eq!((after.rax as i64, after.rdi), (-514, 0x6000));
        let no_place = stopped_in(libc::SYS_nanosleep, -516, [0x5000, 0, 0, 0, 0, 0]);
        assert_eq!(elsewhere(&no_place).rdi, 0x5000);
        let clock = stopped_in(
            libc::SYS_clock_nanosleep,
            -516,
            [1, 0, 0x5000, 0x6000, 0, 0],
        );
        assert_eq!(elsewhere(&clock).rdx, 0x6000);
    }

    #[test]
    fn waiting_for_events_is_not_broken_by_a_move() {
        let regs = stopped_in(libc::SYS_epoll_wait, -4, [3, 0x5000, 1, 0, 0, 0]);
        assert_eq!(elsewhere(&regs).rax as i64, -514);
        let read = stopped_in(libc::SYS_read, -4, [3, 0x5000, 1, 0, 0, 0]);
        assert_eq!(elsewhere(&read).rax as i64, -4);
    }
}
