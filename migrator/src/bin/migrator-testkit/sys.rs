//! What needs unsafe code in the test programs.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often the handler ran on the alternate stack.
pub static HANDLED: AtomicU64 = AtomicU64::new(0);
/// How often it ran elsewhere.
pub static ASTRAY: AtomicU64 = AtomicU64::new(0);
static STACK_START: AtomicU64 = AtomicU64::new(0);
const STACK_BYTES: usize = 64 * 1024;

extern "C" fn on_signal(_signal: i32) {
    let local = 0_u8;
    let address = std::hint::black_box(&raw const local) as u64;
    let start = STACK_START.load(Ordering::Relaxed);
    let inside = (start..start + STACK_BYTES as u64).contains(&address);
    if inside { &HANDLED } else { &ASTRAY }.fetch_add(1, Ordering::Relaxed);
}

/// Handles SIGUSR2 on an alternate stack of this thread.
pub fn handle_on_own_stack() {
    let stack = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    STACK_START.store(stack.as_ptr() as u64, Ordering::Relaxed);
    let alternate = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: the stack lives forever, the handler only touches atomics, and the structures are
    // complete.
    unsafe {
        libc::sigaltstack(&raw const alternate, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut());
    }
}

/// Sends SIGUSR2 to the calling thread.
pub fn signal_self() {
    // SAFETY: plain numbers.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            libc::gettid(),
            libc::SIGUSR2,
        )
    };
}

/// What one thread has received.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Signals of which one at most waits.
    pub simple: u64,
    /// Signals that queue up; each carries its number.
    pub queued: u64,
    /// Of those, how many came out of their turn.
    pub disorder: u64,
}

thread_local! {
    static TALLY: Cell<Tally> = const {
        Cell::new(Tally { simple: 0, queued: 0, disorder: 0 })
    };
}

/// Numbered signals that others have queued.
pub static FROM_OUTSIDE: AtomicU64 = AtomicU64::new(0);
/// Number 0 has come.
pub static ASKED_TO_END: AtomicBool = AtomicBool::new(false);
/// The sum of their numbers.
pub static OUTSIDE_SUM: AtomicU64 = AtomicU64::new(0);

/// What the calling thread has received so far.
pub fn tally() -> Tally {
    TALLY.get()
}

extern "C" fn on_counted(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a complete description to a handler with SA_SIGINFO.
    let number = unsafe { (*info).si_value().sival_ptr } as u64;
    if signal == from_outside() {
        return on_outside(number);
    }
    let mut tally = TALLY.get();
    if signal == libc::SIGUSR2 {
        tally.simple += 1;
    } else {
        tally.queued += 1;
        tally.disorder += u64::from(number != tally.queued);
    }
    TALLY.set(tally);
}

fn on_outside(number: u64) {
    if number == 0 {
        return ASKED_TO_END.store(true, Ordering::Relaxed);
    }
    FROM_OUTSIDE.fetch_add(1, Ordering::Relaxed);
    OUTSIDE_SUM.fetch_add(number, Ordering::Relaxed);
}

fn counted() -> [i32; 2] {
    [libc::SIGUSR2, libc::SIGRTMIN()]
}

/// The signal that others queue.
pub fn from_outside() -> i32 {
    libc::SIGRTMIN() + 1
}

/// Counts SIGUSR2 and SIGRTMIN by thread, and [`from_outside`].
pub fn count_signals() {
    // SAFETY: the handler only touches an atomic and a thread-local cell without initialisation;
    // the structures are complete.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_counted as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        for signal in counted().into_iter().chain([from_outside()]) {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Blocks or unblocks the signals that are counted by thread, in this one.
pub fn block_counted(block: bool) {
    set_blocked(block, &counted());
}

/// Leaves [`from_outside`] to other threads.
pub fn block_from_outside() {
    set_blocked(true, &[from_outside()]);
}

fn set_blocked(block: bool, signals: &[i32]) {
    let how = if block {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a local set, emptied before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Queues SIGRTMIN with a value to the calling thread.
pub fn queue_to_self(value: u64) {
    let value = libc::sigval {
        sival_ptr: value as *mut libc::c_void,
    };
    // SAFETY: the value is never used as a pointer.
    unsafe { libc::pthread_sigqueue(libc::pthread_self(), libc::SIGRTMIN(), value) };
}

/// Blocks all signals in this thread.
pub fn block_signals() {
    // SAFETY: a local set, filled before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Keeps `value` in registers only, vector and general ones, for `spins` rounds; answers how many
/// of them still hold it.
pub fn hold_in_registers(value: u64, spins: u64) -> u32 {
    let (vector, low, high): (u64, u64, u64);
    // SAFETY: only registers named as operands are changed; SSE2 is part of x86-64.
    unsafe {
        std::arch::asm!(
            "movq {vector}, {value}",
            "mov r12, {value}",
            "mov r13, {value}",
            "2:",
            "dec {spins}",
            "jnz 2b",
            "movq {out}, {vector}",
            value = in(reg) value,
            spins = inout(reg) spins.max(1) => _,
            vector = out(xmm_reg) _,
            out = out(reg) vector,
            out("r12") low,
            out("r13") high,
            options(nomem, nostack)
        );
    }
    [vector, low, high]
        .iter()
        .filter(|found| **found == value)
        .count() as u32
}
