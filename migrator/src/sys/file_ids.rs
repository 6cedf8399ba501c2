//! Using files as another user, on one thread.
//!
//! The C library's setgroups(2) changes every thread of the process (nptl(7)); these go to the
//! kernel directly and change the calling thread alone.

use std::io;
use std::marker::PhantomData;

use super::answer;

/// Ids that count for files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileIds {
    /// File system uid.
    pub uid: u32,
    /// File system gid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The thread uses files as somebody else until this is dropped.
#[derive(Debug)]
pub struct Assumed {
    /// `None` where nothing was to be changed.
    own: Option<FileIds>,
    // Ids belong to the thread, so the guard must be dropped on the same one.
    not_send: PhantomData<*const ()>,
}

/// Makes the calling thread use files with these ids. Changes nothing where they are its own.
///
/// # Errors
/// EPERM for who is not root; EINVAL for ids that nobody can have.
pub fn assume(ids: &FileIds) -> io::Result<Assumed> {
    let groups = nix::unistd::getgroups()?;
    let own = FileIds {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
    };
    let own = (own != *ids).then_some(own);
    if own.is_some() {
        set_groups(&ids.groups)?;
    }
    // From here on the guard restores, also when not all of it succeeded.
    let guard = Assumed {
        own,
        not_send: PhantomData,
    };
    if guard.own.is_some() {
        set_ids(ids)?;
    }
    Ok(guard)
}

impl Drop for Assumed {
    fn drop(&mut self) {
        let Some(own) = &self.own else { return };
        if set_groups(&own.groups).and_then(|()| set_ids(own)).is_err() {
            // To go on with another user's ids would be worse than an end.
            std::process::abort();
        }
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe a slice that the kernel only reads.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    answer(done).map(drop)
}

fn set_ids(ids: &FileIds) -> io::Result<()> {
    set_id(libc::SYS_setfsgid, ids.gid)?;
    set_id(libc::SYS_setfsuid, ids.uid)
}

/// These calls answer the id before, and no error: an id that nobody has changes nothing.
fn set_id(number: libc::c_long, id: u32) -> io::Result<()> {
    // SAFETY: one integer.
    unsafe { libc::syscall(number, id) };
    // SAFETY: as above.
    let now = answer(unsafe { libc::syscall(number, u32::MAX) })?;
    if now == i64::from(id) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracee::procfs::Status;

    fn now() -> (Vec<u64>, Vec<u64>) {
        let me = std::process::id().cast_signed();
        let tid = nix::unistd::gettid().as_raw();
        let status = Status::of_thread(me, tid).unwrap();
        (status.numbers("Uid"), status.numbers("Groups"))
    }

    #[test]
    fn only_files_are_used_as_another_until_the_guard_goes() {
        let before = now();
        let ids = FileIds {
            uid: 1000,
            gid: 1000,
            groups: vec![4, 27],
        };
        drop(assume(&FileIds {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: before
                .1
                .iter()
                .map(|id| u32::try_from(*id).unwrap())
                .collect(),
        }));
        assert_eq!(now(), before);
        let Ok(guard) = assume(&ids) else {
            assert_ne!(before.0.get(1), Some(&0), "root may");
            return;
        };
        assert_eq!(now(), (vec![0, 0, 0, 1000], vec![4, 27]));
        drop(guard);
        assert_eq!(now(), before);
        let nobodys = FileIds {
            uid: u32::MAX,
            ..ids
        };
        assert!(assume(&nobodys).is_err());
        assert_eq!(now(), before);
    }
}
