"""Locks of files, which end with the process that holds them, whatever happens to it."""

try:
    import fcntl

    def lock(file, wait=True):
        """Locks a file for as long as it is open; raises OSError where another has it and `wait` is not set."""
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)

except ModuleNotFoundError:  # Windows
    import msvcrt

    def lock(file, wait=True):
        """Locks a file for as long as it is open; raises OSError where another has it and `wait` is not set."""
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # pyright: ignore
