"""Claims of processes on what there are few of: files that they lock for as long as they live."""

import contextlib
import itertools

from kopt._locks import lock

_held = contextlib.ExitStack()
"""Files that this process keeps open and locked: what it has claimed."""


def claim(names, directory):
    """Returns the one among the names that the fewest processes have claimed, and claims it as long as this one lives.

    Args:
        names: file names.
        directory: where the claims of all processes are.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    for turn in itertools.count():
        for name in names:
            file = _held.enter_context(open(directory / f"{name}-{turn}", "w"))  # noqa: SIM115
            try:
                lock(file, wait=False)
            except OSError:
                file.close()
            else:
                return name
