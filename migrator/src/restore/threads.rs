//! Threads and what each has for itself.

use std::time::Instant;

use crate::capture::inner_id;
use crate::image::{ThreadImage, registers};
use crate::sys::clone3::{CLONE_ARGS_BYTES, CloneArgs};
use crate::sys::regs::Regs;
use crate::tracee::freeze::FrozenThread;
use crate::tracee::{CALL_DEADLINE, Frozen, Running, TraceeError, procfs};

use super::{RestoreError, restart};

const CLONE_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;
const RSEQ_FLAG_UNREGISTER: u64 = 1;
const SYS_RSEQ: i64 = 334;

/// Makes a thread with the id `tid` and takes it over, stopped. Needs the tracing option
/// TRACECLONE, and a leader that may choose ids.
pub(super) fn create(frozen: &mut Frozen, tid: i32) -> Result<(), RestoreError> {
    let stub = frozen.stub()?;
    let wanted = stub.scratch + CLONE_ARGS_BYTES as u64;
    let args = CloneArgs {
        flags: CLONE_FLAGS as u64,
        set_tid: wanted,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let mut bytes = args.to_bytes().to_vec();
    bytes.extend_from_slice(&tid.to_ne_bytes());
    frozen
        .leader()?
        .stopped
        .memory()
        .write(stub.scratch, &bytes)?;
    let args = [stub.scratch, CLONE_ARGS_BYTES as u64, 0, 0, 0, 0];
    frozen.call(0, ("clone3", libc::SYS_clone3), args)?;
    let host_tid = find_new(frozen, tid)?;
    let stopped = Running::assume(host_tid).wait(Instant::now() + CALL_DEADLINE)?;
    frozen.threads.push(FrozenThread::new(stopped)?);
    Ok(())
}

/// The id of the new thread as it is seen here.
fn find_new(frozen: &Frozen, tid: i32) -> Result<i32, TraceeError> {
    let pid = frozen.pid();
    let gone = |error| procfs::failed(pid, error);
    let known = |host_tid: &i32| frozen.threads.iter().any(|t| t.stopped.tid() == *host_tid);
    for host_tid in procfs::threads(pid)
        .map_err(gone)?
        .into_iter()
        .filter(|tid| !known(tid))
    {
        let status = procfs::Status::of_thread(pid, host_tid).map_err(gone)?;
        if inner_id(&status, host_tid) == tid {
            return Ok(host_tid);
        }
    }
    Err(TraceeError::Unexpected {
        tid: pid,
        what: format!("absence of the new thread {tid}"),
    })
}

/// Gives thread `index` its state, but registers and signal mask: those are set when it goes on.
pub(super) fn set_state(
    frozen: &mut Frozen,
    index: usize,
    image: &ThreadImage,
) -> Result<(), RestoreError> {
    let clear_tid = [image.clear_child_tid, 0, 0, 0, 0, 0];
    frozen.call(
        index,
        ("set_tid_address", libc::SYS_set_tid_address),
        clear_tid,
    )?;
    if image.robust_list_bytes != 0 {
        let args = [image.robust_list, image.robust_list_bytes, 0, 0, 0, 0];
        frozen.call(index, ("set_robust_list", libc::SYS_set_robust_list), args)?;
    }
    set_alt_stack(frozen, index, image)?;
    set_name(frozen, index, &image.comm)?;
    set_nice(frozen, index, image.nice)?;
    if let Some(rseq) = &image.rseq {
        call_rseq(frozen, index, (rseq.address, rseq.bytes), 0, rseq.signature)?;
    }
    let thread = frozen
        .threads
        .get_mut(index)
        .ok_or(TraceeError::Died { tid: image.tid })?;
    if thread.stopped.xstate()?.len() != image.xstate.len() {
        let what = format!("an XSAVE area of {} bytes", image.xstate.len());
        return Err(RestoreError::Incompatible(what));
    }
    thread.stopped.set_xstate(&image.xstate)?;
    thread.regs = restart::elsewhere(&registers::from_image(image)?);
    thread.sigmask = image.blocked_signals;
    Ok(())
}

/// The kernel refuses a stack while the thread's stack pointer lies on the present one.
fn set_alt_stack(
    frozen: &mut Frozen,
    index: usize,
    image: &ThreadImage,
) -> Result<(), RestoreError> {
    let disabled = (0, libc::SS_DISABLE, 0);
    let stack = image.alt_stack.as_ref();
    let (address, flags, bytes) = stack.map_or(disabled, |s| (s.address, s.flags, s.bytes));
    let mut argument = address.to_ne_bytes().to_vec();
    argument.extend_from_slice(&u64::from(flags as u32).to_ne_bytes());
    argument.extend_from_slice(&bytes.to_ne_bytes());
    Ok(call_sigaltstack(frozen, index, &argument)?)
}

/// rseq(2) for an area of so many bytes; the kernel wants the same signature to take it back.
fn call_rseq(
    frozen: &mut Frozen,
    index: usize,
    (address, bytes): (u64, u32),
    flags: u64,
    signature: u32,
) -> Result<(), TraceeError> {
    let args = [address, bytes.into(), flags, signature.into(), 0, 0];
    frozen.call(index, ("rseq", SYS_RSEQ), args).map(drop)
}

/// sigaltstack(2) with a `stack_t`.
fn call_sigaltstack(frozen: &mut Frozen, index: usize, argument: &[u8]) -> Result<(), TraceeError> {
    let scratch = frozen.stub()?.scratch;
    frozen.leader()?.stopped.memory().write(scratch, argument)?;
    off_stack(frozen, index, scratch)?;
    let call = ("sigaltstack", libc::SYS_sigaltstack);
    frozen.call(index, call, [scratch, 0, 0, 0, 0, 0]).map(drop)
}

/// Moves the stack pointer where it lies on no signal stack; it is set for good at the end.
fn off_stack(frozen: &mut Frozen, index: usize, scratch: u64) -> Result<(), TraceeError> {
    let pid = frozen.pid();
    let thread = frozen
        .threads
        .get_mut(index)
        .ok_or(TraceeError::Died { tid: pid })?;
    let regs: Regs = thread.stopped.regs()?;
    thread.stopped.set_regs(&Regs {
        rsp: scratch,
        ..regs
    })
}

/// The keeper's own would be inherited else. Who may not lower it comes home with the one it had.
fn set_nice(frozen: &mut Frozen, index: usize, nice: i32) -> Result<(), TraceeError> {
    let nice = i64::from(nice).cast_unsigned();
    let args = [libc::PRIO_PROCESS.into(), 0, nice, 0, 0, 0];
    match frozen.call(index, ("setpriority", libc::SYS_setpriority), args) {
        Err(TraceeError::Call { .. }) => Ok(()),
        other => other.map(drop),
    }
}

fn set_name(frozen: &mut Frozen, index: usize, name: &[u8]) -> Result<(), RestoreError> {
    let mut bytes: Vec<u8> = name.iter().copied().take(15).collect();
    bytes.push(0);
    let scratch = frozen.stub()?.scratch;
    frozen.leader()?.stopped.memory().write(scratch, &bytes)?;
    let args = [libc::PR_SET_NAME as u64, scratch, 0, 0, 0, 0];
    frozen.call(index, ("prctl(PR_SET_NAME)", libc::SYS_prctl), args)?;
    Ok(())
}

/// Takes back everything that makes the kernel touch memory on behalf of a thread: its memory is
/// about to go, and a missing restartable sequence area alone would kill it.
pub(super) fn detach_from_memory(frozen: &mut Frozen, index: usize) -> Result<(), TraceeError> {
    let pid = frozen.pid();
    let thread = frozen
        .threads
        .get(index)
        .ok_or(TraceeError::Died { tid: pid })?;
    let rseq = thread.stopped.rseq()?;
    if rseq.pointer != 0 {
        let area = (rseq.pointer, rseq.size_bytes);
        call_rseq(frozen, index, area, RSEQ_FLAG_UNREGISTER, rseq.signature)?;
    }
    let robust_bytes = 24;
    let robust = [0, robust_bytes, 0, 0, 0, 0];
    frozen.call(
        index,
        ("set_robust_list", libc::SYS_set_robust_list),
        robust,
    )?;
    frozen.call(
        index,
        ("set_tid_address", libc::SYS_set_tid_address),
        [0; 6],
    )?;
    let mut disabled = [0_u8; 24];
    if let Some(flags) = disabled.get_mut(8) {
        *flags = libc::SS_DISABLE as u8;
    }
    call_sigaltstack(frozen, index, &disabled)
}
