"""What the checks ask of TensorFlow and JAX themselves."""

import keras

BACKEND = keras.backend.backend()


def compiled_step(optimizer, variables, traced, xla):
    """Returns `optimizer.apply` compiled by the backend, which calls `traced()` whenever it is traced."""
    if BACKEND == "jax":
        import jax  # pyright: ignore[reportMissingImports]

        @jax.jit
        def stateless(weights, state, gradients):
            traced()
            return optimizer.stateless_apply(state, gradients, weights)

        def step(gradients):
            weights, state = ([v.value for v in owner] for owner in (variables, optimizer.variables))
            weights, state = stateless(weights, state, gradients)
            for variable, value in zip((*variables, *optimizer.variables), (*weights, *state), strict=True):
                variable.assign(value)

        return step
    import tensorflow as tf

    @tf.function(jit_compile=xla)
    def step(gradients):
        traced()
        optimizer.apply(gradients, variables)

    return step


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


def replicated_step(strategy, optimizer, variables):
    """Returns a compiled step in which one replica has a quarter of each gradient, and the other the rest."""
    import tensorflow as tf

    @tf.function
    def step(gradients):
        def replica():
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            optimizer.apply([g * tf.where(first, tf.cast(0.25, g.dtype), 0.75) for g in gradients], variables)

        strategy.run(replica)

    return step
