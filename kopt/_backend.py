"""What differs by backend: TensorFlow, with its graphs, devices and replicas, or JAX."""

import contextlib
import math
import types

import keras

from kopt._keras import in_stateless_scope


def on_tensorflow():
    """Whether Keras computes with TensorFlow."""
    return keras.backend.backend() == "tensorflow"


def compiled(function):
    """A function of tensors, in lists and dicts, compiled by the backend."""
    if on_tensorflow():
        import tensorflow as tf

        return tf.function(function, autograph=False, reduce_retracing=True)
    import jax  # pyright: ignore[reportMissingImports]

    return jax.jit(function)


def under_strategy():
    """Whether a strategy of `tf.distribute` has been entered: there may be several replicas."""
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def replicas():
    """How many replicas compute this step, each in its own thread."""
    if not under_strategy():
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(tensors):
    """Each of these tensors, or None, summed over all replicas; as they are where none computes."""
    if replicas() == 1:
        return tensors
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        return tensors
    reduce = tf.distribute.get_replica_context().all_reduce
    return [x if x is None else reduce("SUM", dense(x)) for x in tensors]


def places_of(variables):
    """The device of each variable where they lie on several, as the stages of a pipeline do; else None for each."""
    if not on_tensorflow() or under_strategy():
        return [None] * len(variables)
    found = [getattr(getattr(variable, "value", variable), "device", None) for variable in variables]
    return found if len(set(found)) > 1 else [None] * len(found)


def on_mesh(variable):
    """Whether a variable lies in parts over a mesh of TensorFlow's DTensor."""
    return on_tensorflow() and getattr(getattr(variable, "value", variable), "layout", None) is not None


def on_device(name):
    """A context that places what is made and computed in it; none where the name is None."""
    if name is None:
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.device(name)


def outside_the_trace():
    """A context in which variables are made and assigned at once, even while a function is being traced.

    Keras's `fit` on TensorFlow builds an optimizer inside its first trace, where assignments would be lost.
    """
    if not on_tensorflow():
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def dense(x):
    """What a variable or a gradient holds now, as a dense tensor; a later assignment does not change it."""
    x = x.value if isinstance(x, keras.Variable) else x
    if not on_tensorflow():
        return x
    import tensorflow as tf

    return tf.convert_to_tensor(x)


def assign(variable, value):
    """Sets a variable; where replicas compute, this replica's copy alone, so that no replica waits for another."""
    if not on_tensorflow() or in_stateless_scope():
        variable.assign(value)
        return
    local(variable).assign(value, read_value=False)


def local(variable):
    """TensorFlow's variable that a Keras variable is on this replica."""
    import tensorflow as tf

    variable = variable.value if isinstance(variable, keras.Variable) else variable
    if isinstance(variable, tf.distribute.DistributedValues) and not tf.distribute.in_cross_replica_context():
        variable = variable._get()
    return variable


def pure(optimizer):
    """The same optimizer, built, in a form whose `apply` changes nothing but the `keras.StatelessScope` around it.

    On TensorFlow, Keras's own assign past the scope, to the variables of a strategy. The methods that do so give way
    to those of the class that all backends share, unless a class has its own.

    Raises:
        ValueError: what the optimizer does cannot be had in this form.
    """
    if not on_tensorflow():
        return optimizer
    kind, who = type(optimizer), type(optimizer).__name__
    shared, own = (next(c for c in kind.__mro__ if c.__name__ == name) for name in ("BaseOptimizer", "TFOptimizer"))
    assigning = [name for name in vars(own) if name in vars(shared) and not name.startswith("__")]
    by_keras = kind._backend_apply_gradients is shared._backend_apply_gradients
    if "_backend_update_step" in {n for c in kind.__mro__[: kind.__mro__.index(own)] for n in vars(c)}:
        raise ValueError(f"keras.optimizers.{who} assigns past a keras.StatelessScope. Try kopt.{who}.")
    if by_keras and (optimizer.gradient_accumulation_steps or optimizer.ema_overwrite_frequency):
        raise ValueError(
            f"keras.optimizers.{who} assigns past a keras.StatelessScope with gradient_accumulation_steps or "
            f"ema_overwrite_frequency. Try kopt.{who}."
        )
    free = object.__new__(kind)
    free.__dict__.update(vars(optimizer))
    for name in assigning:
        if getattr(kind, name) is vars(own)[name]:
            free.__dict__[name] = types.MethodType(vars(shared)[name], free)
    free.__dict__["_trainable_variables_indices"] = {
        free._var_key(variable): number for number, variable in enumerate(optimizer._trainable_variables)
    }
    return free


def stack(tensors):
    """Tensors of one shape and dtype along a new first axis; on TensorFlow one operation."""
    if not on_tensorflow():
        return keras.ops.stack(tensors)
    import tensorflow as tf

    return tf.raw_ops.Pack(values=tensors, axis=0)


def unstack(array, number):
    """The parts of an array along its first axis, of that length; on TensorFlow one operation."""
    if not on_tensorflow():
        return [array[i] for i in range(number)]
    import tensorflow as tf

    return tf.raw_ops.Unpack(value=array, num=number, axis=0)


def cholesky(a):
    """The lower Cholesky factor, with a diagonal that is not finite where a matrix is not positive definite."""
    if on_tensorflow():  # Keras's own raises
        import tensorflow as tf

        return tf.linalg.cholesky(a)
    import jax  # pyright: ignore[reportMissingImports]

    return jax.numpy.linalg.cholesky(a)


def fused(function, state, variables):
    """What a pure function makes of a state, by one kernel where that is faster.

    Args:
        function: takes the state and returns one like it.
        state: tensors, in dicts and tuples.
        variables: the variables that hold the state, in the same dicts and tuples, or None in the place of some. The
            kernel reads and assigns them itself, without a copy; the state that is returned has None in their place.
    """
    if not _in_a_plain_graph():
        return function(state)

    def assigning():
        new = function(_each(lambda x, v: keras.ops.cast(dense(v), x.dtype), state, variables))

        def keep(value, variable):
            return assign(variable, keras.ops.cast(value, variable.dtype))

        return _each(keep, new, variables)

    return kernel(assigning)


def kernel(function, *tensors):
    """What a function makes of tensors, by one kernel where that is faster: in a plain TensorFlow graph, by XLA.

    Run eagerly it would compile at each call, XLA takes no part in a step of several replicas, and in a
    `keras.StatelessScope` nothing is to be assigned.
    """
    if not _in_a_plain_graph():
        return function(*tensors)
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)(*tensors)


def _in_a_plain_graph():
    if not on_tensorflow() or under_strategy() or in_stateless_scope():
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def _each(function, values, variables):
    """`function(value, variable)` in the place of each value whose variable is given, in dicts and tuples."""
    if variables is None:
        return values
    if isinstance(values, dict):
        return {name: _each(function, value, variables[name]) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_each(function, *pair) for pair in zip(values, variables, strict=True))
    return function(values, variables)


def normal(shape, seed, t, dtype):
    """Standard normal numbers that depend on an integer seed and on the step alone: the same on every replica."""
    x = uniform((2, *shape), seed, t, "float32")  # by Box and Muller, since XLA's own normal numbers are others
    return keras.ops.cast(keras.ops.sqrt(-2 * keras.ops.log1p(-x[0])) * keras.ops.cos(2 * math.pi * x[1]), dtype)


def uniform(shape, seed, t, dtype):
    """Numbers in [0, 1) that depend on an integer seed and on the step alone: the same on every replica."""
    t = keras.ops.cast(t, "int32")
    if on_tensorflow():
        import tensorflow as tf

        seeds = tf.stack([tf.constant(seed, "int32"), t])  # of all draws, those of whole numbers agree with XLA's
        bits = tf.random.stateless_uniform(shape, seeds, minval=None, maxval=None, dtype=tf.uint32, alg="philox")  # pyright: ignore[reportArgumentType]
        bits = tf.cast(tf.bitwise.right_shift(bits, 8), tf.int32)
    else:
        import jax  # pyright: ignore[reportMissingImports]

        bits = jax.random.bits(jax.random.fold_in(jax.random.key(seed), t), shape, "uint32") >> 8
    return keras.ops.cast(bits, dtype) * 2.0**-24
