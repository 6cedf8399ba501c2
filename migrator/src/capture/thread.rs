//! State of single threads.

use crate::image::{AltStackImage, RseqImage, ThreadImage, registers};
use crate::sys::sched;
use crate::tracee::{Frozen, TraceeError, procfs};

use super::{CaptureError, inner_id};

const PR_GET_TID_ADDRESS: u64 = 40;

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
    let pending = thread.stopped.pending_signals(false)?;
    let mut image = ThreadImage {
        tid: inner_id(&status, tid),
        host_tid: tid,
        regs: registers::to_list(&thread.regs),
        xstate: thread.stopped.xstate()?,
        blocked_signals: thread.sigmask,
        pending_signals: pending.iter().map(|info| info.0.to_vec()).collect(),
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
    image.alt_stack = alt_stack(frozen, index)?;
    image.clear_child_tid = clear_child_tid(frozen, index)?;
    Ok(image)
}

/// `stack_t` as the kernel writes it: address, flags and padding, size.
fn alt_stack(frozen: &mut Frozen, index: usize) -> Result<Option<AltStackImage>, CaptureError> {
    let scratch = frozen.stub()?.scratch;
    frozen.call(
        index,
        ("sigaltstack", libc::SYS_sigaltstack),
        [0, scratch, 0, 0, 0, 0],
    )?;
    let memory = frozen.leader()?.stopped.memory();
    let flags = memory.read_u64(scratch + 8)? as u32 as i32;
    if flags & libc::SS_DISABLE != 0 {
        return Ok(None);
    }
    let (address, bytes) = (memory.read_u64(scratch)?, memory.read_u64(scratch + 16)?);
    // SS_ONSTACK is a state, derived from the stack pointer, and cannot be set.
    Ok(Some(AltStackImage {
        address,
        bytes,
        flags: flags & !libc::SS_ONSTACK,
    }))
}

fn clear_child_tid(frozen: &mut Frozen, index: usize) -> Result<u64, CaptureError> {
    let scratch = frozen.stub()?.scratch;
    let args = [PR_GET_TID_ADDRESS, scratch, 0, 0, 0, 0];
    frozen.call(index, ("prctl(PR_GET_TID_ADDRESS)", libc::SYS_prctl), args)?;
    Ok(frozen.leader()?.stopped.memory().read_u64(scratch)?)
}
