"""States of random generators for parts of a batch: each draws noise of its own, the same in every run."""

import tensorflow as tf

APART = 1_640_531_527
"""What the seeds of two parts differ by: an odd number about 0.382 · 2³², so that few are ever near."""


def reseeded(state, number):
    """The state of a generator for a part of this number, its own for the first."""
    return state + _away(state, number)


def as_before(state, number):
    """The state that `reseeded` was given, however often the generator has drawn since."""
    return state - _away(state, number)


def _away(state, number):
    shift = tf.cast(number, tf.int64) * APART % 2**31
    return tf.cast(tf.stack([shift, tf.zeros_like(shift)]), state.dtype)
