"""TensorFlow in a forked process: it would wait for ever for threads that its parent alone has."""

import os
import sys

_inherited = False


def check_fork(owner):
    """Raises RuntimeError where TensorFlow had started before this process was forked from its parent."""
    if _inherited:
        raise RuntimeError(
            f"{owner}: TensorFlow must not compute in a process forked from one in which it had started, for it would "
            "hang. Start workers with joblib's 'loky' backend or multiprocessing.get_context('spawn')."
        )


def tensorflow_has_started():
    """Whether TensorFlow has begun to compute in this process; to import it alone does not count."""
    context = sys.modules.get("tensorflow.python.eager.context")
    context = context and context.context_safe()
    return context is not None and context._context_handle is not None


def _in_child():
    global _inherited
    _inherited = _inherited or tensorflow_has_started()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_in_child)
