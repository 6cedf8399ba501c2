//! State of single threads.

use crate::image::{AltStackImage, RseqImage, ThreadImage, registers};
use crate::sys::sched;
use crate::tracee::{Call, Frozen, TraceeError, procfs};

use super::{CaptureError, inner_id};

const PR_GET_TID_ADDRESS: u64 = 40;
/// `stack_t` of sigaltstack(2).
const STACK_WORDS: usize = 3;

pub(super) fn capture_all(frozen: &mut Frozen) -> Result<Vec<ThreadImage>, CaptureError> {
    (0..frozen.threads.len())
        .map(|index| capture_one(frozen, index))
        .collect()
}

fn capture_one(frozen: &mut Frozen, index: usize) -> Result<ThreadImage, CaptureError> {
    let pid = frozen.pid();
    let thread = frozen
        .threads
        .get(index)
        .ok_or(TraceeError::Died { tid: pid })?;
    let tid = thread.stopped.tid();
    let gone = |error| procfs::failed(tid, error);
    let status = procfs::Status::of_thread(pid, tid).map_err(gone)?;
    let stat = procfs::Stat::of_thread(pid, tid).map_err(gone)?;
    let rseq = thread.stopped.rseq()?;
    let (robust_list, robust_list_bytes) = sched::robust_list(tid)
        .map_err(|error| TraceeError::request("get_robust_list", tid, error))?;
    let mut image = ThreadImage {
        tid: inner_id(&status, tid),
        host_tid: tid,
        regs: registers::to_list(&thread.regs),
        xstate: thread.stopped.xstate()?,
        blocked_signals: thread.sigmask,
        rseq: (rseq.pointer != 0).then_some(RseqImage {
            address: rseq.pointer,
            bytes: rseq.size_bytes,
            signature: rseq.signature,
        }),
        robust_list,
        robust_list_bytes,
        comm: stat.comm.clone(),
        nice: stat.number(19) as i64 as i32,
        policy: stat.number(41) as u32,
        ..ThreadImage::default()
    };
    ask_kernel(frozen, index, &mut image)?;
    // Afterwards, since a SIGTRAP that waited has been taken by then.
    let thread = frozen
        .threads
        .get(index)
        .ok_or(TraceeError::Died { tid: pid })?;
    let pending = thread.stopped.pending_signals(false)?;
    image.pending_signals = pending.iter().map(|info| info.0.to_vec()).collect();
    Ok(image)
}

/// Has a thread ask for its signal stack and for the address to be cleared at its end.
fn ask_kernel(
    frozen: &mut Frozen,
    index: usize,
    image: &mut ThreadImage,
) -> Result<(), CaptureError> {
    let scratch = frozen.stub()?.scratch;
    let address = scratch + (STACK_WORDS * size_of::<u64>()) as u64;
    let calls = [
        Call::new(
            ("sigaltstack", libc::SYS_sigaltstack),
            [0, scratch, 0, 0, 0, 0],
        ),
        Call::new(
            ("prctl(PR_GET_TID_ADDRESS)", libc::SYS_prctl),
            [PR_GET_TID_ADDRESS, address, 0, 0, 0, 0],
        ),
    ];
    frozen.calls_checked(index, &calls)?;
    let memory = frozen.leader()?.stopped.memory();
    let words = memory.read_words(scratch, STACK_WORDS + 1)?;
    if let [stack, flags, bytes, clear_child_tid] = words[..] {
        image.alt_stack = alt_stack(stack, flags as u32 as i32, bytes);
        image.clear_child_tid = clear_child_tid;
    }
    Ok(())
}

/// `stack_t` as the kernel writes it: address, flags and padding, size.
fn alt_stack(address: u64, flags: i32, bytes: u64) -> Option<AltStackImage> {
    // SS_ONSTACK is a state, derived from the stack pointer, and cannot be set.
    (flags & libc::SS_DISABLE == 0).then_some(AltStackImage {
        address,
        bytes,
        flags: flags & !libc::SS_ONSTACK,
    })
}
