//! Acting as another user, on one thread.
//!
//! glibc's `setresuid`, `setgroups`, … change every thread of the process (nptl(7)); these go to the
//! kernel directly and change the calling thread alone.
//!
//! The effective uid is switched, not only the file system uid: `setfsuid` drops the file system
//! capabilities, but leaves others that open files to strangers just as well: `CAP_SYS_PTRACE`
//! (`/proc/<pid>/exe` of others), `CAP_SETFCAP` and `CAP_SYS_ADMIN` (`security.*`, `trusted.*`
//! attributes), `CAP_SYS_RESOURCE` (reserved blocks, quotas). An effective uid other than 0 clears
//! them all, and the file system uid follows it (capabilities(7), credentials(7)).

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Who performs an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Means "leave unchanged" to the system calls, so it is nobody's id.
const UNCHANGED: u32 = u32::MAX;
/// `NGROUPS_MAX` of limits(7).
const GROUPS_MAX: usize = 65_536;

impl Credentials {
    /// Whether the system calls can express them.
    #[must_use]
    pub fn are_valid(&self) -> bool {
        self.uid != UNCHANGED
            && self.gid != UNCHANGED
            && self.groups.len() <= GROUPS_MAX
            && !self.groups.contains(&UNCHANGED)
    }

    /// This process' own effective credentials, as they were at the first use.
    pub fn own() -> &'static Self {
        static OWN: OnceLock<Credentials> = OnceLock::new();
        OWN.get_or_init(read_own)
    }
}

fn read_own() -> Credentials {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    Credentials {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
    }
}

/// The thread acts as somebody else until this is dropped.
#[derive(Debug)]
pub struct Assumed {
    restore: Option<&'static Credentials>,
    // Credentials belong to the thread, so the guard must be dropped on the same one.
    not_send: PhantomData<*const ()>,
}

/// Makes the calling thread act as `who`. Costs nothing when `who` is this process itself.
///
/// # Errors
/// `EINVAL` for credentials that cannot exist, `EPERM` when this process is not root.
pub fn assume(who: &Credentials) -> io::Result<Assumed> {
    if !who.are_valid() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let own = Credentials::own();
    if who == own {
        return Ok(Assumed {
            restore: None,
            not_send: PhantomData,
        });
    }
    // From here on the guard restores, also when only some of the three calls succeeded.
    let guard = Assumed {
        restore: Some(own),
        not_send: PhantomData,
    };
    set_groups(&who.groups)?;
    set_effective(libc::SYS_setresgid, who.gid)?;
    // Last, because it gives up the capabilities that the other two need.
    set_effective(libc::SYS_setresuid, who.uid)?;
    Ok(guard)
}

impl Drop for Assumed {
    fn drop(&mut self) {
        let Some(own) = self.restore else { return };
        let restored = set_effective(libc::SYS_setresuid, own.uid)
            .and_then(|()| set_effective(libc::SYS_setresgid, own.gid))
            .and_then(|()| set_groups(&own.groups));
        if restored.is_err() {
            // Going on under a stranger's identity would be worse than a restart.
            std::process::abort();
        }
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `groups`, which the kernel only reads. Needed
    // because the C library's wrapper acts on all threads.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(result)
}

fn set_effective(number: libc::c_long, id: u32) -> io::Result<()> {
    // SAFETY: setresuid and setresgid take three integers. Needed because the C library's wrappers
    // act on all threads.
    let result = unsafe { libc::syscall(number, UNCHANGED, id, UNCHANGED) };
    check(result)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The thread's file mode creation mask is another one until this is dropped.
#[derive(Debug)]
pub struct Umask {
    restore: u32,
    not_send: PhantomData<*const ()>,
}

/// Sets the calling thread's umask; other threads keep theirs.
///
/// # Errors
/// Those of unshare(2).
pub fn set_umask(mask: u32) -> io::Result<Umask> {
    own_fs_attributes()?;
    // SAFETY: umask takes an integer and cannot fail.
    let restore = unsafe { libc::umask(mask & 0o777) };
    Ok(Umask {
        restore,
        not_send: PhantomData,
    })
}

impl Drop for Umask {
    fn drop(&mut self) {
        // SAFETY: umask takes an integer and cannot fail.
        unsafe { libc::umask(self.restore) };
    }
}

/// Threads share their umask (`CLONE_FS` of clone(2)) until one asks for its own.
fn own_fs_attributes() -> io::Result<()> {
    thread_local!(static IS_OWN: Cell<bool> = const { Cell::new(false) });
    if IS_OWN.get() {
        return Ok(());
    }
    // SAFETY: unsharing the file system attributes touches no memory. It is per thread and lasts
    // until the thread ends.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    IS_OWN.set(true);
    Ok(())
}
