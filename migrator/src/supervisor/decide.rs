//! What to do with a trapped call: a pure function of the call, the descriptors home knows, and
//! the guest's memory.

use super::fds::{FdKind, FdTable, fd_argument};
use super::named::{Named, named, names};
use super::paths;
use crate::homecall::{ELEMENTS_MAX, HomeCallError, Memory};
use crate::syscalls::filter::ARCH_X86_64;
use crate::syscalls::{Class, When, row, trapped_class};

/// A trapped call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trapped {
    /// Its number.
    pub number: u32,
    /// `AUDIT_ARCH_*`
    pub arch: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What is known of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'g> {
    /// Descriptors.
    pub fds: &'g FdTable,
    /// The IDs of its threads, as it knows them; the first is its PID.
    pub threads: &'g [i32],
}

/// What becomes of a trapped call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The kernel here carries it out.
    Continue,
    /// The deputy carries it out.
    Home,
    /// The deputy carries it out, and if it succeeds the kernel here does, too.
    HomeThenContinue,
    /// The deputy closes this descriptor, then the kernel here carries the call out.
    CloseAtHomeThenContinue(i32),
    /// A home descriptor gets another number, at home and then here.
    Duplicate {
        /// The descriptor.
        from: i32,
        /// Its new number, or the least it may be.
        to: NewNumber,
        /// Whether the new one is closed on exec.
        close_on_exec: bool,
    },
    /// The process goes home for it.
    Return,
    /// It fails with this errno.
    Fail(i32),
}

/// Where a duplicate goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewNumber {
    /// There, whatever is there.
    At(i32),
    /// To the lowest free one from there on.
    From(i32),
}

/// Decides about a trapped call.
#[must_use]
pub fn decide(call: &Trapped, guest: Guest<'_>, memory: &dyn Memory) -> Verdict {
    if call.arch != ARCH_X86_64 {
        return Verdict::Return;
    }
    let Some(row) = row(call.number) else {
        return Verdict::Return;
    };
    let looked = match row.when {
        When::HomeFd(args) | When::HomeFdOrCorrected(args) => {
            on_home_fd(call, guest.fds, args, row.trapped)
        }
        When::KnownFd(_) => on_known_fd(call, guest.fds),
        When::Look => look(call, guest, memory),
        When::OtherPid(arg) => Ok(to_others(call, guest, arg)),
        When::Always => always(call, guest),
        When::Bits(..) | When::Never | When::Corrected => Ok(of_class(trapped_class(call.number))),
    };
    looked.unwrap_or_else(|error| match error {
        HomeCallError::NotDescribed => Verdict::Return,
        HomeCallError::Fault => Verdict::Fail(libc::EFAULT),
        HomeCallError::Invalid => Verdict::Fail(libc::EINVAL),
    })
}

/// linux/ioprio.h
const IOPRIO_WHO_PROCESS: u64 = 1;

type Decision = Result<Verdict, HomeCallError>;

fn of_class(class: Class) -> Verdict {
    match class {
        Class::Local => Verdict::Continue,
        Class::Home => Verdict::Home,
        Class::Both => Verdict::HomeThenContinue,
        Class::Return => Verdict::Return,
        Class::Refuse => Verdict::Fail(libc::ENOSYS),
    }
}

/// The filter remembers descriptors that were closed since; their numbers may be files here now.
fn on_home_fd(call: &Trapped, fds: &FdTable, args: &[u8], trapped: Class) -> Decision {
    let mut values = args
        .iter()
        .filter_map(|arg| call.args.get(usize::from(*arg)));
    if i64::from(call.number) == libc::SYS_dup && fds.kind(call.args[0]) == FdKind::Home {
        return Ok(Verdict::Duplicate {
            from: fd_argument(call.args[0]),
            to: NewNumber::From(0),
            close_on_exec: false,
        });
    }
    Ok(if values.any(|value| fds.kind(*value) == FdKind::Home) {
        of_class(trapped)
    } else {
        Verdict::Continue
    })
}

fn on_known_fd(call: &Trapped, fds: &FdTable) -> Decision {
    let [first, second, ..] = call.args;
    let known = |fd| fds.kind(fd) != FdKind::Local;
    Ok(match i64::from(call.number) {
        libc::SYS_close if known(first) => Verdict::CloseAtHomeThenContinue(fd_argument(first)),
        libc::SYS_flock if known(first) => Verdict::Home,
        libc::SYS_dup2 | libc::SYS_dup3
            if fds.kind(first) == FdKind::Home && fd_argument(first) != fd_argument(second) =>
        {
            duplicate_at(call, fds)
        }
        libc::SYS_dup2 | libc::SYS_dup3
            if known(second) && fd_argument(first) != fd_argument(second) =>
        {
            Verdict::CloseAtHomeThenContinue(fd_argument(second))
        }
        _ => Verdict::Continue,
    })
}

/// dup2(2) and dup3(2) of a home descriptor.
fn duplicate_at(call: &Trapped, fds: &FdTable) -> Verdict {
    let [from, to, flags, ..] = call.args.map(fd_argument);
    let flags = match i64::from(call.number) {
        libc::SYS_dup3 => flags,
        _ => 0,
    };
    if !fds.is_trapped(to) || flags & !libc::O_CLOEXEC != 0 {
        return Verdict::Return;
    }
    Verdict::Duplicate {
        from,
        to: NewNumber::At(to),
        close_on_exec: flags != 0,
    }
}

fn to_others(call: &Trapped, guest: Guest<'_>, arg: u8) -> Verdict {
    let target = call
        .args
        .get(usize::from(arg))
        .map_or(0, |arg| fd_argument(*arg));
    if guest.threads.contains(&target) {
        Verdict::Continue
    } else {
        Verdict::Home
    }
}

fn always(call: &Trapped, guest: Guest<'_>) -> Decision {
    let [first, second, third, ..] = call.args;
    Ok(match i64::from(call.number) {
        libc::SYS_close_range if guest.fds.any_between(first, second) => Verdict::Return,
        libc::SYS_close_range => Verdict::Continue,
        libc::SYS_epoll_ctl
            if guest.fds.kind(first) == FdKind::Home && guest.fds.kind(third) != FdKind::Home =>
        {
            Verdict::Return
        }
        number if takes_descriptor(number) && guest.fds.kind(first) != FdKind::Home => {
            Verdict::Continue
        }
        _ => of_class(trapped_class(call.number)),
    })
}

/// Calls that only make sense on what the guest can have at home only; on anything else they fail
/// here as they would at home.
fn takes_descriptor(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_sendto
            | libc::SYS_recvfrom
            | libc::SYS_sendmsg
            | libc::SYS_recvmsg
            | libc::SYS_shutdown
            | libc::SYS_bind
            | libc::SYS_listen
            | libc::SYS_connect
            | libc::SYS_getsockname
            | libc::SYS_getpeername
            | libc::SYS_setsockopt
            | libc::SYS_getsockopt
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_epoll_ctl
            | libc::SYS_timerfd_settime
            | libc::SYS_timerfd_gettime
    )
}

fn look(call: &Trapped, guest: Guest<'_>, memory: &dyn Memory) -> Decision {
    let [first, second, third, ..] = call.args;
    let own = |id: u64| id == 0 || guest.threads.contains(&fd_argument(id));
    let home_unless = |local: bool| {
        if local {
            Verdict::Continue
        } else {
            Verdict::Home
        }
    };
    Ok(match i64::from(call.number) {
        libc::SYS_fcntl => fcntl(call, guest.fds),
        libc::SYS_poll | libc::SYS_ppoll => waiting(guest.fds, &polled(first, second, memory)?),
        libc::SYS_select | libc::SYS_pselect6 => waiting(guest.fds, &selected(&call.args, memory)?),
        // ITIMER_REAL runs on at home; the others count CPU time, which is spent here.
        libc::SYS_getitimer | libc::SYS_setitimer => home_unless(first != 0),
        libc::SYS_getrusage => home_unless(fd_argument(first) != libc::RUSAGE_CHILDREN),
        libc::SYS_getpriority | libc::SYS_setpriority => {
            home_unless(first == u64::from(libc::PRIO_PROCESS) && own(second))
        }
        libc::SYS_ioprio_get | libc::SYS_ioprio_set => {
            home_unless(first == IOPRIO_WHO_PROCESS && own(second))
        }
        libc::SYS_prlimit64 if own(first) && third == 0 => Verdict::Continue,
        libc::SYS_prlimit64 if own(first) => Verdict::HomeThenContinue,
        libc::SYS_sched_getparam
        | libc::SYS_sched_getscheduler
        | libc::SYS_sched_getattr
        | libc::SYS_sched_rr_get_interval => home_unless(own(first)),
        libc::SYS_prctl => prctl(first),
        _ if names(call.number) => naming(call, guest, memory)?,
        _ => of_class(trapped_class(call.number)),
    })
}

/// A path that says by itself, or by its directory, that it is home's.
fn naming(call: &Trapped, guest: Guest<'_>, memory: &dyn Memory) -> Decision {
    let opens = paths::opens(call.number);
    let is_home =
        |one: &Named| one.starts_at_home(guest) || paths::is_home(&one.path, opens, guest);
    Ok(if named(call, memory)?.iter().any(is_home) {
        of_class(trapped_class(call.number))
    } else {
        Verdict::Continue
    })
}

/// Locks are held by the deputy, so that they survive moves.
fn fcntl(call: &Trapped, fds: &FdTable) -> Verdict {
    let command = fd_argument(call.args[1]);
    let locks = matches!(
        command,
        libc::F_GETLK
            | libc::F_SETLK
            | libc::F_SETLKW
            | libc::F_OFD_GETLK
            | libc::F_OFD_SETLK
            | libc::F_OFD_SETLKW
            | libc::F_SETLEASE
            | libc::F_GETLEASE
            | libc::F_NOTIFY
    );
    match (fds.kind(call.args[0]), locks) {
        (FdKind::Home, _) => match command {
            libc::F_SETFD => Verdict::HomeThenContinue,
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => Verdict::Duplicate {
                from: fd_argument(call.args[0]),
                to: NewNumber::From(fd_argument(call.args[2])),
                close_on_exec: command == libc::F_DUPFD_CLOEXEC,
            },
            _ => Verdict::Home,
        },
        (FdKind::Shared, true) => Verdict::Home,
        (FdKind::Local, true) => Verdict::Return,
        (_, false) => Verdict::Continue,
    }
}

fn prctl(option: u64) -> Verdict {
    let Ok(option) = i32::try_from(option) else {
        return Verdict::Continue; // EINVAL, as at home
    };
    match option {
        libc::PR_SET_NAME
        | libc::PR_GET_NAME
        | libc::PR_SET_VMA
        | libc::PR_GET_DUMPABLE
        | libc::PR_SET_TIMERSLACK
        | libc::PR_GET_TIMERSLACK
        | libc::PR_SET_THP_DISABLE
        | libc::PR_GET_THP_DISABLE
        | libc::PR_GET_TID_ADDRESS
        | libc::PR_GET_TSC
        | libc::PR_GET_NO_NEW_PRIVS => Verdict::Continue,
        _ => Verdict::Return,
    }
}

/// The descriptors of a pollfd array.
fn polled(address: u64, count: u64, memory: &dyn Memory) -> Result<Vec<i32>, HomeCallError> {
    let count = u64::from(count as u32);
    if count > ELEMENTS_MAX {
        return Err(HomeCallError::NotDescribed);
    }
    let mut fds = Vec::new();
    for index in 0..count {
        let fd = memory.read_u32(address.wrapping_add(index * 8))?;
        fds.push(fd.cast_signed());
    }
    fds.retain(|fd| *fd >= 0);
    Ok(fds)
}

/// The descriptors of up to three fd_sets.
fn selected(args: &[u64; 6], memory: &dyn Memory) -> Result<Vec<i32>, HomeCallError> {
    let count = fd_argument(args[0]);
    if !(0..=1 << 16).contains(&count) {
        return Err(HomeCallError::Invalid);
    }
    let mut fds = Vec::new();
    for set in args.iter().skip(1).take(3).filter(|set| **set != 0) {
        for word in 0..(count + 63) / 64 {
            let offset = u64::from(word.cast_unsigned()) * 8;
            let bits = memory.read_u64(set.wrapping_add(offset))?;
            let members = (0..64).filter(|bit| bits >> bit & 1 == 1);
            fds.extend(members.map(|bit| word * 64 + bit).filter(|fd| *fd < count));
        }
    }
    Ok(fds)
}

/// Waiting for descriptors is done at home, where all of them are but those opened here.
fn waiting(fds: &FdTable, waited_for: &[i32]) -> Verdict {
    let kind = |fd: &i32| fds.kind(u64::from(fd.cast_unsigned()));
    if !waited_for.iter().any(|fd| kind(fd) == FdKind::Home) {
        Verdict::Continue
    } else if waited_for.iter().any(|fd| kind(fd) == FdKind::Local) {
        Verdict::Return
    } else {
        Verdict::Home
    }
}
