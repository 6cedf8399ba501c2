//! What threads have in common.

use std::path::Path;

use crate::capture::process::OWN_TIMERS;
use crate::image::{LayoutImage, LimitImage, ProcessImage, SignalActionImage};
use crate::tracee::{Call, Frozen, RawSiginfo, TraceeError, procfs};

use super::{RestoreError, files, privileges};

const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
/// `struct prctl_mm_map` (linux/prctl.h).
const MM_MAP_BYTES: u64 = 104;
const NO_EXE_FD: u32 = u32::MAX;
/// Longest auxiliary vector taken; the kernel's own is a few hundred bytes.
const AUXV_BYTES_MAX: usize = 8192;

/// Tells the kernel what lies where (brk, arguments, environment, auxiliary vector), and which
/// program this is.
pub(super) fn set_layout(
    frozen: &mut Frozen,
    layout: &LayoutImage,
    exe: Option<i32>,
) -> Result<(), RestoreError> {
    let scratch = frozen.stub()?.scratch;
    let auxv = layout
        .auxv
        .get(..layout.auxv.len().min(AUXV_BYTES_MAX))
        .unwrap_or_default();
    let exe_fd = exe.map_or(NO_EXE_FD, |fd| fd as u32);
    let words = [
        layout.start_code,
        layout.end_code,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.brk,
        layout.start_stack,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
        scratch + MM_MAP_BYTES,
        auxv.len() as u64 | u64::from(exe_fd) << 32,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(auxv);
    frozen.leader()?.stopped.memory().write(scratch, &bytes)?;
    let args = [PR_SET_MM, PR_SET_MM_MAP, scratch, MM_MAP_BYTES, 0, 0];
    frozen.call(0, ("prctl(PR_SET_MM_MAP)", libc::SYS_prctl), args)?;
    Ok(())
}

/// Signals a process can have an opinion on.
fn settable(signal: i32) -> bool {
    (1..=64).contains(&signal) && signal != libc::SIGKILL && signal != libc::SIGSTOP
}

/// Sets all actions: those of the image, and the default for all others that differ from it.
pub(super) fn set_actions(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    let pid = frozen.pid();
    let status = procfs::Status::read(pid).map_err(|error| procfs::failed(pid, error))?;
    let changed = status.mask("SigIgn") | status.mask("SigCgt");
    let listed = |signal: i32| image.actions.iter().any(|action| action.signal == signal);
    let reset = (1..=64).filter(|signal| changed & (1 << (signal - 1)) != 0 && !listed(*signal));
    let defaults = reset.map(|signal| SignalActionImage {
        signal,
        ..SignalActionImage::default()
    });
    let all: Vec<_> = defaults.chain(image.actions.iter().copied()).collect();
    let settable = all.iter().filter(|action| settable(action.signal));
    let items: Vec<(i32, [u64; 4])> = settable
        .map(|action| {
            let words = [action.handler, action.flags, action.restorer, action.mask];
            (action.signal, words)
        })
        .collect();
    set_each(frozen, ("rt_sigaction", libc::SYS_rt_sigaction), &items, 8)?;
    frozen.actions_change();
    Ok(())
}

/// A call for each item, with its number and the address of its four words, then 0 and `fourth`.
fn set_each(
    frozen: &mut Frozen,
    call: (&'static str, i64),
    items: &[(i32, [u64; 4])],
    fourth: u64,
) -> Result<(), TraceeError> {
    let words = items.iter().flat_map(|(_, words)| words);
    let bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
    let arguments = frozen.put_arguments(&bytes)?;
    let places = (arguments..).step_by(size_of::<[u64; 4]>());
    let calls: Vec<Call> = items
        .iter()
        .zip(places)
        .map(|((number, _), at)| Call::new(call, [*number as u64, at, 0, fourth, 0, 0]))
        .collect();
    frozen.calls_checked(0, &calls).map(drop)
}

/// Queues the signals that were pending: all threads block all signals now, so they wait. What
/// came since, and may wait already, comes after them.
pub(super) fn queue_pending(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    frozen.take_pending_signals()?;
    let later = std::mem::take(&mut frozen.signals);
    if image.stopped_by != 0 {
        frozen.stop_when_it_goes_on();
    }
    let parse = |bytes: &Vec<u8>| RawSiginfo::try_from(bytes.as_slice()).ok();
    for info in image.pending_signals.iter().filter_map(parse) {
        frozen.queue_signal(0, &info, false)?;
    }
    for (index, thread) in image.threads.iter().enumerate() {
        for info in thread.pending_signals.iter().filter_map(parse) {
            frozen.queue_signal(index, &info, true)?;
        }
    }
    frozen.signals.splice(0..0, later);
    Ok(())
}

/// The timers of the process' own CPU time; `reset` those it has not set, too.
pub(super) fn set_timers(
    frozen: &mut Frozen,
    image: &ProcessImage,
    reset: bool,
) -> Result<(), RestoreError> {
    let mut items = Vec::new();
    for which in OWN_TIMERS {
        let timer = image.timers.iter().find(|timer| timer.which == which);
        if timer.is_none() && !reset {
            continue;
        }
        let (interval, value) = timer.map_or((0, 0), |timer| (timer.interval_us, timer.value_us));
        let [interval, value] = [interval, value].map(|us| (us / 1_000_000, us % 1_000_000));
        items.push((which, [interval.0, interval.1, value.0, value.1]));
    }
    Ok(set_each(
        frozen,
        ("setitimer", libc::SYS_setitimer),
        &items,
        0,
    )?)
}

/// Sets these limits; a hard limit that this node does not allow is lowered to what it does.
pub(super) fn set_limits<'a>(
    frozen: &mut Frozen,
    limits: impl Iterator<Item = &'a LimitImage>,
) -> Result<(), RestoreError> {
    let limits: Vec<&LimitImage> = limits.collect();
    let here = present_limits(frozen, &limits)?;
    for (limit, here) in limits.into_iter().zip(here) {
        if here == (limit.soft, limit.hard) {
            continue;
        }
        let resource = limit.resource as u64;
        match set_limit(frozen, resource, limit.soft, limit.hard) {
            Err(TraceeError::Call { .. }) => {
                let hard = limit.hard.min(here.1);
                set_limit(frozen, resource, limit.soft.min(hard), hard)?;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Lets the process have descriptors of all numbers below `room`.
pub(super) fn make_room(frozen: &mut Frozen, room: u64) -> Result<(), TraceeError> {
    let asked = LimitImage {
        resource: libc::RLIMIT_NOFILE as i32,
        ..LimitImage::default()
    };
    let here = present_limits(frozen, &[&asked])?;
    let (soft, hard) = here.first().copied().unwrap_or_default();
    if soft >= room {
        return Ok(());
    }
    set_limit(frozen, libc::RLIMIT_NOFILE.into(), room, hard.max(room))
}

/// Soft and hard limits as they are now (`struct rlimit`).
fn present_limits(
    frozen: &mut Frozen,
    limits: &[&LimitImage],
) -> Result<Vec<(u64, u64)>, TraceeError> {
    let scratch = frozen.stub()?.scratch;
    let places = (scratch..).step_by(size_of::<[u64; 2]>());
    let ask = |(limit, at): (&&LimitImage, u64)| {
        let args = [limit.resource as u64, at, 0, 0, 0, 0];
        Call::new(("getrlimit", libc::SYS_getrlimit), args)
    };
    let calls: Vec<Call> = limits.iter().zip(places).map(ask).collect();
    frozen.calls_checked(0, &calls)?;
    let memory = frozen.leader()?.stopped.memory();
    let words = memory.read_words(scratch, 2 * limits.len())?;
    let (pairs, _) = words.as_chunks();
    Ok(pairs.iter().map(|[soft, hard]| (*soft, *hard)).collect())
}

fn set_limit(frozen: &mut Frozen, resource: u64, soft: u64, hard: u64) -> Result<(), TraceeError> {
    let scratch = frozen.stub()?.scratch;
    let bytes = [soft.to_ne_bytes(), hard.to_ne_bytes()].concat();
    frozen.leader()?.stopped.memory().write(scratch, &bytes)?;
    let args = [resource, scratch, 0, 0, 0, 0];
    frozen
        .call(0, ("setrlimit", libc::SYS_setrlimit), args)
        .map(drop)
}

/// File mode mask and personality.
pub(super) fn set_habits(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    let umask = [image.umask.into(), 0, 0, 0, 0, 0];
    let personality = [image.personality, 0, 0, 0, 0, 0];
    let calls = [
        Call::new(("umask", libc::SYS_umask), umask),
        Call::new(("personality", libc::SYS_personality), personality),
    ];
    frozen.calls_checked(0, &calls)?;
    Ok(())
}

/// The working directory, by name or else as the deputy's own.
pub(super) fn set_directory(
    frozen: &mut Frozen,
    image: &ProcessImage,
    finder: &files::Finder,
) -> Result<(), RestoreError> {
    let (id, inside) = (image.cwd_id.as_ref(), Path::new("cwd"));
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let fd = finder.open(frozen, &image.cwd, id, Some(inside), flags)?;
    // A process may have come to be where it could not go now.
    privileges::use_files_as(frozen, 0)?;
    let moved = frozen.call(0, ("fchdir", libc::SYS_fchdir), [fd as u64, 0, 0, 0, 0, 0]);
    files::close(frozen, fd)?;
    moved?;
    privileges::use_files_as(frozen, privileges::file_uid(image))
}
