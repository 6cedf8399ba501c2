//! `omfs shell`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use crate::cli::Global;
use crate::commands::run::{JOB_VARIABLE, cannot_start, warn_if_nothing_moves};
use crate::error::CommandResult;

/// Start a shell whose jobs may move to other nodes
///
/// Starts your shell ($SHELL, else your login shell) so that the jobs you start in it move to idle nodes by themselves.
///
/// The shell itself is an ordinary one and stays here. Leave it with `exit`.
#[derive(clap::Args, Debug)]
pub struct ShellArgs {
    /// Arguments for the shell, e.g. -c 'make -j12'
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    pub arguments: Vec<std::ffi::OsString>,
}

/// What passwd(5) says, where that exists.
fn login_shell() -> PathBuf {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    let shell = user.ok().flatten().map(|user| user.shell);
    let usable = shell.filter(|shell| shell.is_file());
    usable.unwrap_or_else(|| PathBuf::from("/bin/sh"))
}

/// Becomes the shell.
///
/// # Errors
/// It cannot be started.
pub fn run(global: &Global, args: &ShellArgs) -> CommandResult {
    warn_if_nothing_moves(global);
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    let shell = shell.unwrap_or_else(|| login_shell().into());
    let error = std::process::Command::new(&shell)
        .args(&args.arguments)
        .env(JOB_VARIABLE, "balance")
        .exec();
    cannot_start(&shell, &error)
}
