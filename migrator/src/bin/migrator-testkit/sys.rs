//! What needs unsafe code in the test programs.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// Closes all descriptors.
pub fn close_all() {
    // SAFETY: the caller, about to be taken over, uses no descriptor any more.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
}

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
