"""Makes system calls of all sorts at home and at other nodes: they have to answer the same everywhere.

Usage: calls.py DIRECTORY MOVER PLACE... [-- CHECK...]. MOVER is run with a PID and a place, or `-`: then a line with both goes
to the standard output, and one from the standard input says that it is done. A worker on a terminal of its own makes each check at home, and then again at each
place, moved there just before it. Prints what differs; exits 1 if anything does.
"""
import array
import ctypes
import errno
import fcntl
import mmap
import os
import pty
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

DIR = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
CHECKS = []


def check(function):
    """Its result, and those of the pieces it yields, must be the same everywhere."""
    CHECKS.append(function)
    return function


def tried(function, *args, **named):
    """The result of a call, or the name of its error."""
    try:
        return function(*args, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def raw(number, *args):
    """The result of a system call by its number, or the name of its error."""
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *[arg if isinstance(arg, (bytes, ctypes.Array)) else ctypes.c_long(arg) for arg in args])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result


# null and zero are the host's own: what they are is the same everywhere, where they are is not.
LOCAL_DEVICES = os.makedev(1, 3), os.makedev(1, 5)


def identity(found):
    if isinstance(found, str):
        return found
    place = (found.st_dev, found.st_ino) if found.st_rdev not in LOCAL_DEVICES else "the host's own"
    return oct(found.st_mode), place, found.st_rdev, found.st_uid, found.st_gid


def statx(path, flags=0):
    buffer = ctypes.create_string_buffer(256)
    result = raw(332, -100, path.encode(), flags, 0x7FF, buffer)
    if result:
        return result
    mode, inode = struct.unpack_from("<H", buffer, 28)[0], struct.unpack_from("<Q", buffer, 32)[0]
    device, place = struct.unpack_from("<II", buffer, 128), struct.unpack_from("<II", buffer, 136)
    return mode, device, (inode, place) if os.makedev(*device) not in LOCAL_DEVICES else "the host's own"


class State:
    """What the worker has before it goes anywhere."""

    def __init__(self):
        self.pid, self.parent = os.getpid(), os.getppid()
        self.pipe, self.pair = os.pipe(), socket.socketpair()
        self.file = os.open(DIR + "/file", os.O_RDWR)
        self.directory = os.open(DIR, os.O_RDONLY)
        self.proc = os.open(f"/proc/{self.parent}", os.O_RDONLY)
        self.event = os.eventfd(3, os.EFD_NONBLOCK)
        self.epoll = select.epoll()
        self.epoll.register(self.pipe[0], select.EPOLLIN)
        self.memory = os.memfd_create("calls")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.shared = os.open(DIR + "/shared", os.O_RDWR | os.O_CREAT)
        # Here a guest has the root's own file system only; omfs shows it what is mounted below as well.
        is_of_the_root = os.stat("/dev/shm").st_dev == os.stat("/").st_dev
        self.shared_memory = ["/dev/shm"] if is_of_the_root else []


S = None


def paths():
    parent = S.parent
    return S.shared_memory + [
        "/dev/tty", "/dev/null", "/dev/zero", "/dev", "/dev/pts", "/dev/ptmx", "/dev/fd", "/dev/stdin", "/dev/fd/1",
        f"/dev/fd/{S.pipe[0]}", f"/dev/fd/{S.file}", "/dev/absent", os.ttyname(0),
        "/proc", "/proc/self", "/proc/thread-self", "/proc/self/exe", "/proc/self/cwd", "/proc/self/root", "/proc/self/status",
        "/proc/self/fd", "/proc/self/fd/0", f"/proc/self/fd/{S.pipe[1]}", f"/proc/self/fd/{S.file}", f"/proc/self/fd/{S.memory}",
        f"/proc/self/fd/{S.pair[0].fileno()}", "/proc/self/fd/999", "/proc/self/ns/pid", "/proc/self/ns/net", "/proc/self/task",
        f"/proc/{S.pid}/exe", f"/proc/{S.pid}/task/{S.pid}/comm", f"/proc/{parent}", f"/proc/{parent}/exe", f"/proc/{parent}/cwd",
        f"/proc/{parent}/fd/0", "/proc/1", "/proc/4194304", "/proc/cpuinfo", "/proc/sys/kernel/pid_max", "/proc/mounts", "/proc/absent",
        "/sys", "/sys/kernel", "/sys/class/net/lo", "/sys/absent", "/etc/mtab", "/etc/hostname",
        "terminal", "parent", "parent/exe", "parent/absent", "nobody", "nobody/exe", "twice", "twice/comm", "nowhere", "nowhere/x", "absent",
        f"../../proc/{parent}/comm", "../../dev/tty", "file", "file/below", ".", "/", "", DIR, "to-file", "loop", "x" * 300,
    ]


@check
def stat_of_paths():
    yield from ((path, identity(tried(os.stat, path))) for path in paths())


def telling_of_links():
    """Where these two lead only the guest can tell, so they are asked about where it is; as links they are its own."""
    return [path for path in paths() if path not in ("/proc/self/cwd", "/proc/self/root")]


@check
def lstat_of_paths():
    yield from ((path, identity(tried(os.lstat, path))) for path in telling_of_links())


@check
def statx_of_paths():
    yield from ((path, statx(path)) for path in paths())
    yield from ((path, statx(path, 0x100)) for path in telling_of_links())


@check
def access_of_paths():
    modes = os.R_OK, os.W_OK, os.X_OK, os.F_OK
    yield from ((path, [raw(21, path.encode(), mode) for mode in modes], raw(439, -100, path.encode(), 0, 0x100)) for path in paths())


@check
def readlink_of_paths():
    yield from ((path, tried(os.readlink, path)) for path in paths())


@check
def realpath_of_paths():
    yield from ((path, os.path.realpath(path)) for path in paths())


@check
def attributes_of_paths():
    yield from ((path, tried(os.getxattr, path, "user.absent"), tried(os.listxattr, path)) for path in ["/proc/1", "/dev/tty", "file", "absent"])
    yield tried(lambda: os.statvfs("/proc/1").f_namemax), tried(lambda: os.statvfs("/dev/pts").f_namemax), tried(os.statvfs, "/proc/4194304")


@check
def paths_from_directories():
    for directory in S.proc, S.directory, S.pipe[0], 999:
        for name in "comm", "exe", "file", "parent/exe", "absent", "../1/exe":
            yield directory, name, identity(tried(os.stat, name, dir_fd=directory)), tried(os.readlink, name, dir_fd=directory), raw(269, directory, name.encode(), 4)


@check
def names_of_terminals():
    yield tried(os.ttyname, 0), tried(os.ttyname, S.pipe[0]), tried(os.ttyname, S.file), os.ctermid(), os.isatty(1)


@check
def descriptors():
    for fd in 0, 1, S.pipe[0], S.pair[0].fileno(), S.event, S.memory, S.epoll.fileno(), S.listener.fileno(), 999:
        yield fd, identity(tried(os.fstat, fd)), tried(fcntl.fcntl, fd, fcntl.F_GETFL), tried(fcntl.fcntl, fd, fcntl.F_GETFD), tried(os.lseek, fd, 0, os.SEEK_CUR)
    for fd in S.file, S.directory:
        yield fd, identity(os.fstat(fd)), fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000, fcntl.fcntl(fd, fcntl.F_GETFD)


@check
def who_it_is():
    yield os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), os.getpgid(S.parent), os.getresuid(), os.getresgid(), os.getgroups(), threading.get_native_id()
    yield os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getparam(0), os.tcgetpgrp(0), tuple(os.uname())
    yield [resource.getrlimit(which) for which in range(16)], resource.prlimit(S.parent, resource.RLIMIT_NOFILE)
    mask = os.umask(0o22)
    os.umask(mask)
    yield mask, os.getcwd(), tried(os.getpgid, 4194304), tried(os.kill, S.parent, 0), tried(os.kill, 4194304, 0)


@check
def what_it_is_like():
    header, data = struct.pack("<II", 0x20080522, 0), ctypes.create_string_buffer(24)
    yield raw(125, ctypes.create_string_buffer(header, 8), data), data.raw
    word = ctypes.create_string_buffer(8)
    for option in 2, 3, 7, 14, 16, 21, 23, 25, 27, 30, 36, 37, 38, 39, 42, 47:  # PR_GET_*
        word.raw = bytes(8)
        yield option, LIBC.prctl(option, word if option in (2, 25, 37) else ctypes.c_ulong(0), 0, 0, 0), word.raw
    LIBC.prctl(16, word, 0, 0, 0)
    yield word.raw, raw(135, 0xFFFFFFFF), raw(251, 1, 0, 0) if False else raw(252, 1, 0)


@check
def reading_the_kernel():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    yield [status[key].strip() for key in ("Name", "Pid", "PPid", "TracerPid", "Uid", "Groups", "SigCgt", "SigIgn", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")]
    yield open("/proc/self/comm").read(), open("/proc/self/cmdline").read(), os.readlink("/proc/self/exe"), len(os.listdir("/proc/self/task"))
    yield open("/proc/sys/kernel/hostname").read(), os.path.exists(f"/proc/{S.parent}/status"), sorted(os.listdir("/dev"))


@check
def working_with_files():
    path = f"{DIR}/work"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    yield os.write(fd, b"0123456789" * 100), os.lseek(fd, 3, os.SEEK_SET), os.read(fd, 5), os.pread(fd, 4, 998), os.pwrite(fd, b"xy", 2000)
    yield os.fstat(fd).st_size, tried(os.lseek, fd, -1, os.SEEK_SET), os.lseek(fd, 0, os.SEEK_END), os.readv(fd, [bytearray(4)]), os.preadv(fd, [bytearray(3)], 1)
    yield os.ftruncate(fd, 50), os.truncate(path, 70), tried(os.posix_fallocate, fd, 0, 8192), os.fstat(fd).st_size, os.fsync(fd), os.fdatasync(fd)
    yield tried(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED), tried(os.copy_file_range, S.file, fd, 5, 0, 100), tried(os.pread, fd, 6, 100)
    other = os.open(DIR, os.O_RDONLY)
    yield tried(os.write, other, b"x"), tried(os.read, other, 1), tried(os.open, DIR, os.O_WRONLY), tried(os.open, path + "/x", os.O_RDONLY), tried(os.open, "absent", os.O_RDONLY)
    os.close(other)
    yield tried(os.sendfile, S.pipe[1], fd, 0, 10), tried(os.read, S.pipe[0], 100), tried(os.splice, fd, S.pipe[1], 4, offset_src=0), tried(os.read, S.pipe[0], 100)
    yield os.setxattr(path, "user.one", b"value"), os.getxattr(fd, "user.one"), sorted(os.listxattr(path)), tried(os.getxattr, path, "user.two"), os.removexattr(path, "user.one")
    yield os.chmod(path, 0o604), os.fchmod(fd, 0o600), os.chown(path, 5, 6), os.utime(path, ns=(5_000_000_007, 6_000_000_008)), os.stat(path).st_mtime_ns, os.stat(path).st_uid
    yield os.link(path, path + "2"), os.fstat(fd).st_nlink, tried(os.link, path, path + "2"), os.rename(path + "2", path + "3"), os.unlink(path + "3"), os.fstat(fd).st_nlink
    yield raw(316, -100, path.encode(), -100, b"file", 1), raw(316, -100, path.encode(), -100, (path + "4").encode(), 1), os.rename(path + "4", path)
    yield os.mkfifo(path + "5"), stat.S_IFMT(os.stat(path + "5").st_mode), os.unlink(path + "5"), tried(os.mknod, path + "6", stat.S_IFCHR | 0o600, 0x103), tried(os.unlink, path + "6")
    yield fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), tried(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10), fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
    yield os.unlink(path), tried(os.stat, path), tried(os.close, fd), tried(os.read, fd, 1), os.umask(os.umask(0o22))


@check
def working_with_directories():
    path = f"{DIR}/tree"
    yield os.mkdir(path, 0o750), tried(os.mkdir, path), oct(os.stat(path).st_mode), os.symlink("target", path + "/link"), os.readlink(path + "/link"), tried(os.rmdir, path)
    yield tried(os.unlink, path), tried(os.rename, "file", path), tried(os.rename, path, path + "/below"), os.listdir(path), tried(os.readlink, "file"), tried(os.symlink, "x", path)
    yield os.chdir(path), os.getcwd(), os.path.exists("link"), os.lstat("link").st_size, os.fchdir(S.directory), os.getcwd(), os.unlink(path + "/link"), os.rmdir(path)
    yield tried(os.chdir, "/absent"), tried(os.chdir, "file"), tried(os.rmdir, "/proc"), tried(os.mkdir, "/proc/x"), tried(os.mkdir, "/dev/null/x"), tried(os.unlink, "/proc/cpuinfo")
    fd = tried(os.open, DIR, os.O_TMPFILE | os.O_RDWR)
    yield isinstance(fd, int) and os.close(fd), tried(os.unlink, "absent"), tried(os.rename, "absent", "other"), tried(os.truncate, DIR, 0), tried(os.truncate, "absent", 0)


@check
def going_into_the_kernels_directories():
    yield os.chdir(f"/proc/{S.parent}"), os.getcwd(), open("comm").read(), tried(os.readlink, "exe"), os.chdir(DIR)


@check
def changing_terminals():
    name = os.ttyname(0)
    mode = stat.S_IMODE(os.stat(name).st_mode)
    yield tried(os.chmod, name, 0o620), oct(os.stat(name).st_mode), tried(os.chmod, name, mode), tried(os.utime, "/dev/null"), tried(os.chmod, "/dev/absent", 0)


@check
def memory():
    yield mmap.mmap(-1, 8192)[:3], mmap.mmap(S.file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)[:5]
    with mmap.mmap(S.file, 4096) as shared:
        shared[100:103] = b"abc"
        shared.flush()
        yield os.pread(S.file, 3, 100)
    yield raw(9, 0, 4096, 3, 0x22, -1, 0) != "EINVAL", raw(9, 0, 0, 3, 0x22, -1, 0), raw(9, 0, 4096, 1, 2, 999, 0), raw(11, 1, 4096), raw(10, 4096, 4096, 1), raw(28, 0, 4096, 99)
    yield raw(149, 0x10000, 4096), raw(25, 4096, 4096, 8192, 1, 0), os.pwrite(S.memory, b"mem", 0), os.pread(S.memory, 3, 0), os.ftruncate(S.memory, 100)


@check
def pipes_from_before():
    yield os.write(S.pipe[1], b"words"), select.select([S.pipe[0], S.pair[0]], [S.pipe[1]], [], 0), S.epoll.poll(0), os.read(S.pipe[0], 3), os.read(S.pipe[0], 9)
    yield S.epoll.poll(0), fcntl.fcntl(S.pipe[0], 1032), fcntl.ioctl(S.pipe[0], termios.FIONREAD, b"1234"), tried(os.lseek, S.pipe[0], 0, 0), tried(os.pread, S.pipe[0], 1, 0)
    yield os.eventfd_read(S.event), tried(os.eventfd_read, S.event), os.eventfd_write(S.event, 3), S.pair[0].send(b"a message"), S.pair[1].recv(4), S.pair[1].recv(40)
    yield S.listener.getsockname(), tried(S.pair[0].getpeername), S.pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), tried(S.pair[0].recv, 1, socket.MSG_DONTWAIT)
    poller = select.poll()
    poller.register(S.pipe[0], select.POLLIN)
    poller.register(999, select.POLLIN)
    yield poller.poll(0), tried(os.fsync, S.pipe[0]), tried(os.ftruncate, S.pipe[0], 0), tried(os.fchmod, S.pipe[0], 0o600), tried(os.getxattr, S.pipe[0], "user.x")


@check
def what_waits_for_events():
    reader, writer = os.pipe()
    epoll = select.epoll()
    yield epoll.register(reader, select.EPOLLIN), tried(epoll.register, reader, 1), tried(epoll.register, S.file, 1), os.write(writer, b"x"), len(epoll.poll(1)), epoll.unregister(reader)
    event = os.eventfd(0)
    yield os.eventfd_write(event, 7), os.eventfd_read(event), fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK), os.get_blocking(writer)
    timer = os.timerfd_create(time.CLOCK_MONOTONIC)
    yield os.timerfd_settime(timer, initial=0.01), len(os.read(timer, 8)), os.timerfd_gettime(timer)
    watch = LIBC.inotify_init()
    yield LIBC.inotify_add_watch(watch, DIR.encode(), 0x100), os.close(os.open(DIR + "/noticed", os.O_CREAT)), os.read(watch, 100)[4:8], os.unlink(DIR + "/noticed")
    for fd in reader, writer, event, timer, watch:
        os.close(fd)
    epoll.close()


@check
def sockets():
    client = socket.create_connection(S.listener.getsockname())
    server, _ = S.listener.accept()
    yield client.send(b"request"), server.recv(100), server.shutdown(socket.SHUT_WR), client.recv(5), tried(server.send, b"x")
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    yield socket.send_fds(one, [b"take"], [S.file]), two.recv(100), tried(two.recv, 1, socket.MSG_DONTWAIT), tried(socket.create_connection, ("127.0.0.1", 1))
    for used in client, server, one, two:
        used.close()


@check
def signals():
    got = []
    for number in signal.SIGUSR1, signal.SIGALRM, signal.SIGVTALRM, signal.SIGRTMIN:
        signal.signal(number, lambda number, frame: got.append(number))
    yield os.kill(S.pid, signal.SIGUSR1), list(got), signal.alarm(100), signal.alarm(0), signal.setitimer(signal.ITIMER_REAL, 0.01), time.sleep(0.1), list(got)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
    until = time.monotonic() + 20
    while signal.SIGVTALRM not in got and time.monotonic() < until:
        pass
    yield list(got), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN]), os.kill(S.pid, signal.SIGRTMIN), signal.sigpending(), signal.sigtimedwait([signal.SIGRTMIN], 5).si_pid == S.pid
    yield signal.sigtimedwait([signal.SIGRTMIN], 0.01), signal.pthread_sigmask(signal.SIG_SETMASK, []), tried(signal.setitimer, 99, 1), tried(os.kill, S.pid, 99)


@check
def children():
    child = os.fork()
    if child == 0:
        os._exit(7)
    yield os.waitpid(child, 0)[1], tried(os.waitpid, -1, os.WNOHANG), tried(os.waitid, os.P_PID, S.parent, os.WEXITED), tried(os.waitpid, S.parent, 0)
    yield subprocess.run("echo $PPID; pwd; tty; cat", shell=True, input=b"words", capture_output=True).stdout, tried(os.setpgid, S.parent, 0), tried(os.setsid)


@check
def waiting_for_nobody():
    yield tried(os.waitpid, -1, os.WNOHANG), tried(os.waitid, os.P_ALL, 0, os.WEXITED | os.WNOHANG), tried(os.setpgid, S.parent, 0), tried(os.setsid), tried(os.setpriority, 0, S.parent, 0)


@check
def shared_memory_and_queues():
    key = LIBC.shmget(0, 4096, 0o1600)
    LIBC.shmat.restype = ctypes.c_void_p
    address = LIBC.shmat(key, None, 0)
    ctypes.memmove(address, b"shared", 6)
    yield ctypes.string_at(address, 6), LIBC.shmdt(ctypes.c_void_p(address)), LIBC.shmctl(key, 0, None), raw(65, 999, b"x" * 6, 1)
    queue = LIBC.msgget(0, 0o1600)
    yield LIBC.msgsnd(queue, struct.pack("<q5s", 3, b"words"), 5, 0), LIBC.msgctl(queue, 0, None), raw(70, queue, bytearray(10).__bytes__(), 1, 0, 0)


@check
def descriptors_and_limits():
    yield resource.getrlimit(resource.RLIMIT_CORE), resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])), resource.getrlimit(resource.RLIMIT_CORE)
    copy = os.dup(S.file)
    yield os.pread(copy, 4, 0), os.close(copy), tried(os.dup2, S.file, 1 << 20), tried(os.dup, 999), tried(fcntl.fcntl, S.file, fcntl.F_DUPFD, 1 << 30), fcntl.fcntl(S.pipe[0], fcntl.F_SETFD, 1)
    yield fcntl.fcntl(S.pipe[0], fcntl.F_GETFD), tried(os.lseek, S.file, 0, 99), tried(fcntl.ioctl, S.file, termios.TIOCGWINSZ, bytes(8)), tried(termios.tcgetattr, S.pipe[0])


@check
def terminals():
    before = termios.tcgetattr(0)
    yield before[:4], fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)), os.tcgetpgrp(0), tried(os.tcsetpgrp, 0, os.getpgrp()), termios.tcsetattr(0, termios.TCSANOW, before), os.get_terminal_size(0)
    terminal = tried(os.open, "/dev/tty", os.O_RDWR)
    yield os.ttyname(terminal), os.isatty(terminal), os.close(terminal)


@check
def time_and_chance():
    first, used = time.monotonic(), time.process_time()
    time.sleep(0.02)
    yield 0.02 <= time.monotonic() - first < 20, time.process_time() - used < 20, len(os.getrandom(16)), time.clock_getres(time.CLOCK_MONOTONIC), abs(time.time() - time.clock_gettime(time.CLOCK_REALTIME)) < 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield usage.ru_utime + usage.ru_stime >= 0, raw(230, 99, 0, 0, 0), raw(35, 8, 0), tried(time.clock_gettime, 99), tried(time.clock_settime, 99, 1)


@check
def what_makes_no_sense():
    numbers = [0, 1, 3, 5, 8, 16, 17, 18, 19, 20, 32, 44, 45, 46, 47, 48, 49, 50, 51, 54, 72, 73, 74, 75, 77, 81, 91, 93, 138, 217, 221, 232, 233, 285, 286, 326, 327, 332, 439]
    yield from ((number, raw(number, 999, 8, 8, 8, 8, 8)) for number in numbers)
    yield from ((number, raw(number, 0x7FFFFFFF000, 0, 0)) for number in (2, 4, 6, 21, 80, 83, 87, 89, 90, 137))
    yield from ((number, raw(number, 0, 0, 0)) for number in (134, 156, 177, 180, 211, 236, 334, 400, 500, 1000))


class Worker:
    """Makes the checks, and says where it wants to be."""

    def __init__(self, orders, answers):
        self.orders, self.answers = orders, answers

    def go(self, place):
        os.write(self.orders, place.encode() + b"\n")
        assert os.read(self.answers, 10) == b"there\n", place

    def run(self, places, checks):
        global S
        os.chdir(DIR)
        S = State()
        wrong = 0
        for one in checks:
            expected = self.answers_of(one, "home")
            for place in places:
                found = self.answers_of(one, place)
                for number, pair in enumerate(zip(expected, found)):
                    if pair[0] != pair[1]:
                        wrong += 1
                        os.write(1, f"{one.__name__} {number} at {place}: {pair[1]} instead of {pair[0]}\n".encode())
                if len(expected) != len(found):
                    wrong += 1
                    os.write(1, f"{one.__name__} at {place}: {found[-1]}\n".encode())
        os.write(1, f"{len(checks)} checks, {wrong} differences\n".encode())
        os._exit(1 if wrong else 0)

    def answers_of(self, one, place):
        self.go(place)
        found = []
        try:
            for answer in one():
                found.append(repr(answer))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error} at line {error.__traceback__.tb_next.tb_lineno if error.__traceback__.tb_next else 0}")
        return found


def prepare():
    shutil.rmtree(DIR, ignore_errors=True)
    os.makedirs(DIR)
    with open(DIR + "/file", "wb") as file:
        file.write(bytes(range(256)) * 32)
    parent = os.getpid()
    for target, name in [("/dev/tty", "terminal"), (f"/proc/{parent}", "parent"), ("/proc/4194304", "nobody"), ("parent", "twice"), ("/absent", "nowhere"), ("file", "to-file"), ("loop", "loop")]:
        os.symlink(target, f"{DIR}/{name}")


def move(mover, pid, place):
    if mover == "-":
        print("move", pid, place, flush=True)
        sys.stdin.readline()
        return
    result = subprocess.run([*mover.split(), str(pid), place], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if result.returncode and place != "home":
        print(place, result.stderr.decode(), flush=True)


def show(terminal):
    """What the worker says, until it is gone."""
    try:
        while text := os.read(terminal, 4096):
            os.write(1, text.replace(b"\r\n", b"\n"))
    except OSError:
        pass


def main():
    words = sys.argv[3:]
    at = words.index("--") if "--" in words else len(words)
    places, names = words[:at], words[at + 1:]
    prepare()
    orders, answers = os.pipe(), os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        Worker(orders[1], answers[0]).run(places, [one for one in CHECKS if not names or one.__name__ in names])
    os.close(orders[1])
    shown = threading.Thread(target=show, args=[terminal])
    shown.start()
    for place in open(orders[0]):
        move(sys.argv[2], pid, place.strip())
        os.write(answers[1], b"there\n")
    shown.join()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


main()
