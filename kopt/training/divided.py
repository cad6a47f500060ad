"""What models share whose weights lie on several devices."""

import functools


def of_any_arguments(init):
    """Makes a constructor take `(*args, **kwargs)`: by this all versions of Keras know that of a functional model."""

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)

    return wrapper


def check_compile(owner, jit_compile, objective):
    """Raises ValueError where XLA is to compile, or there is an objective."""
    if jit_compile is True:
        raise ValueError(f"{owner}: jit_compile must be False or 'auto', got True: XLA compiles for one device.")
    if objective is not None:
        raise ValueError(
            f"{owner}: objective must be None, got {type(objective).__name__}, which looks at all rows of a batch at "
            "once. Try kopt.Model."
        )
