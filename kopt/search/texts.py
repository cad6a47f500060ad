"""Values as text, to compare them across processes."""

import re

import numpy as np
from joblib import hash
from sklearn.base import BaseEstimator


def plain(value):
    """Text that says what a value is, the same in every process."""
    match value:
        case dict():
            return "{" + ", ".join(f"{plain(key)}: {plain(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(plain, value)) + "]"
        case np.ndarray():
            return f"array({hash(value)})"
        case BaseEstimator() if not isinstance(value, type):
            return f"{plain(type(value))}({plain(value.get_params(deep=False))})"
        case object(dist=dist, args=args, kwds=kwds):  # a frozen distribution of scipy
            return f"{dist.name}({plain(args)}, {plain(kwds)})"
        case object(__qualname__=name, __module__=module):
            return f"{module}.{name}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
