//! One file per command.

pub mod check;
pub mod cluster;
pub mod daemon;
pub mod export;
pub mod fuse_keeper;
pub mod lock;
pub mod manpages;
pub mod migrate;
pub mod mount_helper;
pub mod nodes;
pub mod policy;
mod progress;
pub mod ps;
pub mod run;
pub mod shell;
pub mod status;
pub mod top;

use crate::cli::Global;
use crate::error::CommandResult;
use omfs_node::jobs;

/// The commands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Cluster(cluster::ClusterArgs),
    Daemon(daemon::DaemonArgs),
    Nodes(nodes::NodesArgs),
    Ps(ps::PsArgs),
    Top(top::TopArgs),
    Migrate(migrate::MigrateArgs),
    /// Keep a process where it is: it moves only by hand
    #[command(after_help = lock::AFTER_HELP)]
    Lock(lock::LockArgs),
    /// Let a process move by itself again, also after it was moved by hand
    #[command(after_help = lock::AFTER_HELP)]
    Unlock(lock::LockArgs),
    Bring(migrate::BringArgs),
    Expel(migrate::ExpelArgs),
    /// Take no guests
    #[command(after_help = policy::AFTER_HELP)]
    Block(policy::PolicyArgs),
    /// Take guests again
    #[command(after_help = policy::AFTER_HELP)]
    Unblock(policy::PolicyArgs),
    /// Let nothing leave this node by itself
    #[command(after_help = policy::AFTER_HELP)]
    Stay(policy::PolicyArgs),
    /// Let processes leave this node by themselves again
    #[command(after_help = policy::AFTER_HELP)]
    Nostay(policy::PolicyArgs),
    /// Let this node's own processes not leave by themselves; guests may
    #[command(after_help = policy::AFTER_HELP)]
    Lstay(policy::PolicyArgs),
    /// Let this node's own processes leave by themselves again
    #[command(after_help = policy::AFTER_HELP)]
    Nolstay(policy::PolicyArgs),
    /// Stop telling other nodes this node's load
    #[command(after_help = policy::AFTER_HELP)]
    Quiet(policy::PolicyArgs),
    /// Tell other nodes this node's load again
    #[command(after_help = policy::AFTER_HELP)]
    Noquiet(policy::PolicyArgs),
    Export(export::ExportArgs),
    Status(status::StatusArgs),
    Run(run::RunArgs),
    Shell(shell::ShellArgs),
    Check(check::CheckArgs),
    MountHelper(mount_helper::MountHelperArgs),
    Manpages(manpages::ManpagesArgs),
    /// Keeps a job that is away
    #[command(hide = true)]
    Shim(jobs::ShimArgs),
    /// Keeps a guest
    #[command(hide = true)]
    Supervisor(jobs::SupervisorArgs),
    /// Keeps mounts alive while the daemon is restarted
    #[command(hide = true)]
    FuseKeeper(fuse_keeper::FuseKeeperArgs),
    /// Moves a process that `omfs run --on` has become
    #[command(hide = true)]
    Mover(run::MoverArgs),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, what to do, and the exit status.
    pub fn run(self, global: &Global) -> CommandResult {
        use policy::Verb;
        match self {
            Self::Cluster(args) => cluster::run(global, args),
            Self::Daemon(args) => daemon::run(global, &args),
            Self::Nodes(args) => nodes::run(global, &args),
            Self::Ps(args) => ps::run(global, &args),
            Self::Top(args) => top::run(global, &args),
            Self::Migrate(args) => migrate::run(global, &args),
            Self::Lock(args) => lock::run(global, &args, true),
            Self::Unlock(args) => lock::run(global, &args, false),
            Self::Bring(args) => migrate::bring(global, &args),
            Self::Expel(args) => migrate::expel(global, &args),
            Self::Block(args) => policy::run(global, &args, Verb::Block, true),
            Self::Unblock(args) => policy::run(global, &args, Verb::Block, false),
            Self::Stay(args) => policy::run(global, &args, Verb::Stay, true),
            Self::Nostay(args) => policy::run(global, &args, Verb::Stay, false),
            Self::Lstay(args) => policy::run(global, &args, Verb::LocalStay, true),
            Self::Nolstay(args) => policy::run(global, &args, Verb::LocalStay, false),
            Self::Quiet(args) => policy::run(global, &args, Verb::Quiet, true),
            Self::Noquiet(args) => policy::run(global, &args, Verb::Quiet, false),
            Self::Export(args) => export::run(global, args),
            Self::Status(args) => status::run(global, &args),
            Self::Run(args) => run::run(global, &args),
            Self::Shell(args) => shell::run(global, &args),
            Self::Check(args) => check::run(global, &args),
            Self::MountHelper(args) => mount_helper::run(&args),
            Self::Manpages(args) => manpages::run(&args),
            Self::Shim(args) => Ok(jobs::shim_main(args)?),
            Self::Supervisor(args) => Ok(jobs::supervisor_main(args)?),
            Self::FuseKeeper(args) => fuse_keeper::run(&args),
            Self::Mover(args) => run::mover(global, &args),
        }
    }
}
