"""What the checks ask of TensorFlow and JAX themselves."""

import re

import keras

BACKEND = keras.backend.backend()


def compiled_step(take, optimizer, variables, traced, xla):
    """Returns `take(gradients)`, a step, compiled by the backend, which calls `traced()` whenever it is traced."""
    if BACKEND == "jax":
        import jax  # pyright: ignore[reportMissingImports]

        changed = [*variables, *optimizer.variables]

        @jax.jit
        def stateless(values, gradients):
            traced()
            with keras.StatelessScope(list(zip(changed, values, strict=True))) as scope:
                take(gradients)
            return [scope.get_current_value(variable) for variable in changed]

        def step(gradients):
            for variable, value in zip(changed, stateless([v.value for v in changed], gradients), strict=True):
                variable.assign(value)

        return step
    import tensorflow as tf

    @tf.function(jit_compile=xla, autograph=not xla)  # one of the two shows that AutoGraph changes nothing
    def step(gradients):
        traced()
        take(gradients)

    return step


FACTORIZATIONS = {"Eigh", "Qr", "ProductOfElementaryHouseholderReflectors", "Cholesky", "TriangularSolve"}
"""Calls that XLA makes of matrix factorizations on a CPU, and unrolls elsewhere."""


def not_for_tpus(function, *arguments):
    """What of a function that XLA has compiled a TPU has not: types, shapes that depend on values, calls of the host.

    It is read from XLA's program for this machine: what is found there no TPU can run; what is not may fail all the
    same. On JAX nothing is looked for.

    Args:
        function: what `compiled` or `compiled_step` returned for XLA.
        *arguments: those that it was called with.
    """
    if BACKEND == "jax":
        return []
    program = function.experimental_get_compiler_ir(*arguments)(stage="hlo")
    calls = set(re.findall(r'custom_call_target="([^"]+)"', program)) - FACTORIZATIONS
    kinds = {"float64": "f64[", "complex128": "c128[", "a dimension of unknown size": "<="}
    return [*(kind for kind, sign in kinds.items() if sign in program), *sorted(calls)]


def looking(model):
    """A model of these layers whose optimizer may look at a batch more than once."""
    from kopt.training.model import Model

    return Model(model.inputs, model.outputs)


def sparse_rows(values, rows, shape):
    """A gradient that names a few rows of a matrix, as an embedding's does; dense where there is no such thing."""
    if BACKEND == "jax":
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

        return jnp.zeros(shape, values.dtype).at[rows].add(values)
    import tensorflow as tf

    return tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant(shape))


def two_devices():
    """Names of two logical CPU devices, or None where there are not as many."""
    if BACKEND != "tensorflow":
        return None
    import tensorflow as tf

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    return names[:2] if len(names) > 1 else None


def mirrored(devices):
    """A strategy with one replica on each device."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def replicated_step(strategy, take):
    """Returns a compiled step in which one replica has a quarter of each gradient, and the other the rest."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def step(gradients):
        def replica():
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            take(gradients, tf.where(first, tf.constant(0.25, gradients[0].dtype), 0.75))

        strategy.run(replica)

    return step


def has_float64():
    """Whether the backend computes in float64: JAX does only when told so."""
    return keras.backend.standardize_dtype(keras.ops.convert_to_tensor(1.0, "float64").dtype) == "float64"


def compiled(function, xla):
    """The same function of tensors, in lists, compiled by the backend."""
    if BACKEND == "jax":
        import jax  # pyright: ignore[reportMissingImports]

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=xla, autograph=False)


def at_once(function):
    """The same function; compiled on JAX, which else compiles each operation alone, and anew for each shape."""
    return compiled(function, xla=True) if BACKEND == "jax" else function


def graphs():
    """Whether to compile with XLA, for each way to compile that there is."""
    return (True,) if BACKEND == "jax" else (True, False)


def gradients(function, tensors):
    """The gradient of a scalar function by each tensor of a list; zeros for one without a part in it."""
    if BACKEND == "jax":
        import jax  # pyright: ignore[reportMissingImports]

        return jax.grad(function)(tensors)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(tensors)
    return tape.gradient(value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def on_replicas(strategy, function, parts):
    """What `function(part)` returns, a list of tensors, on each replica: lists by replica. Each replica has a part."""
    import tensorflow as tf

    values = strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group]
    )
    found = tf.function(lambda part: strategy.run(function, args=(part,)), autograph=False)(values)
    return list(zip(*map(strategy.experimental_local_results, found), strict=True))
