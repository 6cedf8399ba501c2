//! Guests as their host sees them: taking them in and sending them away.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loadbal::admit::Request;
use migrator::capture::identity;
use migrator::image::{CpuImage, cpu};
use omfs_cluster::control::ControlError;
use omfs_limits::guest;
use omfs_limits::reservations::Refusal;
use proto::ids::{NodeId, Pid, ProcessId};
use proto::v1;

use super::Progress;
use super::keeper;
use super::keeper_files::wait_for_end;
use super::registry::GuestKey;
use super::shared::{Reserved, Shared};
use super::supervisor_main::TOKEN_VARIABLE;

/// The oldest kernel that can hold guests (docs/architecture.md).
const KERNEL_MIN: (u32, u32) = (6, 7);
/// Ports of the configured range that are tried.
const PORTS_TRIED: usize = 256;
/// A supervisor whose guest has left ends within this time, on a busy machine too.
const SUPERVISOR_ENDS_MAX: Duration = Duration::from_secs(5);
/// How long an expelled guest may take to leave, all together.
const EXPEL_MAX: Duration = Duration::from_secs(300);

/// Prepares for a guest of `from`: a supervisor that listens, and the token it expects.
///
/// # Errors
/// `Refused` with the reason; nothing has changed.
pub async fn prepare(
    shared: &Arc<Shared>,
    from: NodeId,
    request: &v1::PrepareGuestRequest,
) -> Result<v1::PrepareGuestReply, ControlError> {
    if request.pid <= 0 {
        return Err(ControlError::Invalid(format!("{} is no PID", request.pid)));
    }
    let home = shared.context.directory.by_id(from);
    let home = home.ok_or_else(|| ControlError::NotFound(format!("who is node {from}?")))?;
    check_machine(shared, request)?;
    shared.refresh();
    if let Some(before) = shared.registry.guest((from, request.pid)) {
        // It left a moment ago and is sent back: its supervisor is about to end.
        wait_for_end(before.state.keeper(), "supervisor", SUPERVISOR_ENDS_MAX).await;
    }
    shared.take_back((from, request.pid)).await;
    let reserved = admit(shared, from, request)?;
    shared.locks.set_guest((from, request.pid), request.locked);
    let guest = ((from, request.pid), request.start_ticks);
    let started = start(shared, reserved, guest, &home.name, request.memory_bytes);
    started.map_err(|error| {
        shared.balancer().withdrawn(from, Pid(request.pid));
        shared.locks.set_guest((from, request.pid), false);
        ControlError::Failed(format!("cannot start a supervisor: {error}"))
    })
}

/// What the process may have come to rely on, and what omfs itself needs.
fn check_machine(shared: &Shared, request: &v1::PrepareGuestRequest) -> Result<(), ControlError> {
    let wanted = request.cpu.clone().unwrap_or_default();
    let wanted = CpuImage {
        flags: wanted.flags,
        xcr0: wanted.xcr0,
        xsave_bytes: wanted.xsave_bytes,
        ..CpuImage::default()
    };
    let missing = cpu::missing(&wanted, &shared.cpu);
    if !missing.is_empty() {
        let text = format!("its CPU lacks {}", missing.join(", "));
        return Err(ControlError::Refused(text));
    }
    match kernel() {
        Some(version) if version < KERNEL_MIN => Err(ControlError::Refused(format!(
            "its kernel {}.{} is older than {}.{}",
            version.0, version.1, KERNEL_MIN.0, KERNEL_MIN.1
        ))),
        _ => check_mount(shared),
    }
}

/// Guests see their home's files through it.
fn check_mount(shared: &Shared) -> Result<(), ControlError> {
    let point = &*shared.context.config.mount.guests;
    let real = || point.canonicalize().unwrap_or_default();
    let mounted = omfs_client::mount::mounted();
    if mounted.iter().any(|one| one == point) || mounted.contains(&real()) {
        return Ok(());
    }
    Err(ControlError::Refused(format!(
        "omfs is not mounted on {0} there (mount -t fuse.omfs omfs {0})",
        point.display()
    )))
}

fn kernel() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Promises the guest its place before anything is started for it.
fn admit(
    shared: &Arc<Shared>,
    from: NodeId,
    request: &v1::PrepareGuestRequest,
) -> Result<Reserved, ControlError> {
    shared.refresh();
    let reserved = shared.reserve((from, request.pid));
    let reserved = reserved.map_err(|refusal| {
        ControlError::Refused(match refusal {
            Refusal::There => format!("process {} of that node is here already", request.pid),
            Refusal::Full(count) => {
                format!("it has {count} guests, as many as it takes (balance.guests_max)")
            }
            Refusal::OwnerFull(count) => format!(
                "it has {count} guests of node {from}, as many as it takes of one node \
                 (balance.guests_per_node_max)"
            ),
            Refusal::TooManyArriving(count) => {
                format!("{count} guests of node {from} are on their way to it already")
            }
        })
    })?;
    let wish = Request {
        home: from,
        pid: Pid(request.pid),
        memory: request.memory_bytes,
        believed: request
            .automatic
            .then(|| f64::from(request.believed_load_milli) / 1000.0),
    };
    let now = shared.now();
    let answer = shared.balancer().admit(now, wish);
    answer.map_err(|refusal| ControlError::Refused(refusal.to_string()))?;
    Ok(reserved)
}

fn start(
    shared: &Arc<Shared>,
    reserved: Reserved,
    (key, start_ticks): (GuestKey, u64),
    home: &str,
    announced_bytes: u64,
) -> io::Result<v1::PrepareGuestReply> {
    let listener = listen(shared)?;
    let port = listener.local_addr()?.port();
    let token: [u8; 32] = rand::random();
    let hex: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    let (id, pid) = (key.0.to_string(), key.1.to_string());
    let start_ticks = start_ticks.to_string();
    let arguments = [
        "supervisor",
        "--home",
        home,
        "--home-id",
        &id,
        "--pid",
        &pid,
        "--start-ticks",
        &start_ticks,
    ];
    let mut arguments = arguments.map(OsString::from).to_vec();
    let place = shared.cgroup.expect_guest();
    for dir in place.dirs() {
        arguments.extend([OsString::from("--cgroup"), dir.into()]);
    }
    arguments.extend(quota(shared, announced_bytes));
    let secret = [(TOKEN_VARIABLE, hex)];
    let child = keeper::start(
        &shared.context,
        &arguments,
        &secret,
        OwnedFd::from(listener),
    )?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    // Not reaped yet, so the PID is still this child's.
    shared.set_supervisor(key, pid);
    let process = identity::process_id(pid).unwrap_or(ProcessId {
        pid,
        start_ticks: 0,
    });
    shared.guests.started(process, key);
    let after = Arc::clone(shared);
    keeper::reap(
        child,
        format!("supervisor of {}-{}", key.0, key.1),
        move || {
            drop((place, reserved));
            after.guests.ended(process);
            after.balancer().withdrawn(key.0, Pid(key.1));
            after.refresh();
        },
    )?;
    Ok(v1::PrepareGuestReply {
        data_address: SocketAddr::new(advertised_ip(shared), port).to_string(),
        token: token.to_vec(),
    })
}

/// What a guest may use of this node; nothing is known of its memory before it is measured.
fn quota(shared: &Shared, announced_bytes: u64) -> Vec<OsString> {
    let Some(node) = shared.balancer().vector() else {
        return Vec::new();
    };
    let balance = &shared.context.config.balance;
    let percent = balance.guest_memory_percent.0;
    let memory = guest::memory_max(node.memory_total, announced_bytes, percent);
    let threads = balance.guest_threads_max.to_string();
    [
        "--memory-max",
        &memory.to_string(),
        "--threads-max",
        &threads,
    ]
    .map(OsString::from)
    .to_vec()
}

fn advertised_ip(shared: &Shared) -> IpAddr {
    let myself = shared.context.directory.by_id(shared.me());
    myself.map_or(shared.context.config.network.listen, |peer| peer.data.ip())
}

/// A port of the configured range, else any.
fn listen(shared: &Shared) -> io::Result<TcpListener> {
    let network = &shared.context.config.network;
    let Some(range) = &network.guest_ports else {
        return TcpListener::bind((network.listen, 0));
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in range.0.clone().take(PORTS_TRIED) {
        match TcpListener::bind((network.listen, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            result => return result,
        }
    }
    Err(last)
}

/// Asks the homes of all guests to take them back; returns when none is left.
///
/// # Errors
/// Guests that did not leave within [`EXPEL_MAX`].
pub async fn expel(shared: &Arc<Shared>, progress: &Progress) -> Result<(), ControlError> {
    let deadline = Instant::now() + EXPEL_MAX;
    let mut asked: Vec<GuestKey> = Vec::new();
    loop {
        shared.refresh();
        let guests: Vec<GuestKey> = shared.registry.guests().into_iter().map(|g| g.0).collect();
        for key in asked.iter().filter(|key| !guests.contains(key)) {
            report(progress, *key, "done", "").await;
        }
        asked.retain(|key| guests.contains(key));
        if guests.is_empty() && shared.balancer().vector().is_none_or(|v| v.guests == 0) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(ControlError::Failed(format!(
                "{} guests have not left within {} s; `omfs ps` shows them",
                guests.len(),
                EXPEL_MAX.as_secs()
            )));
        }
        for key in guests {
            if !asked.contains(&key) {
                asked.push(key);
                report(progress, key, "prepare", "").await;
            }
            ask_home(shared, key, "expel").await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn report(progress: &Progress, key: GuestKey, phase: &str, error: &str) {
    let _ = progress
        .send(v1::MigrateProgress {
            pid: key.1,
            phase: phase.to_owned(),
            error: error.to_owned(),
            ..v1::MigrateProgress::default()
        })
        .await;
}

async fn ask_home(shared: &Shared, (home, pid): GuestKey, reason: &str) {
    let guest = shared.registry.guest((home, pid));
    let request = v1::RequestMoveRequest {
        pid,
        start_ticks: guest.map_or(0, |guest| guest.state.start_ticks),
        target: "home".into(),
        reason: reason.to_owned(),
        must_leave: true,
    };
    if let Err(error) = shared.context.clients.request_move(home, request).await {
        tracing::info!("node {home} does not take {pid} back yet: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_a_version() {
        assert!(kernel().is_some_and(|version| version > (2, 0)));
    }
}
