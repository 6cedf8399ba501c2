//! Threads and what each has for itself.

use std::time::Instant;

use crate::capture::inner_id;
use crate::image::{AltStackImage, ThreadImage, registers};
use crate::sys::clone3::{CLONE_ARGS_BYTES, CloneArgs};
use crate::tracee::freeze::FrozenThread;
use crate::tracee::inject::checked;
use crate::tracee::{CALL_DEADLINE, Call, Frozen, Running, TraceeError, procfs};

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

/// `stack_t` of sigaltstack(2).
const STACK_BYTES: usize = 24;
/// A thread's name with its end (prctl(2), PR_SET_NAME).
const NAME_BYTES: usize = 16;
const SET_PRIORITY: &str = "setpriority";

/// Gives thread `index` its state, but registers and signal mask: those are set when it goes on.
pub(super) fn set_state(
    frozen: &mut Frozen,
    index: usize,
    image: &ThreadImage,
) -> Result<(), RestoreError> {
    let mut arguments = stack_argument(image.alt_stack.as_ref()).to_vec();
    arguments.extend(image.comm.iter().take(NAME_BYTES - 1));
    arguments.resize(STACK_BYTES + NAME_BYTES, 0);
    let calls = state_calls(image, frozen.put_arguments(&arguments)?);
    let results = frozen.calls(index, &calls)?;
    for (call, raw) in calls.iter().zip(results) {
        match checked(call.name, raw) {
            // Who may not lower it comes home with the one it had.
            Err(_) if call.name == SET_PRIORITY => {}
            other => drop(other?),
        }
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

/// What a thread asks of the kernel for itself; a signal stack lies at `scratch`, its name behind.
fn state_calls(image: &ThreadImage, scratch: u64) -> Vec<Call> {
    let name = scratch + STACK_BYTES as u64;
    // The keeper's own would be inherited else.
    let nice = i64::from(image.nice).cast_unsigned();
    let mut calls = vec![
        set_tid_address(image.clear_child_tid),
        set_stack(scratch),
        Call::new(
            ("prctl(PR_SET_NAME)", libc::SYS_prctl),
            [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0],
        ),
        Call::new(
            (SET_PRIORITY, libc::SYS_setpriority),
            [libc::PRIO_PROCESS.into(), 0, nice, 0, 0, 0],
        ),
    ];
    if image.robust_list_bytes != 0 {
        calls.push(set_robust_list(image.robust_list, image.robust_list_bytes));
    }
    // From then on the kernel writes there whenever the thread leaves it.
    calls.extend(image.rseq.as_ref().map(|rseq| {
        let area = (rseq.address, rseq.bytes);
        set_rseq(area, 0, rseq.signature)
    }));
    calls
}

fn stack_argument(stack: Option<&AltStackImage>) -> [u8; STACK_BYTES] {
    let disabled = (0, libc::SS_DISABLE, 0);
    let (address, flags, bytes) = stack.map_or(disabled, |s| (s.address, s.flags, s.bytes));
    let words = [address, u64::from(flags.cast_unsigned()), bytes];
    let mut argument = [0; STACK_BYTES];
    for (place, word) in argument.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    argument
}

/// sigaltstack(2). The kernel refuses it while the thread's stack pointer lies on the present one,
/// which it does not in [`Frozen::calls`].
fn set_stack(argument: u64) -> Call {
    let call = ("sigaltstack", libc::SYS_sigaltstack);
    Call::new(call, [argument, 0, 0, 0, 0, 0])
}

fn set_tid_address(address: u64) -> Call {
    let call = ("set_tid_address", libc::SYS_set_tid_address);
    Call::new(call, [address, 0, 0, 0, 0, 0])
}

fn set_robust_list(list: u64, bytes: u64) -> Call {
    let call = ("set_robust_list", libc::SYS_set_robust_list);
    Call::new(call, [list, bytes, 0, 0, 0, 0])
}

/// rseq(2) for an area of so many bytes; the kernel wants the same signature to take it back.
fn set_rseq((address, bytes): (u64, u32), flags: u64, signature: u32) -> Call {
    let args = [address, bytes.into(), flags, signature.into(), 0, 0];
    Call::new(("rseq", SYS_RSEQ), args)
}

/// Takes back everything that makes the kernel touch memory on behalf of a thread: its memory is
/// about to go, and a missing restartable sequence area alone would kill it.
pub(super) fn detach_from_memory(frozen: &mut Frozen, index: usize) -> Result<(), TraceeError> {
    const ROBUST_BYTES: u64 = 24;
    let pid = frozen.pid();
    let stack = frozen.put_arguments(&stack_argument(None))?;
    let thread = frozen
        .threads
        .get(index)
        .ok_or(TraceeError::Died { tid: pid })?;
    let rseq = thread.stopped.rseq()?;
    let area = (rseq.pointer, rseq.size_bytes);
    let registered = rseq.pointer != 0;
    let unregister = set_rseq(area, RSEQ_FLAG_UNREGISTER, rseq.signature);
    let mut calls: Vec<Call> = registered.then_some(unregister).into_iter().collect();
    calls.push(set_robust_list(0, ROBUST_BYTES));
    calls.push(set_tid_address(0));
    calls.push(set_stack(stack));
    frozen.calls_checked(index, &calls).map(drop)
}
