//! `omfs supervisor`: the process that keeps a guest.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::Context;
use migrator::supervisor::{Quota, SupervisorConfig};
use proto::ids::NodeId;

use super::child::{self, Start};
use super::guest_cgroup;
use super::keeper;
use super::reception::await_guest;

/// The one-time token, hexadecimal; useless once the job has connected.
pub const TOKEN_VARIABLE: &str = "OMFS_GUEST_TOKEN";
/// The guest must connect within this time.
const EXPIRY: Duration = Duration::from_secs(20);

/// `omfs supervisor …`: hidden, started by the daemon.
#[derive(clap::Args, Debug)]
pub struct SupervisorArgs {
    /// Name of the home node
    #[arg(long)]
    home: String,
    /// Id of the home node
    #[arg(long)]
    home_id: u32,
    /// The job's PID at home
    #[arg(long)]
    pid: i32,
    /// When it was started at home
    #[arg(long, default_value_t = 0)]
    start_ticks: u64,
    /// A cgroup that the guest joins
    #[arg(long)]
    cgroup: Vec<std::path::PathBuf>,
    /// Most memory of the guest, in bytes
    #[arg(long, requires = "threads_max")]
    memory_max: Option<u64>,
    /// Most threads of the guest
    #[arg(long, requires = "memory_max")]
    threads_max: Option<u64>,
    /// Configuration file
    #[arg(from_global)]
    config: Option<std::path::PathBuf>,
}

/// Waits for the guest and keeps it until it has left or ended.
///
/// # Errors
/// Nobody came, or the guest could not be built.
pub fn supervisor_main(args: SupervisorArgs) -> anyhow::Result<()> {
    let daemon = nix::unistd::getppid();
    let start = child::start(args.config.as_deref(), "omfs-supervisor")?;
    let token = std::env::var(TOKEN_VARIABLE).context("no token")?;
    let listener = TcpListener::from(start.listener.try_clone()?);
    let (home, until) = (NodeId(args.home_id), Instant::now() + EXPIRY);
    let link = await_guest(&listener, &start.identity, home, &token, until)
        .with_context(|| format!("guest {}-{}", args.home_id, args.pid))?;
    drop(listener);
    let config = config(&start, &args);
    let state_file = config.state_file.clone().unwrap_or_default();
    let socket = state_file.with_extension("sock");
    drop(start.listener);
    let control = keeper::bind(&socket)?;
    let result = migrator::supervisor::run(config, link, Some(control));
    let _ = std::fs::remove_file(socket);
    let _ = std::fs::remove_file(state_file);
    if nix::unistd::getppid() != daemon {
        // The daemon, which makes and removes the guests' cgroup, has ended meanwhile.
        guest_cgroup::remove_unused(&args.cgroup);
    }
    result.with_context(|| format!("guest {}-{}", args.home_id, args.pid))
}

fn config(start: &Start, args: &SupervisorArgs) -> SupervisorConfig {
    let mfs = start.config.mount.guests.to_path_buf();
    let guests = start.config.node.run_dir.join("guests");
    let deputies = mfs.join(".omfs/deputy").join(&args.home);
    SupervisorConfig {
        home_pid: args.pid,
        home_start_ticks: args.start_ticks,
        home: args.home.clone(),
        here: start.identity.node_name().to_owned(),
        root: mfs.join(&args.home),
        proc_dir: deputies.join(args.pid.to_string()),
        mfs: Some(mfs),
        stage: guests.clone(),
        cgroups: args.cgroup.clone(),
        quota: args
            .memory_max
            .zip(args.threads_max)
            .map(|(memory_bytes, threads)| Quota {
                memory_bytes,
                threads,
            }),
        state_file: Some(guests.join(format!("{}-{}.json", args.home_id, args.pid))),
        silence_max: start.config.jobs.silence_max_ms.duration(),
    }
}
