//! Which system calls name files, and by which arguments.

use std::path::PathBuf;

use super::decide::{Guest, Trapped};
use super::fds::{FdKind, fd_argument};
use super::paths;
use crate::homecall::{HomeCallError, Memory};

/// One path among a call's arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Argument {
    /// The directory that a relative path starts at; else the working directory.
    directory: Option<u8>,
    path: u8,
    follows: Follows,
}

/// Whether a link at the end of the path is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Follows {
    Always,
    Never,
    /// Unless these flags are in this argument.
    Unless(u8, i32),
    /// If these flags are in this argument.
    If(u8, i32),
    /// `struct open_how` (linux/openat2.h) behind this argument begins with the flags.
    Behind(u8),
}

use Follows::{Always, Behind, If, Never, Unless};

const fn at(directory: u8, path: u8, follows: Follows) -> Argument {
    Argument {
        directory: Some(directory),
        path,
        follows,
    }
}

const fn plain(path: u8, follows: Follows) -> Argument {
    Argument {
        directory: None,
        path,
        follows,
    }
}

/// The paths of a call, by its number.
fn arguments(number: i64) -> &'static [Argument] {
    const LINK: i32 = libc::AT_SYMLINK_NOFOLLOW;
    match number {
        libc::SYS_open => const { &[plain(0, Unless(1, libc::O_NOFOLLOW))] },
        libc::SYS_openat => const { &[at(0, 1, Unless(2, libc::O_NOFOLLOW))] },
        libc::SYS_openat2 => const { &[at(0, 1, Behind(2))] },
        libc::SYS_stat
        | libc::SYS_access
        | libc::SYS_creat
        | libc::SYS_statfs
        | libc::SYS_truncate
        | libc::SYS_chdir
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_utime
        | libc::SYS_utimes
        | libc::SYS_setxattr
        | libc::SYS_getxattr
        | libc::SYS_listxattr
        | libc::SYS_removexattr => const { &[plain(0, Always)] },
        libc::SYS_lstat
        | libc::SYS_readlink
        | libc::SYS_unlink
        | libc::SYS_mkdir
        | libc::SYS_rmdir
        | libc::SYS_mknod
        | libc::SYS_lchown
        | libc::SYS_lsetxattr
        | libc::SYS_lgetxattr
        | libc::SYS_llistxattr
        | libc::SYS_lremovexattr => const { &[plain(0, Never)] },
        libc::SYS_symlink => const { &[plain(1, Never)] },
        libc::SYS_rename | libc::SYS_link => const { &[plain(0, Never), plain(1, Never)] },
        libc::SYS_faccessat | libc::SYS_fchmodat | libc::SYS_futimesat => {
            const { &[at(0, 1, Always)] }
        }
        libc::SYS_readlinkat | libc::SYS_unlinkat | libc::SYS_mkdirat | libc::SYS_mknodat => {
            const { &[at(0, 1, Never)] }
        }
        libc::SYS_newfstatat | libc::SYS_faccessat2 | libc::SYS_utimensat | libc::SYS_fchmodat2 => {
            const { &[at(0, 1, Unless(3, LINK))] }
        }
        libc::SYS_fchownat | FILE_GETATTR | FILE_SETATTR => const { &[at(0, 1, Unless(4, LINK))] },
        libc::SYS_statx | SETXATTRAT..=REMOVEXATTRAT => const { &[at(0, 1, Unless(2, LINK))] },
        libc::SYS_name_to_handle_at => const { &[at(0, 1, If(4, libc::AT_SYMLINK_FOLLOW))] },
        libc::SYS_symlinkat => const { &[at(1, 2, Never)] },
        libc::SYS_renameat | libc::SYS_renameat2 => const { &[at(0, 1, Never), at(2, 3, Never)] },
        libc::SYS_linkat => const { &[at(0, 1, If(4, libc::AT_SYMLINK_FOLLOW)), at(2, 3, Never)] },
        _ => &[],
    }
}

/// Linux 6.13 and 6.17; not in the C library's headers yet.
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const FILE_GETATTR: i64 = 468;
const FILE_SETATTR: i64 = 469;

/// Something that a call names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Named {
    /// Where a relative path starts; `None`: the working directory.
    pub(super) directory: Option<i32>,
    pub(super) path: PathBuf,
    /// The number of the argument.
    pub(super) argument: u8,
    pub(super) follows: bool,
}

impl Named {
    /// Whether it is in a directory that only home has, or is that descriptor itself.
    pub(super) fn starts_at_home(&self, guest: Guest<'_>) -> bool {
        let is_home = |fd: i32| guest.fds.kind(u64::from(fd.cast_unsigned())) == FdKind::Home;
        self.path.is_relative() && self.directory.is_some_and(is_home)
    }
}

/// Whether a call names files.
pub(super) fn names(number: u32) -> bool {
    !arguments(i64::from(number)).is_empty()
}

/// What a call names. A null pointer names nothing: some calls take it for the descriptor itself.
///
/// # Errors
/// [`HomeCallError::Fault`].
pub(super) fn named(call: &Trapped, memory: &dyn Memory) -> Result<Vec<Named>, HomeCallError> {
    let value = |at: u8| call.args.get(usize::from(at)).copied().unwrap_or(0);
    let has = |at: u8, flags: i32| fd_argument(value(at)) & flags != 0;
    let mut all = Vec::new();
    for argument in arguments(i64::from(call.number)) {
        let address = value(argument.path);
        if address == 0 {
            continue;
        }
        let follows = match argument.follows {
            Always => true,
            Never => false,
            Unless(at, flags) => !has(at, flags),
            If(at, flags) => has(at, flags),
            Behind(at) => fd_argument(memory.read_u64(value(at))?) & libc::O_NOFOLLOW == 0,
        };
        let directory = argument.directory.map(|at| fd_argument(value(at)));
        all.push(Named {
            directory: directory.filter(|directory| *directory != libc::AT_FDCWD),
            path: paths::read(address, memory)?,
            argument: argument.path,
            follows,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::{Class, TABLE, When};

    #[test]
    fn what_names_files_is_looked_at() {
        for row in TABLE.iter().filter(|row| names(row.number)) {
            let seen = matches!(
                row.when,
                When::Look | When::Corrected | When::HomeFdOrCorrected(_)
            );
            assert!(seen && row.class == Class::Local, "{row:?}");
        }
    }

    #[test]
    fn a_link_at_the_end_is_followed_as_the_manual_says() {
        let follows = |number: i64, args: [u64; 6]| {
            let call = Trapped {
                number: u32::try_from(number).unwrap(),
                arch: 0,
                args,
            };
            let own = crate::tracee::Memory::of(std::process::id().cast_signed());
            named(&call, &own).unwrap().last().map(|one| one.follows)
        };
        let path = c"/dev/null".as_ptr().expose_provenance() as u64;
        let flag = |flag: i32| u64::from(flag.cast_unsigned());
        let no = flag(libc::AT_SYMLINK_NOFOLLOW);
        for (number, args, expected) in [
            (libc::SYS_stat, [path, 0, 0, 0, 0, 0], Some(true)),
            (libc::SYS_lstat, [path, 0, 0, 0, 0, 0], Some(false)),
            (libc::SYS_newfstatat, [0, path, 0, no, 0, 0], Some(false)),
            (libc::SYS_newfstatat, [0, path, 0, 0, 0, 0], Some(true)),
            (libc::SYS_statx, [0, path, no, 0, 0, 0], Some(false)),
            (
                libc::SYS_open,
                [path, flag(libc::O_NOFOLLOW), 0, 0, 0, 0],
                Some(false),
            ),
            (libc::SYS_utimensat, [0, 0, 0, 0, 0, 0], None),
            (libc::SYS_read, [path; 6], None),
        ] {
            assert_eq!(follows(number, args), expected, "{number}");
        }
    }
}
