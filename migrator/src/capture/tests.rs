//! Capturing real programs.

use std::error::Error;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::image::{FileKind, VmaKind, registers, stored};

type TestResult = Result<(), Box<dyn Error>>;

const LIMIT: Duration = Duration::from_secs(60);

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, args: &[&str]) -> io::Result<Guest> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let guest = command.spawn().map(Guest);
    // It is set up when it waits for its input, or for nothing.
    let mut guest = guest?;
    let stat = format!("/proc/{}/stat", guest.0.id());
    let deadline = Instant::now() + LIMIT;
    while !std::fs::read_to_string(&stat)?.contains(") S ") {
        assert!(guest.0.try_wait()?.is_none() && Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(guest)
}

#[test]
fn a_shell_is_captured_whole_and_runs_on() -> TestResult {
    let script = "trap 'exit 7' USR1; umask 027; ulimit -n 100; cd /usr; until read x; do :; done";
    let mut guest = start("sh", &["-c", script])?;
    let pid = guest.0.id() as i32;
    assert_eq!(eligibility(pid), []);
    let mut frozen = Frozen::freeze(pid, LIMIT)?;
    let image = capture(&mut frozen)?;
    let runs = pages::private_pages(pid, &image.vmas)?;
    let mut stream = PageStream::new(pid, runs);
    let total = stream.remaining_bytes();
    let mut read = 0;
    while let Some(batch) = stream.next_batch()? {
        read += batch.bytes.len() as u64;
    }
    frozen.thaw()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGUSR1)?;
    assert_eq!(guest.0.wait()?.code(), Some(7));

    assert_eq!(stored::decode(&stored::encode(&image)), Ok(image.clone()));
    assert_eq!(
        (image.pid, image.umask, image.cwd.as_slice()),
        (pid, 0o027, &b"/usr"[..])
    );
    assert!(total > 40 << 10 && read == total, "{total} bytes of pages");
    let limit = image
        .limits
        .iter()
        .find(|limit| limit.resource == libc::RLIMIT_NOFILE as i32);
    assert_eq!(limit.map(|limit| limit.soft), Some(100));
    let usr1 = image
        .actions
        .iter()
        .find(|action| action.signal == libc::SIGUSR1);
    assert!(usr1.is_some_and(|action| action.handler > 4096 && action.restorer != 0));
    let leader = image.threads.first().ok_or("no thread")?;
    let regs = registers::from_image(leader)?;
    assert_eq!(
        (regs.syscall_number(), regs.rax as i64),
        (Some(libc::SYS_read), -512)
    );
    assert!(leader.rseq.is_some_and(|rseq| rseq.bytes == 32));
    assert!(leader.clear_child_tid != 0 && leader.robust_list != 0);
    assert_eq!(
        Some(leader.xstate.len() as u32),
        image.cpu.as_ref().map(|cpu| cpu.xsave_bytes)
    );
    let kinds: Vec<_> = image
        .files
        .iter()
        .map(|file| (file.number, file.kind()))
        .collect();
    assert!(
        kinds.starts_with(&[(0, FileKind::Pipe), (1, FileKind::LocalDevice)]),
        "{kinds:?}"
    );
    for kind in [
        VmaKind::Heap,
        VmaKind::Stack,
        VmaKind::Vdso,
        VmaKind::Vvar,
        VmaKind::File,
    ] {
        assert!(
            image.vmas.iter().any(|vma| vma.kind() == kind),
            "no {kind:?}"
        );
    }
    let layout = image.layout.ok_or("no layout")?;
    assert!(
        layout.brk > layout.start_brk && layout.auxv.len() > 100,
        "{layout:?}"
    );
    Ok(())
}

#[test]
fn reasons_against_moving_are_named() -> TestResult {
    let codes = |pid: i32| {
        eligibility(pid)
            .into_iter()
            .map(|reason| reason.code)
            .collect::<Vec<_>>()
    };
    assert_eq!(codes(1), [CantMoveCode::Init]);
    assert_eq!(codes(i32::MAX), [CantMoveCode::Ended]);
    if let Ok(stat) = procfs::Stat::read(2)
        && stat.comm == b"kthreadd"
    {
        assert_eq!(codes(2), [CantMoveCode::KernelThread]);
    }
    let guest = start("sleep", &["100"])?;
    let pid = guest.0.id() as i32;
    let frozen = Frozen::freeze(pid, LIMIT)?;
    assert_eq!(codes(pid), [CantMoveCode::Traced]);
    assert!(Frozen::freeze(pid, LIMIT).is_err());
    frozen.thaw()?;
    assert_eq!(codes(pid), []);
    Ok(())
}
