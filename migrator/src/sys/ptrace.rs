//! ptrace(2), one function per request.

use std::io;
use std::mem::{MaybeUninit, size_of};

use super::answer;
use super::regs::Regs;

/// Bytes of a `siginfo_t`, the same on every x86-64 kernel.
pub const SIGINFO_BYTES: usize = 128;

/// A signal's complete description as the kernel gives and takes it.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawSiginfo(pub [u8; SIGINFO_BYTES]);

const _: () = assert!(size_of::<RawSiginfo>() == size_of::<libc::siginfo_t>());

/// What `PTRACE_GET_RSEQ_CONFIGURATION` tells (linux/ptrace.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of the registered area, 0 for none.
    pub pointer: u64,
    /// Its length in bytes.
    pub size_bytes: u32,
    /// The signature before every abort handler.
    pub signature: u32,
    /// As given at registration.
    pub flags: u32,
    pad: u32,
}

const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// `NT_X86_XSTATE` (linux/elf.h): the XSAVE area.
const NT_X86_XSTATE: libc::c_ulong = 0x202;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;

/// The largest XSAVE area accepted; AMX needs about 11 KiB.
const XSAVE_BYTES_MAX: usize = 64 * 1024;

/// Options of a seized tracee.
pub mod options {
    /// Kill the tracee when its tracer ends.
    pub const EXITKILL: u32 = libc::PTRACE_O_EXITKILL as u32;
    /// Mark system call stops by SIGTRAP | 0x80.
    pub const TRACESYSGOOD: u32 = libc::PTRACE_O_TRACESYSGOOD as u32;
    /// Stop when the thread is about to exit.
    pub const TRACEEXIT: u32 = libc::PTRACE_O_TRACEEXIT as u32;
    /// Attach new threads and clone() children, too.
    pub const TRACECLONE: u32 = libc::PTRACE_O_TRACECLONE as u32;
    /// Attach fork() children.
    pub const TRACEFORK: u32 = libc::PTRACE_O_TRACEFORK as u32;
    /// Attach vfork() children.
    pub const TRACEVFORK: u32 = libc::PTRACE_O_TRACEVFORK as u32;
    /// Stop after execve().
    pub const TRACEEXEC: u32 = libc::PTRACE_O_TRACEEXEC as u32;
    /// Stop at system calls that a seccomp filter hands to the tracer.
    pub const TRACESECCOMP: u32 = libc::PTRACE_O_TRACESECCOMP as u32;
    /// Switch off the tracee's seccomp filters (CAP_SYS_ADMIN, and none on the tracer itself).
    pub const SUSPEND_SECCOMP: u32 = 1 << 21;
}

/// The raw call. Not glibc's wrapper, which changes the meaning of the PEEK requests.
fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: every caller below passes for `data` either a number or a pointer to memory of the
    // size the request wants that outlives the call. No crate wraps all of these requests.
    answer(unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            libc::c_ulong::from(request),
            tid,
            address,
            data,
        )
    })
}

/// Attaches without stopping.
///
/// # Errors
/// EPERM (traced already, exiting, kernel thread), ESRCH.
pub fn seize(tid: i32, options: u32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Asks a seized, running tracee to stop.
///
/// # Errors
/// ESRCH when it is gone.
pub fn interrupt(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped tracee run, delivering `signal` unless it is 0.
///
/// # Errors
/// ESRCH when it is gone or not stopped.
pub fn cont(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Like [`cont`] until the next system call entry or exit.
///
/// # Errors
/// As [`cont`].
pub fn cont_to_syscall(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped tracee execute one instruction; it stops again by SIGTRAP.
///
/// # Errors
/// As [`cont`].
pub fn single_step(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// Leaves a group-stopped tracee stopped, but listening for SIGCONT.
///
/// # Errors
/// EIO when it is in no group-stop.
pub fn listen(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Lets a stopped tracee go, delivering `signal` unless it is 0.
///
/// # Errors
/// ESRCH when it is gone or not stopped.
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// Changes the options of a stopped tracee.
///
/// # Errors
/// EINVAL, EPERM (SUSPEND_SECCOMP), ESRCH.
pub fn set_options(tid: i32, options: u32) -> io::Result<()> {
    ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// The number that came with a ptrace event (a new child's pid, an exit status).
///
/// # Errors
/// ESRCH.
pub fn event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
}

/// General purpose registers.
///
/// # Errors
/// ESRCH.
pub fn get_regs(tid: i32) -> io::Result<Regs> {
    let mut regs = Regs::default();
    ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as usize)?;
    Ok(regs)
}

/// Sets the general purpose registers, FS and GS base included.
///
/// # Errors
/// EIO for values the kernel does not take (segment selectors), ESRCH.
pub fn set_regs(tid: i32, regs: &Regs) -> io::Result<()> {
    ptrace(
        libc::PTRACE_SETREGS,
        tid,
        0,
        std::ptr::from_ref(regs) as usize,
    )
    .map(drop)
}

/// The XSAVE area: x87, SSE, AVX, … registers in the standard format.
///
/// # Errors
/// ESRCH, ENODEV (no XSAVE).
pub fn get_xstate(tid: i32) -> io::Result<Vec<u8>> {
    let mut area = vec![0_u8; XSAVE_BYTES_MAX];
    let mut vector = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    let request = libc::PTRACE_GETREGSET;
    ptrace(
        request,
        tid,
        NT_X86_XSTATE as usize,
        &raw mut vector as usize,
    )?;
    area.truncate(vector.iov_len);
    Ok(area)
}

/// Sets the XSAVE area; its length must be this machine's (shorter: EFAULT, longer: cut).
///
/// # Errors
/// EFAULT, EINVAL for a bad header or reserved bits, ESRCH.
pub fn set_xstate(tid: i32, area: &[u8]) -> io::Result<()> {
    let vector = libc::iovec {
        iov_base: area.as_ptr() as *mut _,
        iov_len: area.len(),
    };
    let request = libc::PTRACE_SETREGSET;
    ptrace(
        request,
        tid,
        NT_X86_XSTATE as usize,
        &raw const vector as usize,
    )
    .map(drop)
}

/// Blocked signals, bit n-1 for signal n.
///
/// # Errors
/// ESRCH.
pub fn get_sigmask(tid: i32) -> io::Result<u64> {
    let mut mask = 0_u64;
    ptrace(
        libc::PTRACE_GETSIGMASK,
        tid,
        size_of::<u64>(),
        &raw mut mask as usize,
    )?;
    Ok(mask)
}

/// Sets the blocked signals.
///
/// # Errors
/// ESRCH.
pub fn set_sigmask(tid: i32, mask: u64) -> io::Result<()> {
    let request = libc::PTRACE_SETSIGMASK;
    ptrace(request, tid, size_of::<u64>(), &raw const mask as usize).map(drop)
}

/// The signal a tracee in signal-delivery-stop is about to receive.
///
/// # Errors
/// EINVAL in a group-stop, ESRCH.
pub fn get_siginfo(tid: i32) -> io::Result<RawSiginfo> {
    let mut info = RawSiginfo([0; SIGINFO_BYTES]);
    ptrace(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize)?;
    Ok(info)
}

/// Changes the signal a tracee in signal-delivery-stop is about to receive.
///
/// # Errors
/// EINVAL in a group-stop, ESRCH.
pub fn set_siginfo(tid: i32, info: &RawSiginfo) -> io::Result<()> {
    ptrace(
        libc::PTRACE_SETSIGINFO,
        tid,
        0,
        std::ptr::from_ref(info) as usize,
    )
    .map(drop)
}

/// Pending signals without taking them, from position `offset` on: the process' shared queue or
/// the thread's own one.
///
/// # Errors
/// ESRCH.
pub fn peek_siginfo(tid: i32, shared: bool, offset: u64) -> io::Result<Vec<RawSiginfo>> {
    const BATCH: usize = 32;
    let flags = if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 };
    let args = libc::ptrace_peeksiginfo_args {
        off: offset,
        flags,
        nr: BATCH as i32,
    };
    let mut infos = [RawSiginfo([0; SIGINFO_BYTES]); BATCH];
    let address = &raw const args as usize;
    let count = ptrace(
        libc::PTRACE_PEEKSIGINFO,
        tid,
        address,
        infos.as_mut_ptr() as usize,
    )?;
    Ok(infos.iter().copied().take(count as usize).collect())
}

/// The thread's restartable sequence area.
///
/// # Errors
/// EIO before kernel 5.13, ESRCH.
pub fn rseq_configuration(tid: i32) -> io::Result<RseqConfiguration> {
    let mut config = MaybeUninit::<RseqConfiguration>::zeroed();
    let size = size_of::<RseqConfiguration>();
    ptrace(
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size,
        config.as_mut_ptr() as usize,
    )?;
    // SAFETY: zeroed bytes are a valid value of this plain structure, and the kernel filled it.
    Ok(unsafe { config.assume_init() })
}

/// Writes eight bytes, page protections notwithstanding.
///
/// # Errors
/// EIO or EFAULT for an unmapped address, ESRCH.
pub fn poke(tid: i32, address: u64, word: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_POKEDATA, tid, address as usize, word as usize).map(drop)
}

impl std::fmt::Debug for RawSiginfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RawSiginfo(signal {}, code {})",
            self.signal(),
            self.code()
        )
    }
}

impl RawSiginfo {
    /// What sigqueue(3) sends, in nobody's name.
    #[must_use]
    pub fn queued(signal: i32, value: u64) -> Self {
        let mut bytes = [0; SIGINFO_BYTES];
        let mut put = |at: usize, field: &[u8]| {
            let place = bytes.iter_mut().skip(at);
            place.zip(field).for_each(|(to, from)| *to = *from);
        };
        put(0, &signal.to_ne_bytes());
        put(8, &libc::SI_QUEUE.to_ne_bytes());
        put(24, &value.to_ne_bytes());
        Self(bytes)
    }

    /// A SIGSTOP as kill(2) sends it, of which nothing else is known any more.
    #[must_use]
    pub fn stop() -> Self {
        let mut bytes = [0; SIGINFO_BYTES];
        let number = libc::SIGSTOP.to_ne_bytes();
        bytes
            .iter_mut()
            .zip(number)
            .for_each(|(to, from)| *to = from);
        Self(bytes)
    }

    /// `si_signo`.
    #[must_use]
    pub fn signal(&self) -> i32 {
        self.word(0)
    }

    /// `si_code`: who sent it (sigaction(2)); `SI_TKILL` is for one thread.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.word(8)
    }

    /// `si_pid`, of codes that have one.
    #[must_use]
    pub fn sender(&self) -> i32 {
        self.word(16)
    }

    fn word(&self, offset: usize) -> i32 {
        let bytes = [
            self.0[offset],
            self.0[offset + 1],
            self.0[offset + 2],
            self.0[offset + 3],
        ];
        i32::from_ne_bytes(bytes)
    }
}

impl TryFrom<&[u8]> for RawSiginfo {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}
