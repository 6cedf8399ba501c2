//! The general purpose registers of a stopped x86-64 thread.

/// Registers as the kernel shows them (`struct user_regs_struct`, sys/user.h).
///
/// `orig_rax` is the number of the system call the thread is in, or -1 (as u64) for none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

const _: () = assert!(size_of::<Regs>() == 216);

/// `cs` of a 64-bit thread on Linux (`__USER_CS`); a 32-bit one has 0x23.
pub const CS_64_BIT: u64 = 0x33;

/// `orig_rax` of a thread that is in no system call.
pub const NO_SYSCALL: u64 = u64::MAX;

impl Regs {
    /// The registers that execute one system call instruction at `address`.
    ///
    /// `orig_rax` is cleared so that the kernel does not apply its restart logic to the call the
    /// thread was interrupted in.
    #[must_use]
    pub fn for_call(&self, address: u64, number: i64, args: [u64; 6]) -> Self {
        Self {
            rip: address,
            rax: number as u64,
            orig_rax: NO_SYSCALL,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            r9: args[5],
            ..*self
        }
    }

    /// The six arguments of the system call the thread is in or about to make.
    #[must_use]
    pub fn args(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// Number of the system call the thread was stopped in, if any.
    #[must_use]
    pub fn syscall_number(&self) -> Option<i64> {
        let number = self.orig_rax as i64;
        (number >= 0).then_some(number)
    }
}
