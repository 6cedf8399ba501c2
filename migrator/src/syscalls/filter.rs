//! The guest's seccomp filter, made from the table: classic BPF over number, architecture and
//! arguments (seccomp(2)), as a pure function.
//!
//! Calls are found by a binary search over runs of numbers with the same action. The kernel
//! remembers which numbers are always allowed, so those cost nothing; the others run a few dozen
//! instructions.

use super::{Class, Row, TABLE, When};

/// One classic BPF instruction: `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jump_true: u8,
    /// Instructions to skip if false.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

impl Insn {
    /// As it lies in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let (code, k) = (self.code.to_le_bytes(), self.k.to_le_bytes());
        [
            code[0],
            code[1],
            self.jump_true,
            self.jump_false,
            k[0],
            k[1],
            k[2],
            k[3],
        ]
    }
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQ: u16 = 0x15;
const JUMP_GE: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// `SECCOMP_RET_ALLOW`
pub const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_USER_NOTIF`
pub const NOTIFY: u32 = 0x7fc0_0000;
/// `SECCOMP_RET_TRACE`: the tracer is told, and asks to be told of the call's end. Without a tracer
/// the call fails.
pub const TRACE: u32 = 0x7ff0_0000;
/// `SECCOMP_RET_ERRNO` with ENOSYS
pub const NO_SUCH_CALL: u32 = 0x0005_0000 | 38;
/// `AUDIT_ARCH_X86_64`
pub const ARCH_X86_64: u32 = 0xc000_003e;
/// Most instructions of a filter; the kernel takes 4096 (`BPF_MAXINSNS`), a stub's scratch memory
/// has room for a little less.
pub const INSNS_MAX: usize = 4000;

/// What the filter must know of the process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FilterInput {
    /// Its PID, the same at home and at the host.
    pub pid: i32,
    /// Descriptors that exist at home only.
    pub home_fds: Vec<u32>,
    /// Descriptors of files open at home and at the host.
    pub shared_fds: Vec<u32>,
}

/// The process has more descriptors than a filter can hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} descriptors at home are more than a system call filter can tell apart")]
pub struct TooManyDescriptors(pub usize);

/// Builds the filter.
///
/// # Errors
/// [`TooManyDescriptors`].
pub fn build(input: &FilterInput) -> Result<Vec<Insn>, TooManyDescriptors> {
    let mut home = input.home_fds.clone();
    home.sort_unstable();
    home.dedup();
    let mut known = [home.as_slice(), input.shared_fds.as_slice()].concat();
    known.sort_unstable();
    known.dedup();
    let mut builder = Builder {
        pid: input.pid.cast_unsigned(),
        home,
        known,
        ..Builder::default()
    };
    builder.check_architecture();
    let runs = runs();
    builder.tree(&runs);
    builder.blocks();
    if builder.code.len() > INSNS_MAX {
        return Err(TooManyDescriptors(builder.known.len()));
    }
    Ok(builder.code)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    End(u32),
    Check(When),
}

fn action(row: &Row) -> Action {
    match (row.class, row.when) {
        (Class::Refuse, _) => Action::End(NO_SUCH_CALL),
        (_, When::Never) => Action::End(ALLOW),
        (_, When::Corrected) => Action::End(TRACE),
        (_, When::Always | When::Look) => Action::End(NOTIFY),
        (_, check) => Action::Check(check),
    }
}

/// The table as (first number, action), adjacent equal actions joined; gaps are notified.
fn runs() -> Vec<(u32, Action)> {
    let mut runs: Vec<(u32, Action)> = Vec::new();
    let mut push = |first, action| {
        if runs.last().is_none_or(|last| last.1 != action) {
            runs.push((first, action));
        }
    };
    let mut next = 0;
    for row in TABLE {
        if row.number > next {
            push(next, Action::End(NOTIFY));
        }
        push(row.number, action(row));
        next = row.number + 1;
    }
    push(next, Action::End(NOTIFY));
    runs
}

#[derive(Debug, Default)]
struct Builder {
    code: Vec<Insn>,
    pid: u32,
    home: Vec<u32>,
    known: Vec<u32>,
    /// Jumps to a shared block whose place is not known yet.
    pending: Vec<(usize, When)>,
}

impl Builder {
    fn emit(&mut self, code: u16, k: u32, jump_true: u8, jump_false: u8) {
        self.code.push(Insn {
            code,
            jump_true,
            jump_false,
            k,
        });
    }

    /// 32-bit calls are notified, and the supervisor sends them home.
    fn check_architecture(&mut self) {
        self.emit(LOAD, 4, 0, 0);
        self.emit(JUMP_EQ, ARCH_X86_64, 1, 0);
        self.emit(RETURN, NOTIFY, 0, 0);
        self.emit(LOAD, 0, 0, 0);
    }

    fn tree(&mut self, runs: &[(u32, Action)]) {
        let (left, right) = runs.split_at(runs.len() / 2);
        let (Some(_), Some(first)) = (left.first(), right.first()) else {
            if let Some((_, action)) = runs.first() {
                self.leaf(*action);
            }
            return;
        };
        self.emit(JUMP_GE, first.0, 0, 1);
        let far = self.code.len();
        self.emit(JUMP, 0, 0, 0);
        self.tree(left);
        self.land(far);
        self.tree(right);
    }

    fn leaf(&mut self, action: Action) {
        match action {
            Action::End(value) => self.emit(RETURN, value, 0, 0),
            Action::Check(when) => {
                self.pending.push((self.code.len(), when));
                self.emit(JUMP, 0, 0, 0);
            }
        }
    }

    /// Makes the jump at `from` go to the next instruction emitted.
    fn land(&mut self, from: usize) {
        let distance = self.code.len() - from - 1;
        if let Some(insn) = self.code.get_mut(from) {
            insn.k = u32::try_from(distance).unwrap_or(u32::MAX);
        }
    }

    fn blocks(&mut self) {
        while let Some((_, when)) = self.pending.first().copied() {
            let (here, later) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition(|pending| pending.1 == when);
            self.pending = later;
            let here: Vec<(usize, When)> = here;
            for (from, _) in here {
                self.land(from);
            }
            self.block(when);
        }
    }

    fn block(&mut self, when: When) {
        match when {
            When::HomeFd(args) => self.descriptors(args, self.home.clone()),
            When::KnownFd(args) => self.descriptors(args, self.known.clone()),
            When::Bits(arg, bits) => {
                self.load_arg(arg);
                self.emit(JUMP_SET, bits, 0, 1);
                self.emit(RETURN, NOTIFY, 0, 0);
            }
            When::OtherPid(arg) => {
                self.load_arg(arg);
                self.emit(JUMP_EQ, self.pid, 1, 0);
                self.emit(RETURN, NOTIFY, 0, 0);
            }
            When::HomeFdOrCorrected(args) => {
                self.descriptors(args, self.home.clone());
                self.emit(RETURN, TRACE, 0, 0);
            }
            When::Never | When::Always | When::Look | When::Corrected => {}
        }
        self.emit(RETURN, ALLOW, 0, 0);
    }

    fn descriptors(&mut self, args: &[u8], set: Vec<u32>) {
        for arg in args {
            self.load_arg(*arg);
            for fd in &set {
                self.emit(JUMP_EQ, *fd, 0, 1);
                self.emit(RETURN, NOTIFY, 0, 0);
            }
        }
    }

    /// The lower half: the arguments looked at are all `int`.
    fn load_arg(&mut self, arg: u8) {
        self.emit(LOAD, 16 + 8 * u32::from(arg), 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a filter as the kernel would; every program must end within its length.
    fn run(code: &[Insn], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        for _ in 0..=code.len() {
            let insn = code[at];
            at += 1;
            let jump = |taken: bool| {
                usize::from(if taken {
                    insn.jump_true
                } else {
                    insn.jump_false
                })
            };
            match insn.code {
                LOAD => {
                    accumulator = match insn.k {
                        0 => number,
                        4 => arch,
                        k => u32::try_from(
                            args[(k as usize - 16) / 8] >> (8 * (k % 8)) & 0xffff_ffff,
                        )
                        .unwrap(),
                    }
                }
                JUMP => at += insn.k as usize,
                JUMP_EQ => at += jump(accumulator == insn.k),
                JUMP_GE => at += jump(accumulator >= insn.k),
                JUMP_SET => at += jump(accumulator & insn.k != 0),
                RETURN => return insn.k,
                code => panic!("instruction {code:#x}"),
            }
        }
        panic!("the filter does not end");
    }

    /// What the table says, without BPF.
    fn model(input: &FilterInput, number: u32, args: [u64; 6]) -> u32 {
        let Some(row) = super::super::row(number) else {
            return NOTIFY;
        };
        let low = |arg: &u8| u32::try_from(args[usize::from(*arg)] & 0xffff_ffff).unwrap();
        let at_home = |arg: &u8| input.home_fds.contains(&low(arg));
        let trapped = match row.when {
            When::Never | When::Corrected => false,
            When::Always | When::Look => true,
            When::HomeFd(list) | When::HomeFdOrCorrected(list) => list.iter().any(at_home),
            When::KnownFd(list) => list
                .iter()
                .any(|arg| at_home(arg) || input.shared_fds.contains(&low(arg))),
            When::Bits(arg, bits) => low(&arg) & bits != 0,
            When::OtherPid(arg) => low(&arg) != input.pid.cast_unsigned(),
        };
        match (row.class, trapped) {
            (Class::Refuse, _) => NO_SUCH_CALL,
            (_, true) => NOTIFY,
            _ if matches!(row.when, When::Corrected | When::HomeFdOrCorrected(_)) => TRACE,
            (_, false) => ALLOW,
        }
    }

    fn input() -> FilterInput {
        FilterInput {
            pid: 4711,
            home_fds: vec![0, 1, 2, 7],
            shared_fds: vec![3, 4],
        }
    }

    #[test]
    fn every_call_is_treated_as_the_table_says() {
        let code = build(&input()).unwrap();
        assert!(code.len() < 800, "{}", code.len());
        for number in (0..600).chain([0x4000_0000, u32::MAX]) {
            for first in [0, 3, 5, 4711, 0xffff_ffff_0000_0001] {
                let args = [first, 7, 9, 1, 0, 0];
                assert_eq!(
                    run(&code, ARCH_X86_64, number, args),
                    model(&input(), number, args),
                    "{number} {args:?}"
                );
            }
        }
    }

    #[test]
    fn other_architectures_are_never_allowed() {
        let code = build(&input()).unwrap();
        for number in 0..500 {
            assert_eq!(run(&code, 0x4000_0003, number, [0; 6]), NOTIFY);
        }
    }

    #[test]
    fn reading_a_terminal_is_trapped_and_reading_a_file_is_not() {
        let code = build(&input()).unwrap();
        assert_eq!(run(&code, ARCH_X86_64, 0, [0, 1, 2, 0, 0, 0]), NOTIFY);
        assert_eq!(run(&code, ARCH_X86_64, 0, [3, 1, 2, 0, 0, 0]), ALLOW);
        assert_eq!(run(&code, ARCH_X86_64, 3, [3, 0, 0, 0, 0, 0]), NOTIFY);
    }

    #[test]
    fn too_many_descriptors_are_an_error() {
        let many = FilterInput {
            pid: 1,
            home_fds: (0..1000).collect(),
            shared_fds: vec![],
        };
        assert_eq!(build(&many), Err(TooManyDescriptors(1000)));
    }

    proptest! {
        #[test]
        fn filter_and_table_agree(
            home_fds in prop::collection::vec(0u32..40, 0..20),
            shared_fds in prop::collection::vec(0u32..40, 0..20),
            number in 0u32..500,
            args in prop::array::uniform6(prop_oneof![0u64..45, any::<u64>()]),
        ) {
            let input = FilterInput { pid: 33, home_fds, shared_fds };
            let code = build(&input).unwrap();
            prop_assert_eq!(
                run(&code, ARCH_X86_64, number, args),
                model(&input, number, args)
            );
        }
    }
}
