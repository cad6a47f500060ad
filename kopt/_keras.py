"""What kopt needs of Keras beyond its public interface: all in this one place."""

import contextlib
import inspect
from typing import Any

import keras
from keras.src.backend.common import global_state, masking, stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.losses import loss as _loss
from keras.src.models.functional import Functional
from keras.src.trainers.data_adapters import array_data_adapter, array_slicing
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.utils.python_utils import pythonify_logs

PRIVATE = {
    keras.callbacks.Callback: ("_model",),
    keras.Variable: ("_direct_assign", "_initialize", "_value"),
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


FUNCTIONAL: Any = Functional
"""Keras's class of functional models, which it does not export."""

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


def in_stateless_scope():
    """Whether a `keras.StatelessScope` is entered."""
    return stateless_scope.in_stateless_scope()


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


def lie_as(variable, layout):
    """Lets a variable lie over devices as a `keras.distribution.TensorLayout` has it: on JAX."""
    variable._layout = layout
    variable._direct_assign(variable.value)


OPTIMIZER_OPTIONS = {
    option.name: option.default
    for cls in keras.optimizers.Optimizer.__mro__
    if "clipnorm" in inspect.signature(cls.__init__).parameters
    for option in inspect.signature(cls.__init__).parameters.values()
    if option.name not in ("self", "learning_rate", "kwargs")
}
"""The options that every Keras optimizer takes, with their defaults."""
