"""A file of records that only grows: what survives a kill, and what several processes share."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import uuid

from kopt._locks import lock


class Journal:
    """Records in the order in which they were written, a line of JSON each.

    A line counts once it is whole: what a killed writer left of one is cut off by the next writer.

    Args:
        directory: where the files are; it must exist.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.path = self.directory / "journal.jsonl"
        self._read = 0  # bytes

    @contextlib.contextmanager
    def locked(self):
        """Keeps all others, processes and threads, from writing."""
        with open(self.directory / "lock", "w") as file:
            lock(file)
            yield

    def news(self):
        """Returns the records that were written since the last call."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        return [json.loads(line) for line in whole.splitlines()]

    def restart(self):
        """Makes the next `news` begin with the second record: the first says what the journal is."""
        with open(self.path, "rb") as file:
            self._read = len(file.readline())

    def append(self, record):
        """Adds a record, and returns when it is on the disk. Needs the lock."""
        line = json.dumps(record, default=_plain).encode() + b"\n"
        with open(self.path, "ab+") as file:
            self._cut(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _cut(file):
        """Cuts off a line that was not finished."""
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)

    def write(self, record):
        """Adds a record, and waits for the lock."""
        with self.locked():
            self.append(record)

    def __getstate__(self):
        return {**vars(self), "_read": 0}


def _plain(value):
    """NumPy's numbers as Python's, which JSON writes in full."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is no number")


class Worker:
    """A process at work on a search, which others see to be alive.

    Its file is locked as long as it lives, so that on its own machine its end is seen at once; machines that share a
    directory see the file's time, renewed by a thread, and count it as gone when that is too old.

    Args:
        directory: of the search.
        patience: after how many seconds without a sign of life a worker counts as gone.
    """

    def __init__(self, directory, patience):
        self.directory, self.patience = pathlib.Path(directory) / "workers", patience
        self._host = socket.gethostname()
        self.name = f"{self._host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def __enter__(self):
        self.directory.mkdir(exist_ok=True)
        self._file = open(self.directory / self.name, "w")
        lock(self._file)
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _beat(self):
        while not self._over.wait(self.patience / 4):
            os.utime(self.directory / self.name)

    def __exit__(self, *error):
        self._over.set()
        self._file.close()
        (self.directory / self.name).unlink(missing_ok=True)

    def is_gone(self, name):
        """Whether another worker will never come back to what it began."""
        path, own = self.directory / name, self.directory / self.name
        os.utime(own)  # what time it is where the files are
        try:
            if own.stat().st_mtime - path.stat().st_mtime > self.patience:
                return True
            if not name.startswith(f"{self._host}-"):  # not every file system has locks across machines
                return False
            with open(path, "r+") as file:
                lock(file, wait=False)
        except FileNotFoundError:
            return True
        except OSError:  # locked
            return False
        return True  # who locked it has died
