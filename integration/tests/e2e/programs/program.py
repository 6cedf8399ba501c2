"""Threads, a file, time.sleep and a signal handler; everything it prints must not depend on time."""
import os
import signal
import sys
import threading
import time

ticks = 0


def on_alarm(_number, _frame):
    global ticks
    ticks += 1


signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
results = {}
lock = threading.Lock()


def work(index):
    value = index
    for step in range(600_000):
        value = (value * 1103515245 + 12345) % 2147483648
        if step % 40_000 == 0:
            time.sleep(0.01)
    with lock:
        results[index] = value


threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
started = time.monotonic()
for thread in threads:
    thread.start()
with open(sys.argv[1], "w") as out:
    for line in range(4000):
        out.write(f"{line} {os.getpid() > 0}\n")
        if line % 200 == 0:
            out.flush()
            time.sleep(0.1)
for thread in threads:
    thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
assert ticks >= 2, ticks
assert 0.9 < time.monotonic() - started < 100
assert os.path.getsize(sys.argv[1]) > 10_000
print(sorted(results.items()))
