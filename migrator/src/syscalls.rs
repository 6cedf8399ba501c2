//! What becomes of each x86-64 system call while a process is away from home.
//!
//! [`TABLE`] (in `table.rs`) is the document: one row per call with its [`Class`], and [`When`] it
//! is trapped. Everything else follows from it: [`crate::sys::seccomp`] builds the guest's filter
//! from it, the supervisor decides by it what to do with a trapped call.
//!
//! A call whose number is not in the table is of class [`Class::Return`], so a new kernel's call
//! works, if slowly. *A migrated program never sees a system call fail that would have worked at
//! home.*

pub mod filter;
mod table;

pub use table::TABLE;

/// Where a system call is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// At the host, natively.
    Local,
    /// At home, by the deputy.
    Home,
    /// At home and then at the host, so that both stay in step.
    Both,
    /// The process goes home and does it there.
    Return,
    /// Not in any kernel that omfs runs on: ENOSYS, as at home.
    Refuse,
}

/// When a call is handed to the supervisor; otherwise it runs at the host untouched.
///
/// *Home descriptors* exist at home only (pipes, terminals, sockets …); *known descriptors* are
/// these and the files that the deputy too holds open since the process left home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// Not trapped at all.
    Never,
    /// Every time; the class says what becomes of it.
    Always,
    /// Every time; the supervisor looks at the arguments and lets it run locally where it can.
    Look,
    /// If one of these arguments is a home descriptor.
    HomeFd(&'static [u8]),
    /// If one of these arguments is a known descriptor.
    KnownFd(&'static [u8]),
    /// If these bits are set in this argument.
    Bits(u8, u32),
    /// If this argument is not the process' own PID.
    OtherPid(u8),
    /// Not trapped, but the supervisor, as tracer, corrects the result: files have home's numbers.
    Corrected,
    /// If one of these arguments is a home descriptor; else its result is corrected.
    HomeFdOrCorrected(&'static [u8]),
}

/// One system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its number on x86-64.
    pub number: u32,
    /// Its name in section 2 of the manual.
    pub name: &'static str,
    /// What becomes of it normally.
    pub class: Class,
    /// When it is trapped.
    pub when: When,
    /// What becomes of it when it is trapped.
    pub trapped: Class,
}

/// The row of a call, if the table has one.
#[must_use]
pub fn row(number: u32) -> Option<&'static Row> {
    let at = TABLE.binary_search_by_key(&number, |row| row.number).ok()?;
    TABLE.get(at)
}

/// What becomes of a call that was trapped.
#[must_use]
pub fn trapped_class(number: u32) -> Class {
    row(number).map_or(Class::Return, |row| row.trapped)
}

/// Whether the result of a call that runs at the host is corrected.
#[must_use]
pub fn is_corrected(number: u32) -> bool {
    let corrected = |row: &Row| matches!(row.when, When::Corrected | When::HomeFdOrCorrected(_));
    row(number).is_some_and(corrected)
}

/// A call's name, or its number where it has none here.
#[must_use]
pub fn name(number: u32) -> String {
    row(number).map_or_else(
        || format!("system call {number}"),
        |row| row.name.to_owned(),
    )
}

const fn make(number: u32, name: &'static str, class: Class, when: When, trapped: Class) -> Row {
    Row {
        number,
        name,
        class,
        when,
        trapped,
    }
}

/// Runs at the host, not trapped.
const fn local(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Local, When::Never, Class::Local)
}

/// Runs at the host, and its result is corrected, or home asked where only home can tell.
const fn corrected(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Local, When::Corrected, Class::Home)
}

/// Runs at the host, and what it has told of a signal is corrected.
const fn tells_signal(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Local, When::Corrected, Class::Local)
}

/// The same as [`corrected`] unless one of these arguments is a home descriptor.
const fn on_home_fd_or_corrected(
    number: u32,
    name: &'static str,
    args: &'static [u8],
    trapped: Class,
) -> Row {
    make(
        number,
        name,
        Class::Local,
        When::HomeFdOrCorrected(args),
        trapped,
    )
}

/// Runs at home.
const fn home(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Home, When::Always, Class::Home)
}

/// Takes the process home.
const fn back(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Return, When::Always, Class::Return)
}

/// Is in no kernel any more.
const fn refuse(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Refuse, When::Always, Class::Refuse)
}

/// Runs at the host; its effect at home follows from what the supervisor sees as tracer.
const fn both(number: u32, name: &'static str) -> Row {
    make(number, name, Class::Both, When::Never, Class::Both)
}

/// Always handed to the supervisor.
const fn always(number: u32, name: &'static str, class: Class) -> Row {
    make(number, name, class, When::Always, class)
}

/// Runs at the host unless the supervisor finds that its arguments mean home.
const fn look(number: u32, name: &'static str, trapped: Class) -> Row {
    make(number, name, Class::Local, When::Look, trapped)
}

/// Runs at the host unless one of these arguments is a home descriptor.
const fn on_home_fd(number: u32, name: &'static str, args: &'static [u8], trapped: Class) -> Row {
    make(number, name, Class::Local, When::HomeFd(args), trapped)
}

/// Runs at the host unless one of these arguments is a descriptor that home has too.
const fn on_known_fd(number: u32, name: &'static str, args: &'static [u8], trapped: Class) -> Row {
    make(number, name, Class::Local, When::KnownFd(args), trapped)
}

/// Runs at the host if the process means itself.
const fn to_others(number: u32, name: &'static str, arg: u8, trapped: Class) -> Row {
    make(number, name, Class::Local, When::OtherPid(arg), trapped)
}

/// Runs at the host unless these bits are set.
const fn on_bits(number: u32, name: &'static str, arg: u8, bits: u32, trapped: Class) -> Row {
    make(number, name, Class::Local, When::Bits(arg, bits), trapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_without_duplicates_and_reaches_the_newest_call() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].number < pair[1].number, "{:?}", pair[1]);
        }
        assert_eq!(TABLE.len(), 335 + 46);
        assert_eq!(TABLE.last().map(|row| row.number), Some(469));
        let mut names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn numbers_and_names_are_those_of_the_kernel() {
        let samples = [
            (libc::SYS_read, "read"),
            (libc::SYS_mmap, "mmap"),
            (libc::SYS_clone, "clone"),
            (libc::SYS_exit_group, "exit_group"),
            (libc::SYS_openat, "openat"),
            (libc::SYS_rseq, "rseq"),
            (libc::SYS_clone3, "clone3"),
            (libc::SYS_close_range, "close_range"),
            (libc::SYS_epoll_pwait2, "epoll_pwait2"),
            (libc::SYS_fchmodat2, "fchmodat2"),
            (libc::SYS_mseal, "mseal"),
        ];
        for (number, expected) in samples {
            assert_eq!(name(u32::try_from(number).unwrap()), expected);
        }
    }

    #[test]
    fn what_is_trapped_has_somewhere_to_go() {
        for row in TABLE {
            match row.when {
                When::Never | When::Corrected => {
                    assert!(matches!(row.class, Class::Local | Class::Both));
                }
                When::Always => assert_eq!(row.class, row.trapped),
                _ => {
                    assert_eq!(row.class, Class::Local, "{row:?}");
                    assert_ne!(row.trapped, Class::Local, "{row:?}");
                }
            }
        }
    }

    #[test]
    fn unknown_numbers_go_home() {
        for number in [335, 423, 470, 1 << 30, u32::MAX] {
            assert_eq!(row(number), None);
            assert_eq!(trapped_class(number), Class::Return);
        }
    }

    #[test]
    fn what_must_never_run_at_a_host_does_not() {
        let dangerous = [
            "mount",
            "ptrace",
            "bpf",
            "setns",
            "unshare",
            "reboot",
            "init_module",
            "kexec_load",
            "socket",
            "io_uring_setup",
            "execve",
            "clone",
            "fork",
            "setuid",
            "process_vm_writev",
            "perf_event_open",
            "keyctl",
            "open_by_handle_at",
            "pidfd_getfd",
            "chroot",
        ];
        for name in dangerous {
            let row = TABLE.iter().find(|row| row.name == name).unwrap();
            assert_eq!(row.when, When::Always, "{name}");
            assert_eq!(row.trapped, Class::Return, "{name}");
        }
    }
}
