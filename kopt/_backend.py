"""What kopt needs of Keras beyond its public interface, and what differs by backend: all in this one place."""

import contextlib
import functools
import inspect
import math
import types
from typing import Any

import keras
from keras.src.backend.common import global_state, masking
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.losses import loss as _loss
from keras.src.models.functional import Functional
from keras.src.trainers.data_adapters import array_data_adapter, array_slicing
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.utils.python_utils import pythonify_logs

PRIVATE = {
    keras.callbacks.Callback: ("_model",),
    keras.Variable: ("_initialize", "_value"),
    Functional: (
        "_nodes_by_depth",
        "_outputs_struct",
        "_run_through_graph",
        "_standardize_inputs",
    ),
    keras.Model: (
        "_assert_compile_called",
        "_call_has_training_arg",
        "_compile_loss",
        "_compute_loss",
        "_distribute_strategy",  # on TensorFlow
        "_flatten_layers",
        "_flatten_metrics_in_order",
        "_initial_epoch",
        "_loss_tracker",  # once compiled
        "_should_eval",
        "_symbolic_build",
    ),
    keras.optimizers.Optimizer: (
        "_accumulated_gradients",  # where gradients accumulate
        "_backend_apply_gradients",
        "_check_super_called",
        "_clip_gradients",
        "_distribution_strategy",  # on TensorFlow
        "_get_current_learning_rate",
        "_get_variable_index",
        "_iterations",
        "_learning_rate",
        "_model_variables_moving_average",  # where use_ema is set
        "_overwrite_variable_with_gradient",
        "_track_variable",
        "_trainable_variables",
        "_trainable_variables_indices",
        "_untrack_variable",
        "_var_key",
    ),
}
"""Private attributes of Keras's objects that kopt reads, calls or overrides."""


REDUCTIONS: Any = _loss
"""Keras's module of how the values of a loss become one."""


def batches_of(x, y=None, sample_weight=None, **how):
    """Keras's iterator over batches: what checks the arguments of `fit` that are about data, and knows their number."""
    return EpochIterator(x, y, sample_weight, **how)


def are_arrays(*data):
    """Whether all of this is arrays, or None, in tuples and dictionaries."""
    return array_data_adapter.can_convert_arrays(data)


def as_tensors(arrays):
    """Arrays as Keras hands them to TensorFlow: floats in its default type, columns of frames as numbers."""
    return array_slicing.convert_to_sliceable(arrays, target_backend="tensorflow")


def split(arrays, validation_split):
    """Keras's parts of arrays for training and for validation: the last rows."""
    return array_slicing.train_validation_split(arrays, validation_split)


def numbers(logs):
    """Logs as Python's numbers, by sorted names."""
    return pythonify_logs(logs)


def is_seed(variable):
    """Whether a variable is the state of a random number generator."""
    return variable.path.endswith("seed_generator_state")


def mask_of(x):
    """The mask that a tensor carries, or None."""
    return masking.get_keras_mask(x)


def give_mask(x, mask):
    """Lets a tensor carry a mask, as what `keras.layers.Masking` makes does."""
    masking.set_keras_mask(x, mask)


def nodes_of(model):
    """The calls of operations that a functional model consists of, each after those that it needs."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


def outputs_of(model, flat):
    """Outputs of a functional model, in a list, in the structure in which it returns them."""
    packed = keras.tree.pack_sequence_as(model._outputs_struct, flat)
    return packed[0] if isinstance(packed, (list, tuple)) and len(packed) == 1 else packed


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


@functools.cache
def sums_activity():
    """Whether Keras adds an activity regularizer's loss up over rows, as it did once, and takes no mean of them."""
    layer = keras.layers.ActivityRegularization(l1=1.0)
    with outside_the_trace(), keras.StatelessScope(collect_losses=True) as scope:
        layer(keras.ops.ones((2, 1)))
        return float(keras.ops.convert_to_numpy(scope.losses[0])) > 1.5


@contextlib.contextmanager
def activity_as_means(layers, share):
    """A context in which losses of activity regularizers, times the rows' share of a batch, add up to the batch's.

    Args:
        layers: that have them, or layers inside that do.
        share: the part that the rows are of the batch; where it is 0, so are the losses.
    """
    every = {id(each): each for layer in layers for each in layer._flatten_layers()}.values()
    regular = [layer for layer in every if layer.activity_regularizer is not None] if sums_activity() else []
    given = [layer.activity_regularizer for layer in regular]

    def scaled(regularizer):
        return lambda x: keras.ops.divide_no_nan(regularizer(x), keras.ops.cast(share, x.dtype))

    for layer, regularizer in zip(regular, given):
        layer.activity_regularizer = scaled(regularizer)
    try:
        yield
    finally:
        for layer, regularizer in zip(regular, given):
            layer.activity_regularizer = regularizer


def places_of(variables):
    """The device of each variable where they lie on several, as the stages of a pipeline do; else None for each."""
    if not on_tensorflow() or under_strategy():
        return [None] * len(variables)
    found = [getattr(getattr(variable, "value", variable), "device", None) for variable in variables]
    return found if len(set(found)) > 1 else [None] * len(found)


def on_device(name):
    """A context that places what is made and computed in it; none where the name is None."""
    if name is None:
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.device(name)


def as_stored():
    """A context in which variables are read in their own type, whatever the policy of the layer that reads them."""
    return AutocastScope(None)


@contextlib.contextmanager
def sketching():
    """A scope in which variables get no values of their own, and which forgets them: Keras would wait to make them."""
    waiting = list(global_state.get_global_attribute("uninitialized_variables", []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", waiting)


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
    _local(variable).assign(value, read_value=False)


def _local(variable):
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
    """What a pure function makes of a state, by one kernel where that is faster: in a plain TensorFlow graph, by XLA.

    Run eagerly it would compile at each call, XLA takes no part in a step of several replicas, and in a
    `keras.StatelessScope` nothing is to be assigned.

    Args:
        function: takes the state and returns one like it.
        state: tensors, in dicts and tuples.
        variables: the variables that hold the state, in the same dicts and tuples, or None in the place of some. The
            kernel reads and assigns them itself, without a copy; the state that is returned has None in their place.
    """
    if not on_tensorflow() or under_strategy() or in_stateless_scope():
        return function(state)
    import tensorflow as tf

    if tf.executing_eagerly():
        return function(state)

    def kernel():
        new = function(_each(lambda x, v: keras.ops.cast(dense(v), x.dtype), state, variables))

        def keep(value, variable):
            return assign(variable, keras.ops.cast(value, variable.dtype))

        return _each(keep, new, variables)

    return tf.function(kernel, jit_compile=True, autograph=False)()


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


class Traced:
    """What a plain `keras.Model` lets an oracle tell: gradients and, by differentiating them in their graph, products.

    `kopt.training.oracle.Oracle` answers whatever is asked; all else is refused here.

    Args:
        grads: the gradients, one for each variable.
        variables: the weights.
        owner: who asks, for errors.
    """

    def __init__(self, grads, variables, owner):
        self._grads, self._variables, self._owner = [dense(g) for g in grads], variables, owner

    def __getattr__(self, name):
        raise ValueError(
            f"{self._owner} asks more of each batch than its gradient, and keras.Model shows it that alone. "
            "Try kopt.Model(model.inputs, model.outputs)."
        )

    def __call__(self):
        return self.loss()  # which is not shown

    @property
    def weights(self):
        """A tensor for each weight."""
        return [dense(v) for v in self._variables]

    def gradients(self):
        """The gradient for each weight."""
        return self._grads

    def gradients_and_hvp(self):
        """The gradients, and `hvp`."""
        return self._grads, self.hvp

    @property
    def hvp(self):
        """A function that multiplies vectors, a tensor for each weight, by the Hessian of the loss."""
        if not on_tensorflow():
            return self.curvature  # which there is none of
        import tensorflow as tf

        if tf.executing_eagerly():
            raise ValueError(
                f"{self._owner} differentiates gradients, which are numbers in a keras.Model that is run eagerly. Try "
                "run_eagerly=False, or kopt.Model(model.inputs, model.outputs)."
            )
        if any(op.type == "StopGradient" and "moments/" in op.name for g in _graphs() for op in g.get_operations()):
            raise ValueError(
                f"{self._owner} differentiates gradients, and in a keras.Model those of layers that normalize have "
                "wrong derivatives: tf.nn.moments stops one. Try kopt.Model(model.inputs, model.outputs), which does "
                "not."
            )
        return self._product

    def _product(self, vectors):
        import tensorflow as tf

        slope = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(self._grads, vectors, strict=True)])
        handles = [_as_read(_local(variable).handle) for variable in self._variables]
        slopes: Any = tf.gradients(slope, [x for x in handles if x is not None])
        found = iter(slopes)
        products = [None if x is None else next(found) for x in handles]
        return [tf.zeros_like(v) if x is None else dense(x) for x, v in zip(products, vectors, strict=True)]

    @property
    def replicas(self):
        """How many replicas have an oracle each."""
        return replicas()

    def sum(self, tensors):
        """Each tensor of a list summed over all replicas."""
        return sum_over_replicas(tensors)


def _graphs():
    """The graph that is being built, and those around it, the outermost first."""
    import tensorflow as tf

    graphs: list[Any] = [tf.compat.v1.get_default_graph()]
    while (outer := getattr(graphs[0], "outer_graph", None)) is not None:
        graphs.insert(0, outer)
    return graphs


def _as_read(handle):
    """What stands for a variable's handle in the outermost graph that reads it, where a gradient has to arrive."""
    known = {id(handle)}
    for graph in _graphs():
        for outside, inside in getattr(graph, "captures", ()):
            if id(outside) in known:
                known.add(id(inside))
                if any(op.type in ("ReadVariableOp", "ResourceGather") for op in inside.consumers()):
                    return inside
    return None


OPTIMIZER_OPTIONS = {
    option.name: option.default
    for cls in keras.optimizers.Optimizer.__mro__
    if "clipnorm" in inspect.signature(cls.__init__).parameters
    for option in inspect.signature(cls.__init__).parameters.values()
    if option.name not in ("self", "learning_rate", "kwargs")
}
"""The options that every Keras optimizer takes, with their defaults."""
