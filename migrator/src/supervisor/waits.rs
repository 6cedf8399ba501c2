//! How much of a wait is over: a move must not make it begin anew with all of its time.

use std::time::{Duration, Instant};

use super::decide::Trapped;
use super::fds::fd_argument;
use crate::homecall::{HomeCallError, Memory};
use crate::image::{ThreadImage, registers};
use crate::tracee::inject::is_restart_code;

/// What epoll_wait(2) answers to any interruption; it is restarted elsewhere (`restore/restart.rs`).
const EINTR: i64 = -4;

/// A call that waits for at most so long, as an argument says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wait {
    number: i64,
    timeout_ms: u32,
    since: Instant,
}

impl Wait {
    /// `None` for other calls, and for those that wait for ever or not at all.
    pub(super) fn begun(call: &Trapped, since: Instant) -> Option<Self> {
        let number = i64::from(call.number);
        let [_, _, third, fourth, ..] = call.args;
        let timeout = match number {
            libc::SYS_poll => third,
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => fourth,
            _ => return None,
        };
        let timeout_ms = u32::try_from(fd_argument(timeout)).ok()?;
        (timeout_ms > 0).then_some(Self {
            number,
            timeout_ms,
            since,
        })
    }

    /// Has a thread that was stopped in this call go on waiting for just the rest.
    pub(super) fn shorten(&self, thread: &mut ThreadImage, now: Instant) {
        let Ok(mut regs) = registers::from_image(thread) else {
            return;
        };
        let result = regs.rax.cast_signed();
        if !(is_restart_code(regs.rax) || result == EINTR)
            || regs.syscall_number() != Some(self.number)
        {
            return;
        }
        let all = Duration::from_millis(self.timeout_ms.into());
        let rest = all.saturating_sub(now.duration_since(self.since));
        let rest_ms = rest.as_nanos().div_ceil(1_000_000);
        let rest_ms = u64::try_from(rest_ms).unwrap_or(u64::MAX);
        match self.number {
            libc::SYS_poll => regs.rdx = rest_ms,
            _ => regs.r10 = rest_ms,
        }
        thread.regs = registers::to_list(&regs);
    }
}

/// Writes what remains of a wait where its timeout was, as the kernel does for these calls when
/// they are interrupted: select(2), "The timeout"; poll(2), "C library/kernel differences".
///
/// # Errors
/// [`HomeCallError::Fault`]: it is in memory that cannot be written; then all of it remains.
pub(super) fn write_rest(
    call: &Trapped,
    waited: Duration,
    memory: &dyn Memory,
) -> Result<(), HomeCallError> {
    let [_, _, third, _, fifth, _] = call.args;
    let (place, unit_ns) = match i64::from(call.number) {
        libc::SYS_select => (fifth, 1000),
        libc::SYS_pselect6 => (fifth, 1),
        libc::SYS_ppoll => (third, 1),
        _ => return Ok(()),
    };
    if place == 0 {
        return Ok(());
    }
    let seconds = memory.read_u64(place)?;
    let part = memory.read_u64(place.wrapping_add(8))?;
    let nanos = u32::try_from(part.saturating_mul(unit_ns)).map_err(|_| HomeCallError::Invalid)?;
    let rest = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into()));
    let rest = rest.saturating_sub(waited);
    let part = u64::from(rest.subsec_nanos()) / unit_ns;
    let bytes = [rest.as_secs().to_le_bytes(), part.to_le_bytes()].concat();
    memory.write(place, &bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::sys::regs::Regs;

    fn call(number: i64, args: [u64; 6]) -> Trapped {
        Trapped {
            number: u32::try_from(number).unwrap(),
            arch: 0,
            args,
        }
    }

    fn rest(number: i64, args: [u64; 6], rax: i64) -> Option<[u64; 6]> {
        let now = Instant::now();
        let wait = Wait::begun(&call(number, args), now)?;
        let regs = Regs {
            rax: rax.cast_unsigned(),
            orig_rax: number.cast_unsigned(),
            cs: crate::sys::regs::CS_64_BIT,
            ..Regs::default().for_call(0x1000, number, args)
        };
        let mut thread = ThreadImage {
            regs: registers::to_list(&regs),
            ..ThreadImage::default()
        };
        wait.shorten(&mut thread, now + Duration::from_micros(300_400));
        Some(registers::from_image(&thread).unwrap().args())
    }

    #[test]
    fn the_rest_is_waited_for() {
        let poll = |timeout, rax| rest(libc::SYS_poll, [1, 2, timeout, 4, 5, 6], rax);
        assert_eq!(poll(1000, -516), Some([1, 2, 700, 4, 5, 6]));
        assert_eq!(poll(100, -514), Some([1, 2, 0, 4, 5, 6]));
        assert_eq!(poll(1000, 1), Some([1, 2, 1000, 4, 5, 6]));
        assert_eq!(poll(0xffff_ffff, -516), None);
        let epoll = rest(libc::SYS_epoll_wait, [1, 2, 3, 1000, 5, 6], -512);
        assert_eq!(epoll, Some([1, 2, 3, 700, 5, 6]));
        let epoll = rest(libc::SYS_epoll_pwait, [1, 2, 3, 301, 5, 6], EINTR);
        assert_eq!(epoll, Some([1, 2, 3, 1, 5, 6]));
    }

    struct Timeout(RefCell<[u8; 16]>);

    impl Memory for Timeout {
        fn read(&self, address: u64, into: &mut [u8]) -> Result<(), HomeCallError> {
            let at = usize::try_from(address - 0x1000).unwrap();
            into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
            Ok(())
        }
        fn write(&self, _: u64, bytes: &[u8]) -> Result<(), HomeCallError> {
            self.0.borrow_mut().copy_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn the_rest_is_written_as_the_kernel_writes_it() {
        let after = |number, place: [u64; 2], seconds: u64, part: u64| {
            let bytes = [seconds.to_le_bytes(), part.to_le_bytes()].concat();
            let memory = Timeout(RefCell::new(bytes.try_into().unwrap()));
            let args = [0, 0, place[0], 0, place[1], 0];
            write_rest(&call(number, args), Duration::from_millis(1500), &memory).unwrap();
            (
                memory.read_u64(0x1000).unwrap(),
                memory.read_u64(0x1008).unwrap(),
            )
        };
        assert_eq!(
            after(libc::SYS_select, [0, 0x1000], 2, 200_000),
            (0, 700_000)
        );
        assert_eq!(
            after(libc::SYS_pselect6, [0, 0x1000], 2, 200),
            (0, 500_000_200)
        );
        assert_eq!(after(libc::SYS_ppoll, [0x1000, 0], 1, 0), (0, 0));
        assert_eq!(after(libc::SYS_ppoll, [0, 0x1000], 9, 9), (9, 9));
    }
}
