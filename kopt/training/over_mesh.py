"""The sharded model of Keras's backend."""

import keras

from kopt._backend import on_tensorflow

if on_tensorflow():
    from kopt.training.sharded import ShardedModel
elif keras.backend.backend() == "jax":
    from kopt.training.sharded_on_jax import ShardedModel
else:
    raise ImportError(
        "kopt.ShardedModel: Keras's backend must be TensorFlow or JAX, which the environment variable KERAS_BACKEND "
        f"says, got {keras.backend.backend()}."
    )

__all__ = ["ShardedModel"]
