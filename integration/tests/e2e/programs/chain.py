"""A long job: writes a chain of digests until it finds the file STOP, and reads each of them back.

Usage: chain.py OUT STOP [COUNT]; with COUNT it ends after as many digests, whatever STOP is.
"""
import hashlib
import os
import sys

path, stop = sys.argv[1], sys.argv[2]
count = int(sys.argv[3]) if len(sys.argv) > 3 else None
value = b"omfs"
number = offset = 0
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
while number != count if count is not None else not os.path.exists(stop):
    for _ in range(2000):
        value = hashlib.sha256(value).digest()
    line = f"{number} {value.hex()}\n".encode()
    assert os.write(fd, line) == len(line)
    assert os.pread(fd, 1000, offset) == line
    number += 1
    offset += len(line)
    assert os.fstat(fd).st_size == offset == os.lseek(fd, 0, os.SEEK_CUR)
