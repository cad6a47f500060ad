"""What kopt needs of Keras beyond its public interface, and what differs by backend: all in this one place."""

import contextlib
import inspect

import keras

PRIVATE = {
    keras.Model: ("_flatten_layers",),
    keras.optimizers.Optimizer: (
        "_all_reduce_sum_gradients",  # on TensorFlow only
        "_apply_weight_decay",
        "_backend_apply_gradients",
        "_backend_update_step",
        "_check_super_called",
        "_distribution_strategy",  # on TensorFlow only
        "_get_current_learning_rate",
        "_get_variable_index",
        "_learning_rate",
        "_overwrite_variable_with_gradient",
        "_trainable_variables",
        "_untrack_variable",
    ),
}
"""Private attributes of Keras's objects that kopt reads, calls or overrides."""


def outside_the_trace():
    """A context in which variables are made and assigned at once, even while a function is being traced.

    Keras's `fit` on TensorFlow builds an optimizer inside its first trace, where assignments would be lost.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def is_mirrored(optimizer):
    """Whether an optimizer was made in the scope of a strategy that keeps a copy of each variable on every device."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    if strategy is None:
        return False
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy)


def dense(x):
    """What a variable or a gradient holds now, as a dense tensor; a later assignment does not change it."""
    x = x.value if isinstance(x, keras.Variable) else x
    if keras.backend.backend() != "tensorflow":
        return x
    import tensorflow as tf

    return tf.convert_to_tensor(x)


OPTIMIZER_OPTIONS = {
    option.name: option.default
    for cls in keras.optimizers.Optimizer.__mro__
    if "clipnorm" in inspect.signature(cls.__init__).parameters
    for option in inspect.signature(cls.__init__).parameters.values()
    if option.name not in ("self", "learning_rate", "kwargs")
}
"""The options that every Keras optimizer takes, with their defaults."""
