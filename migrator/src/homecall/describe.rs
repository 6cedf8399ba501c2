//! What memory each home call reads and writes.

use super::ioctl;
pub use super::shape::{Length, Shape};

use Length::{Arg, ArgCut, Behind, Bytes, FdSet};
use Shape::{
    In, InOut, MessageIn, MessageOut, Null, NullMask, Out, OutUpTo, Text, VectorIn, VectorOut,
};

const RUSAGE: Shape = Out(Bytes(144));
const STAT: Shape = Out(Bytes(144));
const SIGINFO_BYTES: u32 = 128;
const ITIMER: Length = Bytes(32);
const RLIMIT: Length = Bytes(16);
const TIMESPEC: Length = Bytes(16);

/// The pointer arguments of a call, in the order of their positions; `None` if the call, or this
/// use of it, is not known here.
#[must_use]
pub fn describe(number: u32, args: &[u64; 6]) -> Option<Vec<(u8, Shape)>> {
    let number = i64::from(number);
    files(number)
        .or_else(|| paths(number))
        .or_else(|| sockets(number))
        .or_else(|| waiting(number))
        .or_else(|| processes(number))
        .map(<[_]>::to_vec)
        .or_else(|| match number {
            libc::SYS_ioctl => ioctl::describe(args[1]),
            libc::SYS_fcntl => fcntl(args),
            _ => None,
        })
}

type Shapes = &'static [(u8, Shape)];

fn files(number: i64) -> Option<Shapes> {
    Some(match number {
        libc::SYS_read | libc::SYS_pread64 => &[(1, OutUpTo(ArgCut(2), 1))],
        libc::SYS_write | libc::SYS_pwrite64 => &[(1, In(ArgCut(2)))],
        libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => &[(1, VectorOut(2))],
        libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => &[(1, VectorIn(2))],
        libc::SYS_fstat => &[(1, STAT)],
        libc::SYS_lseek | libc::SYS_flock | libc::SYS_close | libc::SYS_dup3 => &[],
        _ => return None,
    })
}

/// What asks about a file by its name.
fn paths(number: i64) -> Option<Shapes> {
    Some(match number {
        libc::SYS_stat | libc::SYS_lstat => const { &[(0, Text), (1, STAT)] },
        libc::SYS_newfstatat => const { &[(1, Text), (2, STAT)] },
        libc::SYS_statx => &[(1, Text), (4, Out(Bytes(256)))],
        libc::SYS_access => &[(0, Text)],
        libc::SYS_faccessat | libc::SYS_faccessat2 => &[(1, Text)],
        libc::SYS_readlink => &[(0, Text), (1, OutUpTo(ArgCut(2), 1))],
        libc::SYS_readlinkat => &[(1, Text), (2, OutUpTo(ArgCut(3), 1))],
        libc::SYS_statfs => &[(0, Text), (1, Out(Bytes(120)))],
        libc::SYS_getxattr | libc::SYS_lgetxattr => {
            &[(0, Text), (1, Text), (2, OutUpTo(Arg(3, 1), 1))]
        }
        libc::SYS_listxattr | libc::SYS_llistxattr => &[(0, Text), (1, OutUpTo(Arg(2, 1), 1))],
        _ => return None,
    })
}

fn sockets(number: i64) -> Option<Shapes> {
    const NAME: Shapes = &[(1, InOut(Behind(2))), (2, InOut(Bytes(4)))];
    Some(match number {
        libc::SYS_bind | libc::SYS_connect => &[(1, In(Arg(2, 1)))],
        libc::SYS_listen | libc::SYS_shutdown => &[],
        libc::SYS_getsockname | libc::SYS_getpeername => NAME,
        libc::SYS_setsockopt => &[(3, In(Arg(4, 1)))],
        libc::SYS_getsockopt => &[(3, InOut(Behind(4))), (4, InOut(Bytes(4)))],
        libc::SYS_sendto => &[(1, In(Arg(2, 1))), (4, In(Arg(5, 1)))],
        libc::SYS_recvfrom => &[
            (1, OutUpTo(ArgCut(2), 1)),
            (4, InOut(Behind(5))),
            (5, InOut(Bytes(4))),
        ],
        libc::SYS_sendmsg => &[(1, MessageIn)],
        libc::SYS_recvmsg => &[(1, MessageOut)],
        _ => return None,
    })
}

fn waiting(number: i64) -> Option<Shapes> {
    const EVENTS: (u8, Shape) = (1, OutUpTo(Arg(2, 12), 12));
    const SETS: [(u8, Shape); 3] = [(1, InOut(FdSet)), (2, InOut(FdSet)), (3, InOut(FdSet))];
    Some(match number {
        libc::SYS_poll => &[(0, InOut(Arg(1, 8)))],
        libc::SYS_ppoll => &[(0, InOut(Arg(1, 8))), (2, InOut(TIMESPEC)), (3, Null)],
        libc::SYS_select => const { &[SETS[0], SETS[1], SETS[2], (4, InOut(TIMESPEC))] },
        libc::SYS_pselect6 => {
            const {
                &[
                    SETS[0],
                    SETS[1],
                    SETS[2],
                    (4, InOut(TIMESPEC)),
                    (5, NullMask),
                ]
            }
        }
        libc::SYS_epoll_wait => const { &[EVENTS] },
        libc::SYS_epoll_pwait => const { &[EVENTS, (4, Null)] },
        libc::SYS_epoll_pwait2 => const { &[EVENTS, (3, In(TIMESPEC)), (4, Null)] },
        libc::SYS_epoll_ctl => &[(3, In(Bytes(12)))],
        libc::SYS_timerfd_settime | libc::SYS_timer_settime => &[(2, In(ITIMER)), (3, Out(ITIMER))],
        libc::SYS_timerfd_gettime | libc::SYS_timer_gettime => &[(1, Out(ITIMER))],
        libc::SYS_timer_getoverrun | libc::SYS_timer_delete => &[],
        _ => return None,
    })
}

fn processes(number: i64) -> Option<Shapes> {
    Some(match number {
        libc::SYS_getppid
        | libc::SYS_getpgrp
        | libc::SYS_getpgid
        | libc::SYS_getsid
        | libc::SYS_setpgid
        | libc::SYS_setsid
        | libc::SYS_alarm
        | libc::SYS_kill
        | libc::SYS_tkill
        | libc::SYS_tgkill
        | libc::SYS_getpriority
        | libc::SYS_setpriority
        | libc::SYS_sched_getscheduler
        | libc::SYS_ioprio_get
        | libc::SYS_ioprio_set => &[],
        libc::SYS_wait4 => &[(1, Out(Bytes(4))), (3, RUSAGE)],
        libc::SYS_waitid => &[(2, Out(Bytes(SIGINFO_BYTES))), (4, RUSAGE)],
        libc::SYS_getrusage => &[(1, RUSAGE)],
        libc::SYS_times => &[(0, Out(Bytes(32)))],
        libc::SYS_getitimer => &[(1, Out(ITIMER))],
        libc::SYS_setitimer => &[(1, In(ITIMER)), (2, Out(ITIMER))],
        libc::SYS_setrlimit => &[(1, In(RLIMIT))],
        libc::SYS_prlimit64 => &[(2, In(RLIMIT)), (3, Out(RLIMIT))],
        libc::SYS_rt_sigqueueinfo => &[(2, In(Bytes(SIGINFO_BYTES)))],
        libc::SYS_rt_tgsigqueueinfo => &[(3, In(Bytes(SIGINFO_BYTES)))],
        libc::SYS_sched_getparam => &[(1, Out(Bytes(4)))],
        libc::SYS_sched_getattr => &[(1, InOut(Arg(2, 1)))],
        libc::SYS_sched_rr_get_interval => &[(1, Out(TIMESPEC))],
        libc::SYS_capget => &[(0, InOut(Bytes(8))), (1, Out(Bytes(24)))],
        _ => return None,
    })
}

/// fcntl(2) by its command: descriptor flags, status flags, locks, owner, pipe size.
fn fcntl(args: &[u64; 6]) -> Option<Vec<(u8, Shape)>> {
    let command = i32::try_from(args[1]).ok()?;
    Some(match command {
        libc::F_GETFD
        | libc::F_SETFD
        | libc::F_GETFL
        | libc::F_SETFL
        | libc::F_GETOWN
        | libc::F_SETOWN
        | libc::F_GETPIPE_SZ
        | libc::F_SETPIPE_SZ => vec![],
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW => vec![(2, InOut(Bytes(32)))],
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => vec![(2, InOut(Bytes(32)))],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::{Class, Row, TABLE};

    #[test]
    fn every_call_of_class_home_is_described() {
        // Some uses of these are known here only, others take the process home.
        let partly = ["ioctl", "fcntl"];
        let at_home = |row: &&Row| [row.class, row.trapped].contains(&Class::Home);
        for row in TABLE.iter().filter(at_home) {
            if partly.contains(&row.name) {
                continue;
            }
            assert!(
                describe(row.number, &[0; 6]).is_some(),
                "{} has no description",
                row.name
            );
        }
    }

    #[test]
    fn pointers_come_in_order_and_lengths_name_real_arguments() {
        for row in TABLE {
            let args = [
                0,
                u64::from(libc::F_GETLK.cast_unsigned()),
                0x1000,
                0x1000,
                0,
                0,
            ];
            let shapes = describe(row.number, &args).unwrap_or_default();
            for pair in shapes.windows(2) {
                assert!(pair[0].0 < pair[1].0, "{}", row.name);
            }
            assert!(shapes.iter().all(|shape| shape.0 < 6));
        }
    }

    #[test]
    fn uses_that_are_not_known_go_home() {
        let number = |call: i64| u32::try_from(call).unwrap();
        assert_eq!(describe(number(libc::SYS_fstatfs), &[0; 6]), None);
        assert_eq!(describe(number(libc::SYS_fcntl), &[0; 6]), None); // F_DUPFD
        assert_eq!(describe(number(libc::SYS_ioctl), &[0; 6]), None);
        assert_eq!(describe(number(libc::SYS_execve), &[0; 6]), None);
    }
}
