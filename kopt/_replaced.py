"""Functions of other libraries' modules, replaced as long as somebody needs it."""

import threading


class Replaced:
    """A context in which functions of a module are others: entered by any number of threads, left by the last.

    Args:
        module: the module.
        **others: the functions, by the names of those that they replace.
    """

    def __init__(self, module, **others):
        self._module, self._others = module, others
        self._theirs = {name: getattr(module, name) for name in others}
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self):
        with self._lock:
            self._inside += 1
            self._put(self._others)

    def __exit__(self, *error):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._put(self._theirs)

    def _put(self, functions):
        for name, function in functions.items():
            setattr(self._module, name, function)
