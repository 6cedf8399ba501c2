//! `omfs mount-helper`, also known as mount.fuse.omfs and mount.omfs.

use std::ffi::OsString;

use crate::error::CommandResult;

/// Mount the cluster file system; called by mount(8)
///
/// Mounts the cluster file system; mount(8) calls this as mount.fuse.omfs.
///
/// Use `mount -t fuse.omfs omfs DIR`. For that, a link named /sbin/mount.fuse.omfs must lead to
/// this program. In /etc/fstab: `omfs /mfs fuse.omfs defaults 0 0`.
///
/// Options: ro, suid, dev (set-id bits and device files of other nodes count for nothing without
/// these two), noexec, socket=PATH (the daemon's mount socket, if it is not
/// /run/omfs/mount.sock); what fstab(5) has for every file system is accepted. Returns when the
/// mount answers. Exit status as mount(8) wants it: 0 mounted, 1 wrong use, 32 failed.
#[derive(clap::Args, Debug)]
pub struct MountHelperArgs {
    /// SOURCE DIR [-o OPTIONS] as mount(8) gives them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    pub arguments: Vec<OsString>,
}

/// `omfs mount-helper …`.
///
/// # Errors
/// The file system could not be mounted.
pub fn run(args: &MountHelperArgs) -> CommandResult {
    run_as_helper(&args.arguments)
}

/// Called under a helper's name, with mount(8)'s arguments.
///
/// # Errors
/// The file system could not be mounted.
pub fn run_as_helper(arguments: &[OsString]) -> CommandResult {
    match omfs_client::mount_helper::main(arguments.iter().cloned()) {
        0 => Ok(()),
        // mount(8) defines these statuses, and the helper has said what went wrong.
        status => std::process::exit(status.into()),
    }
}
