//! Decisions about single calls.

use super::decide::{Guest, NewNumber, Trapped, Verdict, decide};
use super::fds::{FdKind, FdTable};
use crate::homecall::{HomeCallError, Memory};
use crate::syscalls::filter::ARCH_X86_64;

/// Memory from address 0x1000 on.
struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), HomeCallError> {
        let start = address.checked_sub(0x1000).ok_or(HomeCallError::Fault)? as usize;
        let bytes = self.0.get(start..start + into.len());
        into.copy_from_slice(bytes.ok_or(HomeCallError::Fault)?);
        Ok(())
    }
    fn write(&self, _address: u64, _bytes: &[u8]) -> Result<(), HomeCallError> {
        Err(HomeCallError::Fault)
    }
}

fn verdict(number: i64, args: [u64; 6], memory: &[u8]) -> Verdict {
    let mut bytes = memory.to_vec();
    bytes.resize(4096, 0);
    let fds = FdTable::new([(0, FdKind::Home), (1, FdKind::Home), (3, FdKind::Shared)]);
    let guest = Guest {
        fds: &fds,
        threads: &[100, 101],
    };
    let call = Trapped {
        number: u32::try_from(number).unwrap(),
        arch: ARCH_X86_64,
        args,
    };
    decide(&call, guest, &Bytes(bytes))
}

#[test]
fn reading_goes_where_the_descriptor_is() {
    let on = |fd| verdict(libc::SYS_read, [fd, 0, 0, 0, 0, 0], &[]);
    assert_eq!(
        (on(0), on(3), on(9)),
        (Verdict::Home, Verdict::Continue, Verdict::Continue)
    );
    // The upper half of the register is not part of an int.
    assert_eq!(on(0xdead_0000_0000), Verdict::Home);
}

#[test]
fn closing_keeps_home_in_step() {
    let close = |fd| verdict(libc::SYS_close, [fd, 0, 0, 0, 0, 0], &[]);
    assert_eq!(close(0), Verdict::CloseAtHomeThenContinue(0));
    assert_eq!(close(3), Verdict::CloseAtHomeThenContinue(3));
    assert_eq!(close(7), Verdict::Continue);
    let dup2 = |old, new| verdict(libc::SYS_dup2, [old, new, 0, 0, 0, 0], &[]);
    assert_eq!(dup2(3, 1), Verdict::CloseAtHomeThenContinue(1));
    assert_eq!(dup2(1, 8), Verdict::Return);
    assert_eq!(dup2(3, 3), Verdict::Continue);
    let range = |first, last| verdict(libc::SYS_close_range, [first, last, 0, 0, 0, 0], &[]);
    assert_eq!(range(3, 0xffff_ffff), Verdict::Return);
    assert_eq!(range(4, 0xffff_ffff), Verdict::Continue);
}

#[test]
fn home_descriptors_are_duplicated_to_where_their_use_is_trapped() {
    let to = |to, close_on_exec| Verdict::Duplicate {
        from: 1,
        to,
        close_on_exec,
    };
    let call = |number, args: [u64; 3]| {
        let [a, b, c] = args;
        verdict(number, [a, b, c, 0, 0, 0], &[])
    };
    let cloexec = u64::from(libc::O_CLOEXEC.cast_unsigned());
    let fcntl = |command: i32| call(libc::SYS_fcntl, [1, command.cast_unsigned().into(), 10]);
    assert_eq!(
        call(libc::SYS_dup2, [1, 10, 7]),
        to(NewNumber::At(10), false)
    );
    assert_eq!(
        call(libc::SYS_dup3, [1, 0, cloexec]),
        to(NewNumber::At(0), true)
    );
    assert_eq!(call(libc::SYS_dup3, [1, 0, 1]), Verdict::Return);
    assert_eq!(call(libc::SYS_dup2, [1, 1, 0]), Verdict::Continue);
    // What was a file when the filter was made is not trapped.
    assert_eq!(call(libc::SYS_dup2, [1, 3, 0]), Verdict::Return);
    assert_eq!(
        call(libc::SYS_dup, [1, 0, 0]),
        to(NewNumber::From(0), false)
    );
    assert_eq!(fcntl(libc::F_DUPFD), to(NewNumber::From(10), false));
    assert_eq!(fcntl(libc::F_DUPFD_CLOEXEC), to(NewNumber::From(10), true));
}

#[test]
fn signals_to_itself_stay_here() {
    let kill = |pid: i32| {
        verdict(
            libc::SYS_kill,
            [u64::from(pid.cast_unsigned()), 9, 0, 0, 0, 0],
            &[],
        )
    };
    assert_eq!(
        (kill(100), kill(1), kill(-1), kill(0)),
        (
            Verdict::Continue,
            Verdict::Home,
            Verdict::Home,
            Verdict::Home
        )
    );
}

#[test]
fn polling_is_done_where_all_descriptors_are() {
    let poll = |fds: &[i32]| {
        let memory: Vec<u8> = fds
            .iter()
            .flat_map(|fd| [fd.to_le_bytes(), [1, 0, 0, 0]].concat())
            .collect();
        verdict(
            libc::SYS_poll,
            [0x1000, fds.len() as u64, 0, 0, 0, 0],
            &memory,
        )
    };
    assert_eq!(poll(&[0, 1]), Verdict::Home);
    assert_eq!(poll(&[0, 3, -1]), Verdict::Home);
    assert_eq!(poll(&[3, 9]), Verdict::Continue);
    assert_eq!(poll(&[0, 9]), Verdict::Return);
    assert_eq!(poll(&[]), Verdict::Continue);
    let select = |bits: u64| {
        verdict(
            libc::SYS_select,
            [10, 0x1000, 0, 0, 0, 0],
            &bits.to_le_bytes(),
        )
    };
    assert_eq!(select(0b1011), Verdict::Home);
    assert_eq!(select(0b1000), Verdict::Continue);
    assert_eq!(select(0b10_0000_0001), Verdict::Return);
    assert_eq!(select(0b100_0000_0001), Verdict::Home); // above the count
}

#[test]
fn opening_looks_at_the_path() {
    let open = |path: &str| {
        let memory = [path.as_bytes(), &[0]].concat();
        verdict(libc::SYS_openat, [0xffff_ff9c, 0x1000, 0, 0, 0, 0], &memory)
    };
    assert_eq!(open("/home/x"), Verdict::Continue);
    assert_eq!(open("/proc/cpuinfo"), Verdict::Return);
    assert_eq!(
        verdict(libc::SYS_openat, [0, 0x10, 0, 0, 0, 0], &[]),
        Verdict::Fail(libc::EFAULT)
    );
}

#[test]
fn locks_belong_to_the_deputy() {
    let lock = |fd| {
        let command = u64::from(libc::F_SETLK.cast_unsigned());
        verdict(libc::SYS_fcntl, [fd, command, 0, 0, 0, 0], &[])
    };
    assert_eq!(
        (lock(0), lock(3), lock(9)),
        (Verdict::Home, Verdict::Home, Verdict::Return)
    );
}

#[test]
fn calls_of_other_architectures_and_unknown_calls_go_home() {
    assert_eq!(verdict(900, [0; 6], &[]), Verdict::Return);
    let fds = FdTable::default();
    let call = Trapped {
        number: 0,
        arch: 0x4000_0003,
        args: [0; 6],
    };
    let guest = Guest {
        fds: &fds,
        threads: &[1],
    };
    assert_eq!(decide(&call, guest, &Bytes(vec![])), Verdict::Return);
}

#[test]
fn timers_and_rusage_are_split() {
    let call = |number, first: i32| {
        verdict(
            number,
            [u64::from(first.cast_unsigned()), 0x1000, 0, 0, 0, 0],
            &[],
        )
    };
    assert_eq!(call(libc::SYS_setitimer, 0), Verdict::Home);
    assert_eq!(call(libc::SYS_setitimer, 2), Verdict::Continue);
    assert_eq!(call(libc::SYS_getrusage, -1), Verdict::Home);
    assert_eq!(call(libc::SYS_getrusage, 0), Verdict::Continue);
    assert_eq!(call(libc::SYS_prctl, 15), Verdict::Continue);
    assert_eq!(call(libc::SYS_prctl, 22), Verdict::Return);
}
