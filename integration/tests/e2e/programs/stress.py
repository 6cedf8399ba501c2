"""Keeps several jobs at work on n1 and moves them at random; every byte they leave must be right.

Usage: stress.py SECONDS SEED WORKERS [KIND...]. Prints one JSON object; exits 1 if anything was wrong.
"""
import collections
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time

DIR = "/root/stress"
TARGETS = ["n2", "n3", "home"]
#: How long a job may take before it counts as hanging.
JOB_SECONDS = 300

REWRITE = r'''
import os, random, sys
path, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
size = 1 << 20
model = bytearray(size)
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
os.ftruncate(fd, size)
inode = os.fstat(fd).st_ino, os.fstat(fd).st_dev
for step in range(30000):
    offset = rng.randrange(size)
    data = rng.randbytes(min(rng.choice([1, 100, 4096, 9000]), size - offset))
    if step % 3 == 0:
        os.lseek(fd, offset, os.SEEK_SET)
        assert os.write(fd, data) == len(data)
        assert os.lseek(fd, 0, os.SEEK_CUR) == offset + len(data), 'offset'
    else:
        assert os.pwrite(fd, data, offset) == len(data)
    model[offset:offset + len(data)] = data
    offset = rng.randrange(size)
    found = os.pread(fd, 5000, offset)
    assert found == bytes(model[offset:offset + 5000]), f'step {step}: {len(found)} bytes at {offset} differ'
    if step % 100 == 0:
        now = os.stat(path)
        assert (now.st_ino, now.st_dev) == inode, f'step {step}: identity {inode} became {now}'
        assert now.st_size == size
sys.stdout.write(str(len(model)))
'''

APPEND = r'''
import os, random, sys
path, mark, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
for number in range(3000):
    record = f'{mark}{number}:'.encode() + b'x' * rng.randrange(3000) + b'\n'
    assert os.write(fd, record) == len(record)
    for _ in range(rng.randrange(20000)): pass
'''

CLOCK = r'''
import time
last, begun = time.monotonic(), time.time()
while time.time() < begun + 4:
    now = time.monotonic()
    assert last <= now < last + 30, (last, now)
    last = now
'''

LISTING = r'''
import os, sys
names = []
with os.scandir(sys.argv[1]) as entries:
    for entry in entries:
        names.append(entry.name)
        assert entry.stat().st_size == len(entry.name), entry.name
        for _ in range(10000): pass
assert sorted(names) == sorted(f'name-{number}' for number in range(3000)), (len(names), len(set(names)))
'''

PIPE = r'''
import hashlib, os, random, sys
rng = random.Random(int(sys.argv[1]))
digest = hashlib.sha256()
while True:
    data = os.read(0, rng.choice([1, 512, 4096, 70000]))
    if not data:
        break
    digest.update(data)
    for _ in range(20000): pass
    while data:
        data = data[os.write(1, data):]
sys.stderr.write(digest.hexdigest())
'''


class Job:
    """One run of one kind: its command, and what it has to leave."""

    def __init__(self, kind, name, seed):
        self.kind, self.name, self.seed = kind, name, seed
        self.out = f"{DIR}/{name}.out"
        self.source = f"{DIR}/in{seed % INPUTS}"
        self.digest = DIGESTS[seed % INPUTS]
        self.moves = 0
        self.moving = threading.Lock()
        self.feeder = self.sink = None
        getattr(self, "start_" + kind)()
        self.pid = self.process.pid
        self.started = time.monotonic()

    def whereabouts(self):
        """For people: what it does now, as far as can be seen from home."""
        shown = subprocess.run(["omfs", "ps"], stdout=subprocess.PIPE).stdout.decode()
        return f"{self.name}: {os.listdir(DIR)}\n{shown}"

    def spawn(self, args, **options):
        options.setdefault("stdout", open(self.out + ".stdout", "wb"))
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stderr", open(self.out + ".stderr", "wb"))
        self.process = subprocess.Popen(args, **options)
        for stream in options.values():
            if hasattr(stream, "close"):
                stream.close()

    def start_gzip(self):
        shutil.copyfile(self.source, self.out)
        self.spawn(["gzip", "-9", "-k", self.out])

    def check_gzip(self):
        return unpacked(self.out + ".gz", self.digest)

    def start_clock(self):
        self.spawn(["python3", "-c", CLOCK])

    def check_clock(self):
        return None

    def start_listing(self):
        self.spawn(["python3", "-c", LISTING, DIR + "/many"])

    def check_listing(self):
        return None

    def start_dd(self):
        self.spawn(["dd", "if=" + self.source, "of=" + self.out, "bs=41", "oflag=append", "status=none"])

    def check_dd(self):
        return same(self.out, self.source)

    def start_append(self):
        open(self.out, "wb").close()
        self.feeder = subprocess.Popen(["python3", "-c", APPEND, self.out, "b", str(self.seed + 1)])
        self.spawn(["python3", "-c", APPEND, self.out, "a", str(self.seed)])

    def check_append(self):
        """Each record is there once, whole, and after the one before."""
        if self.feeder.wait() != 0:
            return "the writer at home failed"
        wanted = {mark: random.Random(self.seed + add) for mark, add in (("a", 0), ("b", 1))}
        count = dict.fromkeys(wanted, 0)
        with open(self.out) as file:
            for line in file:
                mark = line[0]
                rng = wanted.get(mark, random)
                expected = f"{mark}{count.get(mark)}:" + "x" * rng.randrange(3000) + "\n"
                rng.randrange(20000)
                if line != expected:
                    return f"{line[:20]!r} ({len(line)} bytes) instead of {expected[:20]!r} ({len(expected)} bytes)"
                count[mark] += 1
        return None if set(count.values()) == {3000} else f"records: {count}"

    def start_redirect(self):
        # The descriptor that cat(1) writes to is shared with nobody once it runs.
        script = 'while IFS= read -r line; do echo "$line"; done <"$1" >>"$2"'
        self.spawn(["sh", "-c", script, "sh", DIR + "/lines", self.out])

    def check_redirect(self):
        return same(self.out, DIR + "/lines")

    def start_rewrite(self):
        self.spawn(["python3", "-c", REWRITE, self.out, str(self.seed)])

    def check_rewrite(self):
        return None

    def start_sort(self):
        os.makedirs(self.out + ".tmp")
        self.spawn(["sort", "-S", "300K", "--batch-size=4", "-T", self.out + ".tmp", DIR + "/numbers", "-o", self.out])

    def check_sort(self):
        return same(self.out, DIR + "/sorted") or left(self.out + ".tmp")

    def start_pipe(self):
        self.feeder = subprocess.Popen(["cat", self.source], stdout=subprocess.PIPE)
        self.sink = subprocess.Popen(["sh", "-c", 'cat >"$1"', "sh", self.out], stdin=subprocess.PIPE)
        self.spawn(["python3", "-c", PIPE, str(self.seed)], stdin=self.feeder.stdout, stdout=self.sink.stdin)

    def check_pipe(self):
        self.sink.wait()
        self.feeder.wait()
        with open(self.out + ".stderr") as file:
            if file.read() != self.digest:
                return "read something else"
        return same(self.out, self.source)

    def start_sqlite(self):
        script = ("PRAGMA journal_mode=DELETE; CREATE TABLE t(i INTEGER PRIMARY KEY, x INTEGER);"
                  "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200000) INSERT INTO t SELECT i,(i*7919)%10007 FROM n;"
                  + "".join(f"UPDATE t SET x=x+{k} WHERE i%{k}=0;" for k in range(2, 20))
                  + "SELECT count(*),sum(x) FROM t; PRAGMA integrity_check;")
        self.spawn(["sqlite3", self.out, script])

    def check_sqlite(self):
        expected = [(i * 7919) % 10007 + sum(k for k in range(2, 20) if i % k == 0) for i in range(1, 200001)]
        with open(self.out + ".stdout") as file:
            found = file.read()
        wanted = f"delete\n200000|{sum(expected)}\nok\n"
        return None if found == wanted else f"{found!r} instead of {wanted!r}"

    def verdict(self):
        status = self.process.wait()
        with open(self.out + ".stderr", errors="replace") as file:
            said = file.read()
        if status != 0:
            return f"status {status}: {said[-600:]}"
        return getattr(self, "check_" + self.kind)()


def runs_on(process):
    """Whether it was not just ending."""
    time.sleep(0.3)
    return process.poll() is None


def ended(error):
    """Whether a move failed because its job was just ending."""
    return any(words in error for words in (b"ended", b"there is no process", b"there is no such process"))


def left(directory):
    names = os.listdir(directory)
    return f"left behind: {names}" if names else None


def unpacked(path, digest):
    result = subprocess.run(["gzip", "-dc", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found = hashlib.sha256(result.stdout).hexdigest()
    if result.returncode != 0 or found != digest:
        return f"{os.path.getsize(path)} bytes compressed, {len(result.stdout)} unpacked: {result.stderr.decode()}"
    return None


def same(path, wanted):
    with open(path, "rb") as one, open(wanted, "rb") as two:
        found, expected = one.read(), two.read()
    if found == expected:
        return None
    first = next((at for at, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), min(len(found), len(expected)))
    return f"{len(found)} bytes instead of {len(expected)}, the first that differs is {first}"


INPUTS = 6
DIGESTS = []


def prepare(rng):
    shutil.rmtree(DIR, ignore_errors=True)
    os.makedirs(DIR)
    words = [rng.randbytes(rng.randrange(2, 12)) for _ in range(5000)]
    for number in range(INPUTS):
        data = b" ".join(rng.choice(words) for _ in range(rng.randrange(1_000_000, 2_000_000)))
        with open(f"{DIR}/in{number}", "wb") as file:
            file.write(data)
        DIGESTS.append(hashlib.sha256(data).hexdigest())
    with open(DIR + "/lines", "w") as file:
        file.writelines(f"{number} {rng.random()}\n" for number in range(60000))
    os.makedirs(DIR + "/many")
    for number in range(3000):
        with open(f"{DIR}/many/name-{number}", "w") as file:
            file.write(f"name-{number}")
    numbers = [f"{rng.random()}\n" for _ in range(700_000)]
    with open(DIR + "/numbers", "w") as file:
        file.writelines(numbers)
    with open(DIR + "/sorted", "w") as file:
        file.writelines(sorted(numbers))


class Stress:
    def __init__(self, seconds, seed, workers, kinds):
        self.until = time.monotonic() + seconds
        self.rng = random.Random(seed)
        self.workers, self.kinds = workers, kinds
        self.jobs, self.lock = {}, threading.Lock()
        self.wrong, self.done, self.moves = [], collections.Counter(), collections.Counter()
        self.refusals = collections.Counter()
        self.unmoved = collections.Counter()

    def work(self, worker):
        number = 0
        while time.monotonic() < self.until:
            with self.lock:
                kind, seed = self.kinds[(worker + number) % len(self.kinds)], self.rng.randrange(1 << 30)
            name = f"{kind}-{worker}-{number}"
            number += 1
            job = Job(kind, name, seed)
            with self.lock:
                self.jobs[job.pid] = job
            error = job.verdict()
            with self.lock:
                del self.jobs[job.pid]
                self.done[kind] += 1
                self.unmoved[kind] += job.moves == 0
                if error:
                    self.wrong.append(f"{name} (pid {job.pid}, {job.moves} moves): {error}")
            if not error:
                subprocess.run(f"rm -rf {job.out} {job.out}.*", shell=True)

    def move(self):
        while True:
            with self.lock:
                jobs = [job for job in self.jobs.values() if not job.moving.locked()]
                left = bool(self.jobs)
                job = self.rng.choice(jobs) if jobs else None
                target = self.rng.choice(TARGETS)
            if job is None:
                if not left and time.monotonic() > self.until:
                    return
                time.sleep(0.05)
                continue
            if time.monotonic() - job.started > JOB_SECONDS:
                with self.lock:
                    self.wrong.append(f"{job.name} (pid {job.pid}) hangs after {job.moves} moves")
                print(job.whereabouts(), file=sys.stderr)
                job.process.kill()
                time.sleep(1)
                continue
            begun = time.monotonic()
            with job.moving:
                command = ["omfs", "migrate", str(job.pid), target]
                result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if result.returncode == 0:
                job.moves += 1
                self.moves[target] += 1
            elif not ended(result.stderr) and runs_on(job.process):
                text = result.stderr.decode().strip().replace(str(job.pid), "PID")
                self.refusals[f"{job.kind}: {result.returncode} {text}"[:300]] += 1
            time.sleep(max(0.0, 0.3 / max(1, self.workers / 6) - (time.monotonic() - begun)))

    def run(self):
        threads = [threading.Thread(target=self.work, args=(worker,)) for worker in range(self.workers)]
        movers = [threading.Thread(target=self.move) for _ in range(2)]
        for thread in threads + movers:
            thread.start()
        for thread in threads + movers:
            thread.join()
        report = {"done": self.done, "moves": self.moves, "unmoved": self.unmoved,
                  "refused": dict(self.refusals.most_common(20)), "wrong": self.wrong}
        print(json.dumps(report, indent=1))
        return 1 if self.wrong or self.refusals else 0


def main():
    seconds, seed, workers = (int(word) for word in sys.argv[1:4])
    kinds = sys.argv[4:] or ["gzip", "append", "redirect", "rewrite", "sort", "pipe", "sqlite", "dd", "clock", "listing"]
    prepare(random.Random(seed))
    sys.exit(Stress(seconds, seed, workers, kinds).run())


main()
