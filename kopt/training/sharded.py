"""A `kopt.Model` whose weights lie in parts over a mesh of devices."""

import contextlib
import functools
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from tensorflow.experimental import dtensor

from kopt._checks import check_choice
from kopt._keras import give_mask, mask_of
from kopt.distribute.alone import wrapped
from kopt.distribute.mesh import first_use, layouts, presets, variables
from kopt.distribute.mesh.devices import as_layout, mesh_of
from kopt.distribute.mesh.layouts import BATCH
from kopt.distribute.mesh.parts import laid, put
from kopt.training.divided import check_compile, of_any_arguments
from kopt.training.mesh_program import MeshBatch, MeshEngine, step_on
from kopt.training.mesh_refusals import check_layers, check_optimizer
from kopt.training.model import FunctionalModel, Model


@keras.saving.register_keras_serializable("kopt")
class ShardedModel(FunctionalModel):
    """A functional `kopt.Model` whose weights lie in parts over a mesh of devices, by TensorFlow's DTensor.

    The rows of each batch are shared out along the mesh's axis "batch", and dimensions of weights along others, as the
    layout says. Losses, gradients, steps and metrics are those of one device, to rounding.

        kopt.ShardedModel(inputs, outputs, mesh={"batch": 2, "model": 4}, layout="tensor_parallel")
        kopt.ShardedModel(model.inputs, model.outputs, mesh={"batch": 8}, shard="weights")

    The second form shares the layers of any functional or sequential Keras model, whose weights move to the mesh: the
    other model cannot be called any more. All else is as in `kopt.Model`: `fit`, `evaluate`, `predict`, callbacks,
    saving. What is saved is whole, and loads under any layout, and into a model without one.

    A batch whose rows do not divide by the axis "batch" is computed by all devices alike. Dropout and other layers that
    draw random numbers draw others than on one device, and on each device along "batch" its own.

    DTensor as TensorFlow has it computes wrong updates. What it does wrong is switched off before its first use, and a
    step is compared with that of one device when the first such model of a process is made.

    Args:
        inputs: as in `keras.Model`.
        outputs: as in `keras.Model`.
        name: as in `keras.Model`.
        mesh: how many devices lie along each axis, by its name: `{"batch": 2, "model": 4}`. Rows are shared out along
            "batch", and presets divide weights along "model"; other axes may have any name.
        layout: what weights are divided by. None: nothing. `"tensor_parallel"`: dense layers, embeddings and attention
            along "model", as `kopt.distribute.mesh.presets.tensor_parallel` says. A dict, or a Keras `LayoutMap`: for
            regular expressions, which match whole paths of variables, a tuple with the name of an axis or None for each
            dimension. What an optimizer keeps for a weight lies as the weight does.
        shard: what is divided along "batch" besides, to save memory. `"optimizer"`: what the optimizer keeps (ZeRO-1).
            `"weights"`: the weights too, which are gathered where they are used (fully sharded data parallelism).
        devices: the names of as many devices as the mesh has, row by row; the first GPUs where None, or logical CPUs
            where there is no GPU.
        **kwargs: as in `keras.Model`.

    Raises:
        TypeError: a mesh, layout or list of devices is none.
        ValueError: the layout does not fit the variables, there are no such devices, or DTensor cannot compute a layer.
        RuntimeError: DTensor was used in this process before, and computes wrong updates.

    References:
        Shoeybi et al., *Megatron-LM*, 2019. https://arxiv.org/abs/1909.08053
        Rajbhandari et al., *ZeRO*, 2020. https://arxiv.org/abs/1910.02054
    """

    _mesh: Any = None
    _specs: Any = None
    _sharding: Any = None
    _divided: Any = None
    _rows: Any = None
    _batch_class = MeshBatch
    _engine_class = MeshEngine

    @of_any_arguments
    def __init__(self, inputs, outputs, name=None, *, mesh, layout=None, shard=None, devices=None, **kwargs):
        owner = type(self).__name__
        check_choice(owner, (None, "optimizer", "weights"), shard=shard)
        if tf.distribute.has_strategy():
            raise ValueError(f"{owner}: must be made outside of any strategy's scope. The mesh's axis 'batch' is that.")
        first_use.switch_off(owner)
        self.__dict__["_mesh"] = mesh_of(mesh, devices, owner)
        if shard is not None and BATCH not in self._mesh.dim_names:
            raise ValueError(f"{owner}: mesh must have the axis {BATCH!r} for shard={shard!r}, got {mesh}.")
        super().__init__(inputs, outputs, name=name, **kwargs)
        if self.compute_residuals is not None:
            raise ValueError(f"{owner}: compute_residuals must not be defined, for it wants all rows. Try kopt.Model.")
        layout, specs = presets.found(self, layout, self._mesh, owner)
        check_layers(self, {id(v): spec for v, spec in zip(self.variables, specs, strict=True)}, owner)
        names = [
            f"{d.device_type}:{d.device_index}" for d in map(tf.DeviceSpec.from_string, self._mesh.local_devices())
        ]
        if len(names) > 1:
            first_use.check(owner, tuple(names[:2]))
        if shard == "weights":
            specs = [self._also_by_batch(spec, v) for spec, v in zip(specs, self.variables, strict=True)]
        self.__dict__["_sharding"] = dict(mesh=dict(mesh), layout=layout, shard=shard, devices=devices)
        self.__dict__["_specs"] = {id(v): s for v, s in zip(self.variables, specs, strict=True)}
        self.__dict__["_divided"] = dict(presets.left_divided(self, self._specs))
        self._lay_out(self.variables)

    # ---- where variables lie -----------------------------------------------------------------------------------------

    def _lay_out(self, some):
        variables.lay_out(some, lambda v: as_layout(self._spec_of(v), self._mesh))

    def _spec_of(self, variable):
        """What the dimensions of a variable, the model's or its optimizer's, are divided by."""
        if (own := self._specs.get(id(variable))) is not None:
            return own
        weight = layouts.owner_of(variable, self.trainable_variables)
        spec = (None,) * len(variable.shape) if weight is None else self._specs[id(weight)]
        if self._sharding["shard"] is None or id(variable) in {id(v) for v in self.metrics_variables}:
            return spec
        return self._also_by_batch(spec, variable)

    def _also_by_batch(self, spec, variable):
        """A spec that is also divided by the axis of rows, where the variable is one of floats."""
        floats = tf.as_dtype(variable.dtype).is_floating
        return layouts.also_by(spec, tuple(variable.shape), BATCH, self._mesh) if floats else spec

    def _ready(self, task, data):
        """Makes all variables that a task needs, over the mesh."""
        if task != "predict":
            self._symbolic_build(data_batch=tree.map_structure(_one_row, data))
        self._lay_out([*self.variables, *self.metrics_variables])

    def _build_optimizer(self):
        """Makes what the optimizer keeps, on the host first, so that it never lies on one device whole."""
        if not self.optimizer.built:
            with tf.device("CPU:0"):
                self.optimizer.build(self.trainable_variables)
        for optimizer in wrapped(self.optimizer):
            seeds = [x.state for x in vars(optimizer).values() if isinstance(x, keras.random.SeedGenerator)]
            self._lay_out([*optimizer.variables, *seeds])

    def _replicated(self, x):
        """A tensor of which each device has all."""
        return dtensor.relayout(x, as_layout([None] * len(x.shape), self._mesh))

    def _gathered(self, variable, value):
        """A variable's value without what it is divided by for memory's sake alone."""
        spec = self._specs.get(id(variable), ())
        if BATCH not in spec:
            return value
        whole, own = (as_layout(each, self._mesh) for each in (layouts.without(spec, BATCH), spec))
        return laid(tf.convert_to_tensor(value), whole, own)

    @contextlib.contextmanager
    def _gathering(self):
        """A context of a trace in which variables are read as `_gathered`."""
        held = [(v, v._value) for v in self.variables]
        for variable, value in held:
            variable._value = self._gathered(variable, value)
        try:
            yield
        finally:
            for variable, value in held:
                variable._value = value

    def _run_through_graph(self, inputs, operation_fn=lambda operation: operation, **how):
        """As Keras has it, with what each operation returns laid out as its rows are.

        DTensor would choose for itself, and some of what it chooses it cannot compute.
        """
        if self._divided is None or not any(map(_is_traced, tree.flatten(inputs))):  # while the model is made
            return super()._run_through_graph(inputs, operation_fn, **how)

        def laid_out(operation):
            call = operation_fn(operation)
            axis = self._divided.get(operation)

            def and_its_outputs(*args, **kwargs):
                return tree.map_structure(lambda x: self._as_rows(x, axis), call(*args, **kwargs))

            return and_its_outputs

        return super()._run_through_graph(inputs, laid_out, **how)

    def _as_rows(self, x, axis):
        """A tensor laid out by rows, and its last dimension by an axis, if any."""
        if not isinstance(x, tf.Tensor) or self._rows is None or x.shape.rank is None:
            return x
        spec: list[Any] = [None] * x.shape.rank
        number, shared = self._rows
        if spec and shared and x.shape[0] == number:
            spec[0] = BATCH
        if axis is not None:
            spec[-1] = axis
        found = laid(x, as_layout(spec, self._mesh))
        if (mask := mask_of(x)) is not None:
            give_mask(found, mask)
        return found

    @contextlib.contextmanager
    def _tracing(self, tensors):
        """A context of a trace for a batch of these tensors."""
        number = tensors[0].shape[0]
        self.__dict__["_rows"] = number, layouts.divides(number, self._mesh)
        constants = [(vars(layer), *item) for layer in self._flatten_layers() for item in list(vars(layer).items())]
        constants = [each for each in constants if isinstance(each[2], tf.__internal__.EagerTensor)]
        for held, name, value in constants:  # as layers that were adapted to data have them
            with tf.init_scope():
                held[name] = put(value, as_layout([None] * len(value.shape), self._mesh))
        means = getattr(self._compile_loss, "metrics", ())
        for mean in means:  # which Keras weighs where Python knows the number of rows: on one device it does not
            vars(mean)["update_state"] = functools.partial(_without_weight, mean.update_state)
        try:
            yield
        finally:
            self.__dict__["_rows"] = None
            for mean in means:
                del vars(mean)["update_state"]
            for held, name, value in constants:
                held[name] = value

    # ---- as kopt.Model has it ----------------------------------------------------------------------------------------

    def get_config(self):
        """Returns what makes the same model again."""
        return super().get_config() | self._sharding

    @functools.wraps(Model.compile, assigned=())
    def compile(self, *args, jit_compile: bool | str = "auto", run_eagerly=False, objective=None, **kwargs):
        """Configures the model for training, as `keras.Model.compile` does, without XLA.

        Raises:
            ValueError: `jit_compile` or `run_eagerly` is True, there is an `objective`, or DTensor cannot compute what
                the optimizer does.
        """
        who = type(self).__name__
        check_compile(who, jit_compile, objective)
        if run_eagerly:
            raise ValueError(f"{who}: run_eagerly must be False, got True: DTensor compiles each step. Try kopt.Model.")
        super().compile(*args, jit_compile=False, **kwargs)
        if self.optimizer is not None:
            check_optimizer(getattr(self.optimizer, "inner_optimizer", self.optimizer), who)
            self._build_optimizer()

    def make_train_function(self, force=False):
        """Makes what `train_on_batch` calls."""
        self.train_function = functools.partial(step_on, self, "train")

    def make_test_function(self, force=False):
        """Makes what `test_on_batch` calls."""
        self.test_function = functools.partial(step_on, self, "test")

    def make_predict_function(self, force=False):
        """Makes what `predict_on_batch` calls, and `predict` for what is no array."""
        self.predict_function = functools.partial(step_on, self, "predict")

    def __call__(self, *args, **kwargs):
        """Returns the outputs for rows: symbols for symbols, and all of them for rows that lie on one device."""
        rows = tree.flatten(args)
        if self._divided is None or not tf.executing_eagerly() or any(map(keras.utils.is_keras_tensor, rows)):
            return super().__call__(*args, **kwargs)
        if len(args) != 1 or any(value is not None and value is not False for value in kwargs.values()):
            raise ValueError(
                f"{type(self).__name__}: outside of fit it must be called with inputs alone, got {sorted(kwargs)}."
            )
        return step_on(self, "predict", [args])

    def export(self, *args, **kwargs):
        """Refused."""
        raise ValueError(
            f"{type(self).__name__}: cannot be exported, for servers know no mesh. Give its weights to a kopt.Model of "
            "the same layers, by save_weights and load_weights, and export that."
        )


def _without_weight(update_state, value, sample_weight=None):
    """`update_state` of a metric, without a weight."""
    return update_state(value)


def _one_row(spec):
    """The spec of a batch of one row, where it leaves the number open."""
    return None if spec is None else tf.TensorSpec([spec.shape[0] or 1, *spec.shape[1:]], spec.dtype)


def _is_traced(x):
    """Whether it is a tensor, and no symbol of Keras's."""
    return isinstance(x, tf.Tensor)
