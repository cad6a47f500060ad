"""Starts a script as several workers of `tf.distribute`, and starts all of them again when one dies.

A worker that has lost another cannot go on, nor can a new one join it: TensorFlow's collectives are of a fixed group of
processes. So all end and all begin, on other ports, from the last `kopt.Checkpoint`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from kopt._checks import Refusal

GRACE = 60.0
"""Seconds that workers have to save and to end, once they are told to."""

PORT = 2222
"""For workers on machines of their own: TensorFlow's customary one."""


def run(arguments):
    """Runs `python -m kopt launch` with these arguments, and returns its exit code.

    It is 0 if all workers end with 0. Else it is that of the one whose death was one too many; 128 and the signal's
    number where a signal ended it, or the launch.

    Raises:
        Refusal: of what cannot be had.
    """
    asked = _parser().parse_args(arguments)
    if asked.workers < 1:
        raise Refusal(f"--workers must be 1 or more, got {asked.workers}.")
    if asked.restarts < 0:
        raise Refusal(f"--restarts must be 0 or more, got {asked.restarts}.")
    if not asked.script.is_file():
        raise Refusal(f"launch: the script must be a file, got {asked.script}.")
    command = [str(asked.script), *asked.arguments]
    if asked.print:
        print(_instructions(command, asked.workers))
        return 0
    shares = _shares(_gpus(), asked.workers)
    with _Told() as told:
        code = 0
        for left in reversed(range(asked.restarts + 1)):
            fate = f"are started again ({asked.restarts - left + 1} of {asked.restarts})" if left else "end"
            code = _Launch(command, shares).supervise(told, fate)
            if code == 0 or told.signal:
                break
        return 128 + told.signal if code and told.signal else code


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m kopt launch",
        description="Starts a script as several processes of tf.distribute.MultiWorkerMirroredStrategy on this "
        "machine. When one dies, all are started again: with kopt.Checkpoint they go on from the last step it saved.",
    )
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="processes")
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="deaths to survive (default: 3)")
    parser.add_argument("--print", action="store_true", help="only say what to start on each of several machines")
    parser.add_argument("script", type=pathlib.Path, help="a Python script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    return parser


def _say(sentence):
    print(f"kopt launch: {sentence}", file=sys.stderr, flush=True)


# ---- what workers are told -------------------------------------------------------------------------------------------


def cluster(addresses, number):
    """The value of TF_CONFIG for one of the workers at these addresses; the first one is the chief."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}})


def _instructions(command, workers):
    """What to start on each of several machines."""
    addresses = [f"machine{number}:{PORT}" for number in range(workers)]
    lines = [
        f"On several machines, start on each, with their names or addresses in the place of machine0 to machine"
        f"{workers - 1}, any free ports,",
        "the same data, and a folder for kopt.Checkpoint that all of them can read and machine0 can write:",
        "",
    ]
    for number in range(workers):
        setting = shlex.quote(cluster(addresses, number))
        lines.append(f"TF_CONFIG={setting} {shlex.join(['python', *command])}")
    return "\n".join([*lines, "", "When one dies, end the others, and start all of them again in the same way."])


def _free_addresses(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _gpus():
    """The names of the GPUs that CUDA shows to this process, found without starting it."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in chosen.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), None)]
    return [str(number) for number, _ in enumerate(pathlib.Path("/proc/driver/nvidia/gpus").glob("*"))]


def _shares(gpus, workers):
    """The GPUs of each worker: NCCL allows no two processes on one."""
    if 0 < len(gpus) < workers:
        raise Refusal(
            f"--workers must be at most the number of GPUs, which is {len(gpus)}, got {workers}. Set "
            "CUDA_VISIBLE_DEVICES=-1 to train on the CPU."
        )
    return [gpus[len(gpus) * i // workers : len(gpus) * (i + 1) // workers] for i in range(workers)]


# ---- workers ---------------------------------------------------------------------------------------------------------


class _Told:
    """Notes signals to end while it is entered.

    Attributes:
        signal: the first one's number, or None.
        again: whether there was another one.
    """

    def __init__(self):
        self.signal, self.again = None, False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.signal, self.again = self.signal or number, self.signal is not None


class _Worker:
    """A process whose lines of output are repeated here with its number before them."""

    output = threading.Lock()

    def __init__(self, number, command, environment):
        self.number = number
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the launch, which tells it when the time has come
        )
        pipes = (self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)
        self._threads = [threading.Thread(target=self._repeat, args=pair, daemon=True) for pair in pipes]
        for thread in self._threads:
            thread.start()

    def _repeat(self, pipe, output):
        for line in pipe:
            with self.output:
                output.write(f"[{self.number}] {line.rstrip()}\n")
                output.flush()

    @property
    def code(self):
        """The exit code as a shell has it; None while it runs."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    def end(self):
        """Tells it to end."""
        if self.code is None:
            self.process.terminate()

    def kill(self):
        """Ends it, and what it has started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=5)


class _Launch:
    """All workers, once.

    Args:
        command: script and arguments.
        shares: the names of GPUs for each.
    """

    def __init__(self, command, shares):
        addresses = _free_addresses(len(shares))
        self.workers = []
        for number, gpus in enumerate(shares):
            environment = {"TF_CONFIG": cluster(addresses, number), "PYTHONUNBUFFERED": "1"}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            self.workers.append(_Worker(number, command, environment))
        _say(f"{len(shares)} workers, processes {', '.join(str(worker.process.pid) for worker in self.workers)}.")

    def supervise(self, told, fate):
        """Waits until all have ended, or one has died; returns the exit code, when none runs any more.

        Args:
            told: a `_Told`.
            fate: what becomes of all when one dies, for the sentence that says so.
        """
        try:
            dead, deadline = None, None
            while dead is None and any(worker.code is None for worker in self.workers):
                time.sleep(0.05)
                if told.signal and deadline is None:
                    deadline = time.monotonic() + GRACE
                    _say(f"{signal.Signals(told.signal).name}: workers save and end; another signal kills them.")
                    for worker in self.workers:
                        worker.end()
                if deadline and (told.again or time.monotonic() > deadline):
                    break
                if not deadline:
                    dead = next((worker for worker in self.workers if worker.code), None)
            if dead is not None:
                _say(f"worker {dead.number} {_ending(dead.code)}; all {fate}.")
        finally:
            for worker in self.workers:
                worker.kill()
        return dead.code if dead is not None else max(worker.code or 0 for worker in self.workers)


def _ending(code):
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(code - 128).name}"
    return f"ended with code {code}"
