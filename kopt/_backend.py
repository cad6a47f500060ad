"""What kopt needs of Keras beyond its public interface, and what differs by backend: all in this one place."""

import contextlib
import inspect

import keras

PRIVATE = (
    "_all_reduce_sum_gradients",
    "_apply_weight_decay",
    "_backend_apply_gradients",
    "_backend_update_step",
    "_get_current_learning_rate",
    "_get_variable_index",
    "_learning_rate",
    "_overwrite_variable_with_gradient",
    "_untrack_variable",
)
"""Private attributes of a Keras optimizer that kopt reads, calls or overrides (the first on TensorFlow only)."""


def outside_the_trace():
    """A context in which variables are made and assigned at once, even while a function is being traced.

    Keras's `fit` on TensorFlow builds an optimizer inside its first trace, where assignments would be lost.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


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
