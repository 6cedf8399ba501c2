//! State of the process as a whole.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};

use crate::image::{
    ClockImage, CredentialsImage, IntervalTimerImage, LimitImage, ProcessImage, SignalActionImage,
};
use crate::tracee::{Call, Frozen, TraceeError, procfs};

use super::{CaptureError, file_id};

/// Signals a process can have an opinion on: all but SIGKILL and SIGSTOP.
const FIXED_SIGNALS: u64 = (1 << (libc::SIGKILL - 1)) | (1 << (libc::SIGSTOP - 1));

/// Actions, pending signals and the timers that count the process' own time.
pub(super) fn capture_signals(
    frozen: &mut Frozen,
    image: &mut ProcessImage,
) -> Result<(), CaptureError> {
    let pid = frozen.pid();
    let status = procfs::Status::read(pid).map_err(|error| procfs::failed(pid, error))?;
    // SIGCHLD's flags matter (SA_NOCLDWAIT, SA_NOCLDSTOP) even if its action is the default.
    let changed = status.mask("SigIgn") | status.mask("SigCgt") | (1 << (libc::SIGCHLD - 1));
    let is_set = |signal: &i32| changed & !FIXED_SIGNALS & (1 << (signal - 1)) != 0;
    let signals: Vec<i32> = (1..=64).filter(is_set).collect();
    ask_kernel(frozen, &signals, image)?;
    let pending = frozen.leader()?.stopped.pending_signals(true)?;
    image.pending_signals = pending.iter().map(|info| info.0.to_vec()).collect();
    Ok(())
}

/// `struct kernel_sigaction` (handler, flags, restorer, mask) and `struct itimerval` (interval and
/// value, seconds and microseconds each) are both four words.
const ANSWER_WORDS: usize = 4;

/// Has the process ask for its signal actions and its CPU-time timers.
fn ask_kernel(
    frozen: &mut Frozen,
    signals: &[i32],
    image: &mut ProcessImage,
) -> Result<(), CaptureError> {
    let scratch = frozen.stub()?.scratch;
    let place = |at: usize| scratch + (at * ANSWER_WORDS * size_of::<u64>()) as u64;
    let actions = signals.iter().enumerate().map(|(at, signal)| {
        let args = [*signal as u64, 0, place(at), 8, 0, 0];
        Call::new(("rt_sigaction", libc::SYS_rt_sigaction), args)
    });
    let timers = OWN_TIMERS.iter().enumerate().map(|(at, which)| {
        let args = [*which as u64, place(signals.len() + at), 0, 0, 0, 0];
        Call::new(("getitimer", libc::SYS_getitimer), args)
    });
    let calls: Vec<Call> = actions.chain(timers).collect();
    frozen.calls_checked(0, &calls)?;
    let memory = frozen.leader()?.stopped.memory();
    let words = memory.read_words(scratch, calls.len() * ANSWER_WORDS)?;
    let (answers, _) = words.as_chunks::<ANSWER_WORDS>();
    let (of_signals, of_timers) = answers.split_at(signals.len());
    let actions = signals.iter().zip(of_signals);
    image
        .actions
        .extend(actions.map(|(signal, words)| action(*signal, *words)));
    let timers = OWN_TIMERS.iter().zip(of_timers);
    image
        .timers
        .extend(timers.filter_map(|(which, words)| timer(*which, *words)));
    Ok(())
}

/// Timers of the process' own CPU time.
pub(crate) const OWN_TIMERS: [i32; 2] = [libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];

fn action(signal: i32, [handler, flags, restorer, mask]: [u64; 4]) -> SignalActionImage {
    SignalActionImage {
        signal,
        handler,
        flags,
        restorer,
        mask,
    }
}

fn timer(which: i32, words: [u64; 4]) -> Option<IntervalTimerImage> {
    let time_us = |seconds: u64, us: u64| seconds.saturating_mul(1_000_000).saturating_add(us);
    let [interval_s, interval_us, value_s, value_us] = words;
    let value_us = time_us(value_s, value_us);
    (value_us != 0).then_some(IntervalTimerImage {
        which,
        interval_us: time_us(interval_s, interval_us),
        value_us,
    })
}

/// What /proc tells: credentials, limits, directories, names.
pub(super) fn capture_state(
    frozen: &mut Frozen,
    image: &mut ProcessImage,
) -> Result<(), CaptureError> {
    let pid = frozen.pid();
    let gone = |error| procfs::failed(pid, error);
    let status = procfs::Status::read(pid).map_err(gone)?;
    image.umask = status.octal("Umask").unwrap_or(0o22);
    image.credentials = Some(credentials(&status));
    image.limits = limits(pid)?;
    let link = |name: &str| -> Result<Vec<u8>, TraceeError> {
        let target = fs::read_link(format!("/proc/{pid}/{name}")).map_err(gone)?;
        Ok(target.as_os_str().as_bytes().to_vec())
    };
    image.cwd = link("cwd")?;
    image.exe = link("exe")?;
    image.cwd_id = file_id(Path::new(&format!("/proc/{pid}/cwd"))).ok();
    image.exe_id = file_id(Path::new(&format!("/proc/{pid}/exe"))).ok();
    let small = |name: &str| procfs::read_text(format!("/proc/{pid}/{name}")).map_err(gone);
    image.personality = u64::from_str_radix(small("personality")?.trim(), 16).unwrap_or(0);
    image.oom_score_adj = small("oom_score_adj")?.trim().parse().unwrap_or(0);
    image.hostname = hostname();
    Ok(())
}

/// This machine's name, as uname(2) tells it.
pub(crate) fn hostname() -> Vec<u8> {
    nix::unistd::gethostname().unwrap_or_default().into_vec()
}

fn credentials(status: &procfs::Status) -> CredentialsImage {
    let ids = |key: &str| {
        status
            .numbers(key)
            .into_iter()
            .map(|id| id as u32)
            .collect()
    };
    CredentialsImage {
        uids: ids("Uid"),
        gids: ids("Gid"),
        groups: ids("Groups"),
        cap_inheritable: status.mask("CapInh"),
        cap_permitted: status.mask("CapPrm"),
        cap_effective: status.mask("CapEff"),
        cap_bounding: status.mask("CapBnd"),
        cap_ambient: status.mask("CapAmb"),
        no_new_privs: status.text("NoNewPrivs") == "1",
    }
}

/// Lines of /proc/PID/limits in the order of RLIMIT_*'s numbers. prlimit(2) on a process of
/// another user would need CAP_SYS_RESOURCE, which root in a container often lacks.
const LIMITS: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

fn limits(pid: i32) -> Result<Vec<LimitImage>, TraceeError> {
    let text = procfs::read_text(format!("/proc/{pid}/limits"))
        .map_err(|error| procfs::failed(pid, error))?;
    Ok(parse_limits(&text))
}

fn parse_limits(text: &str) -> Vec<LimitImage> {
    let value = |word: Option<&str>| match word {
        Some("unlimited") => Some(u64::MAX),
        Some(number) => number.parse().ok(),
        None => None,
    };
    let parse = |line: &str| {
        let resource = LIMITS.iter().position(|name| line.starts_with(name))?;
        let mut words = line.get(LIMITS.get(resource)?.len()..)?.split_whitespace();
        let (soft, hard) = (value(words.next())?, value(words.next())?);
        Some(LimitImage {
            resource: resource as i32,
            soft,
            hard,
        })
    };
    text.lines().filter_map(parse).collect()
}

/// The clocks as the process sees them.
pub(super) fn clocks(pid: i32) -> Result<ClockImage, CaptureError> {
    let here = |clock: ClockId| -> Result<i64, CaptureError> {
        let time = clock_gettime(clock).map_err(|errno| CaptureError::Kernel {
            what: "clock_gettime",
            error: errno.into(),
        })?;
        Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    let (own, its) = (time_offsets("self"), time_offsets(&pid.to_string()));
    let realtime = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(ClockImage {
        monotonic_ns: here(ClockId::CLOCK_MONOTONIC)? - own.0 + its.0,
        boottime_ns: here(ClockId::CLOCK_BOOTTIME)? - own.1 + its.1,
        realtime_ns: realtime.as_nanos() as i64,
    })
}

/// Offsets of a process' time namespace in nanoseconds: monotonic, boottime. Zero where the kernel
/// has no time namespaces.
fn time_offsets(pid: &str) -> (i64, i64) {
    let text = procfs::read_text(format!("/proc/{pid}/timens_offsets")).unwrap_or_default();
    let offset = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line
            .split_whitespace()
            .filter_map(|word| word.parse::<i64>().ok());
        Some(words.next()?.saturating_mul(1_000_000_000) + words.next()?)
    };
    (
        offset("monotonic").unwrap_or(0),
        offset("boottime").unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_by_name() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max cpu time              unlimited            unlimited            seconds   \n\
            Max open files            1024                 20000                files     \n";
        let expected = [
            LimitImage {
                resource: libc::RLIMIT_CPU as i32,
                soft: u64::MAX,
                hard: u64::MAX,
            },
            LimitImage {
                resource: libc::RLIMIT_NOFILE as i32,
                soft: 1024,
                hard: 20000,
            },
        ];
        assert_eq!(parse_limits(text), expected);
    }

    #[test]
    fn the_own_limits_are_complete_and_right() -> Result<(), Box<dyn std::error::Error>> {
        let me = std::process::id() as i32;
        let all = limits(me)?;
        assert_eq!(all.len(), 16);
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
        let files = all
            .iter()
            .find(|limit| limit.resource == libc::RLIMIT_NOFILE as i32);
        assert_eq!(
            files.map(|limit| (limit.soft, limit.hard)),
            Some((soft, hard))
        );
        Ok(())
    }
}
