//! A real process of each kind that cannot move, and the code it is refused with.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use migrator::capture::eligibility;

use crate::common::{Job, TestResult};

/// What every process begins with; `fail` is for kernels that do not let it be made.
const BEGIN: &str = r#"
import ctypes, mmap, os, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_void_p(arg) for arg in args])
    if result < 0:
        print("not here:", os.strerror(ctypes.get_errno()), flush=True)
        sys.exit()
    return result
def buffer(data):
    global kept
    kept = ctypes.create_string_buffer(data, len(data))
    return ctypes.addressof(kept)
"#;

/// Says that it is set up, and stays.
const END: &str = r#"
print("ready", os.getpid(), flush=True)
os.read(0, 1)
"#;

/// Code, what makes a process such, and whether every kernel lets it.
const KINDS: [(&str, &str, bool); 17] = [
    ("seccomp", SECCOMP, true),
    ("namespace", "libc.unshare(0x20000)", true), // CLONE_NEWNS
    ("namespace", INNER_PID, true),
    ("namespace", "os.chroot('/usr'); os.chdir('/')", true),
    ("shared-address-space", SHARED_SPACE, true),
    ("odd-threads", ODD_THREAD, true),
    ("leader-ended", LEADER_ENDS, true),
    ("real-time", REAL_TIME, false),
    ("shared-memory", "kept = mmap.mmap(-1, 4096)", true),
    ("shared-memory", SHARED_FILE, true),
    // io_setup(10, &context), io_uring_setup(4, &params), userfaultfd(UFFD_USER_MODE_ONLY)
    ("aio", "call(206, 10, buffer(bytes(8)))", true),
    ("io-uring", "call(425, 4, buffer(bytes(120)))", false),
    ("userfaultfd", "call(323, 1)", true),
    ("signalfd", "call(289, -1, buffer(bytes(8)), 8, 0)", true), // signalfd4
    ("sealed-memory", SEALED, false),
    ("no-vdso", NO_VDSO, true),
    ("shared-memory", SYSTEM_V, true),
];

/// One instruction: SECCOMP_RET_ALLOW.
const SECCOMP: &str = r#"
program = struct.pack("HBBI", 6, 0, 0, 0x7fff0000)
instructions = ctypes.create_string_buffer(program, 8)
call(157, 38, 1, 0, 0, 0)
call(157, 22, 2, buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(instructions))), 0, 0)
"#;

/// The child lives in a PID namespace of its own; it is what is asked about.
const INNER_PID: &str = r#"
assert libc.unshare(0x20000000) == 0
pid = os.fork()
if pid:
    print("ready", pid, flush=True)
    os.waitpid(pid, 0)
os.read(0, 1)
os._exit(0)
"#;

/// clone(CLONE_VM | SIGCHLD) of a process that waits for the end of its input.
const SHARED_SPACE: &str = r#"
stack = ctypes.create_string_buffer(1 << 16)
top = (ctypes.addressof(stack) + (1 << 16)) & ~15
child = libc.clone(libc.getchar, ctypes.c_void_p(top), 0x100 | 17, None)
assert child > 0
"#;

/// A thread that calls unshare(CLONE_FILES).
const ODD_THREAD: &str = r#"
done = threading.Event()
def work():
    libc.unshare(0x400)
    done.set()
    time.sleep(1000)
threading.Thread(target=work, daemon=True).start()
done.wait()
"#;

/// The first thread calls exit(2), as pthread_exit does.
const LEADER_ENDS: &str = r#"
def work():
    while open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    os.write(1, b"ready %d\n" % os.getpid())
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=work).start()
libc.syscall.restype = None
libc.syscall(60, 0)
"#;

const REAL_TIME: &str = r#"
try:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
except PermissionError as error:
    print("not here:", error, flush=True)
    sys.exit()
"#;

const SHARED_FILE: &str = r#"
import tempfile
file = tempfile.TemporaryFile()
file.truncate(4096)
kept = mmap.mmap(file.fileno(), 4096)
"#;

/// mseal(2) of a private page.
const SEALED: &str = r#"
kept = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
call(462, ctypes.addressof(ctypes.c_char.from_buffer(kept)), 4096, 0)
"#;

const NO_VDSO: &str = r#"
for line in open("/proc/self/maps").readlines():
    if "[vdso]" in line:
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        call(11, start, end - start)
"#;

/// shmget(IPC_PRIVATE, 4096, 0600), shmat, and IPC_RMID so that nothing is left.
const SYSTEM_V: &str = r#"
segment = call(29, 0, 4096, 0o600)
libc.shmat.restype = ctypes.c_void_p
libc.shmat(segment, None, 0)
call(31, segment, 0, 0)
"#;

/// The first line a process writes: "ready PID", or why it cannot be made here.
fn start(script: &str) -> TestResult<(Job, String)> {
    let script = [BEGIN, script, END].concat();
    let mut command = Command::new("python3");
    command
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job::start(&mut command)?;
    let output = job.0.stdout.take().ok_or("no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    Ok((job, line))
}

#[test]
fn each_kind_that_cannot_move_is_named() -> TestResult {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: no python3 on this machine");
        return Ok(());
    }
    let mut wrong = Vec::new();
    for (code, script, always) in KINDS {
        let (_job, line) = start(script)?;
        let Some(pid) = line.strip_prefix("ready ") else {
            eprintln!("skipped: {code}: {line}");
            if always {
                wrong.push(format!("{code} cannot be made: {line:?}"));
            }
            continue;
        };
        let found = eligibility(pid.trim().parse()?);
        let codes: Vec<&str> = found.iter().map(|reason| reason.code.as_str()).collect();
        if !codes.contains(&code) {
            wrong.push(format!("{code}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The smallest 32-bit program: its header, one segment, and `jmp .` (elf(5)).
fn program_of_32_bits() -> Vec<u8> {
    let base = 0x0804_8000_u32;
    let mut image = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |image: &mut Vec<u8>, values: &[u16]| {
        values
            .iter()
            .for_each(|value| image.extend(value.to_le_bytes()));
    };
    let word = |image: &mut Vec<u8>, values: &[u32]| {
        values
            .iter()
            .for_each(|value| image.extend(value.to_le_bytes()));
    };
    half(&mut image, &[2, 3]); // ET_EXEC, EM_386
    word(&mut image, &[1, base + 84, 52, 0, 0]);
    half(&mut image, &[52, 32, 1, 0, 0, 0]);
    word(&mut image, &[1, 0, base, base, 86, 86, 5, 4096]); // PT_LOAD, readable and executable
    image.extend([0xeb, 0xfe]);
    image
}

#[test]
fn a_32_bit_program_cannot_move() -> TestResult {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("program");
    std::fs::write(&path, program_of_32_bits())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
    match Job::start(&mut Command::new(&path)) {
        Ok(job) => {
            let found = eligibility(job.pid());
            let codes: Vec<&str> = found.iter().map(|reason| reason.code.as_str()).collect();
            assert_eq!(codes, ["not-x86-64"]);
        }
        Err(error) => eprintln!("skipped: this kernel has no 32-bit programs: {error}"),
    }
    Ok(())
}

#[test]
fn a_zombie_has_ended() -> TestResult {
    let job = Job::start(&mut Command::new("true"))?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let found = eligibility(job.pid());
        let codes: Vec<&str> = found.iter().map(|reason| reason.code.as_str()).collect();
        if codes == ["ended"] {
            return Ok(());
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
