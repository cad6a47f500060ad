"""Callbacks of scikit-learn, which has them from version 1.9 on."""

import contextlib
from typing import Any

Mixin: Any = object
with contextlib.suppress(ModuleNotFoundError):
    from sklearn.callback import CallbackSupportMixin as Mixin


class CallbackSupport(Mixin):
    """Gives an estimator `set_callbacks`; with an older scikit-learn, nothing."""
