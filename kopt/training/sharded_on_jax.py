"""A functional Keras model whose weights lie in parts over a mesh of devices: on JAX, by `keras.distribution`."""

import contextlib
import functools
import math
from typing import Any

import keras
from keras import tree

from kopt._checks import check_choice
from kopt._keras import FUNCTIONAL, lie_as
from kopt.distribute.mesh import layouts, presets
from kopt.distribute.mesh.layouts import BATCH
from kopt.training.divided import of_any_arguments


@keras.saving.register_keras_serializable("kopt")
class ShardedModel(FUNCTIONAL):
    """A functional Keras model whose weights lie in parts over a mesh of devices.

    Arguments are those of the same class on TensorFlow, where it is a `kopt.Model`. Here it is a `keras.Model`: JAX
    divides each step, by layouts that `keras.distribution` gives it. All batches must have a multiple of as many rows
    as there are devices along the axis "batch".
    """

    _mesh: Any = None
    _axes: Any = None
    _specs: Any = None
    _sharding: Any = None

    @of_any_arguments
    def __init__(self, inputs, outputs, name=None, *, mesh, layout=None, shard=None, devices=None, **kwargs):
        owner = type(self).__name__
        check_choice(owner, (None, "optimizer", "weights"), shard=shard)
        layouts.check_sizes(mesh, owner)
        if shard is not None and BATCH not in mesh:
            raise ValueError(f"{owner}: mesh must have the axis {BATCH!r} for shard={shard!r}, got {mesh}.")
        if (known := keras.distribution.distribution()) is not None:
            kind = type(known).__name__
            raise ValueError(f"{owner}: keras.distribution must be unset where the model is made, got {kind}.")
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.__dict__["_axes"] = layouts.Axes(mesh)
        self.__dict__["_mesh"] = _mesh_of(mesh, devices, owner)
        layout, specs = presets.found(self, layout, self._axes, owner)
        self.__dict__["_sharding"] = dict(mesh=dict(mesh), layout=layout, shard=shard, devices=devices)
        if shard == "weights":
            specs = [self._also_by_batch(spec, v) for spec, v in zip(specs, self.variables, strict=True)]
        self.__dict__["_specs"] = {id(v): spec for v, spec in zip(self.variables, specs, strict=True)}
        self._place(self.variables)

    def _also_by_batch(self, spec, variable):
        """A spec that is also divided by the axis of rows, where the variable is one of floats."""
        floats = keras.backend.is_float_dtype(variable.dtype)
        return layouts.also_by(spec, tuple(variable.shape), BATCH, self._axes) if floats else spec

    def _place(self, some):
        """Lets variables lie over the mesh as they are to, those of no layout on each device."""
        for variable in some:
            lie_as(variable, self._layout(self._specs.setdefault(id(variable), (None,) * len(variable.shape))))

    def _layout(self, spec):
        return keras.distribution.TensorLayout(spec, self._mesh)

    @functools.cached_property
    def _distribution(self):
        """What Keras does with batches, and with variables that are made while it is in force."""
        axis = BATCH if BATCH in self._axes.dim_names else self._axes.dim_names[0]
        layout_map = keras.distribution.LayoutMap(self._mesh)
        distribution = keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name=axis)
        if axis != BATCH:
            distribution.get_data_layout = lambda shape: self._layout((None,) * len(shape))
        return distribution

    @contextlib.contextmanager
    def _over_the_mesh(self, x=None, batch_size=None, validation_split=0.0):
        """A context in which batches are shared out, refused where they do not divide."""
        number = self._axes.dim_size(BATCH) if BATCH in self._axes.dim_names else 1
        rule = f"{type(self).__name__}: on JAX all batches must have a multiple of {number} rows, which devices share"
        arrays = [array for array in tree.flatten(x) if len(getattr(array, "shape", ())) > 0]
        if arrays:
            rows, size = math.floor(arrays[0].shape[0] * (1 - validation_split)), batch_size or 32
            if odd := [left for left in (min(size, rows), rows % size) if left % number]:
                raise ValueError(f"{rule}, got one of {odd[0]}. Choose another batch_size, or leave rows out.")
        self._place(self.metrics_variables)  # some were made before the mesh was in force
        with self._distribution.scope():
            try:
                yield
            except ValueError as error:
                if "divisible" not in str(error):
                    raise
                raise ValueError(f"{rule}. Leave the rest out: dataset.batch(size, drop_remainder=True).") from error

    def _build_optimizer(self):
        """Makes what the optimizer keeps, and lays it out."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        for slot in self.optimizer.variables:
            weight = layouts.owner_of(slot, self.trainable_variables)
            spec = (None,) * len(slot.shape) if weight is None else self._specs[id(weight)]
            self._specs[id(slot)] = self._also_by_batch(spec, slot) if self._sharding["shard"] else spec
        self._place(self.optimizer.variables)

    def get_config(self):
        """Returns what makes the same model again, on as many devices."""
        return super().get_config() | self._sharding

    def compile_from_config(self, config):
        """Compiles a loaded model."""
        with self._distribution.scope():
            super().compile_from_config(config)
        if self.optimizer is not None:
            self._build_optimizer()

    @functools.wraps(keras.Model.fit, assigned=())
    def fit(self, x=None, y=None, batch_size=None, *args, validation_split=0.0, **kwargs):
        """Trains the model, as `keras.Model.fit` does."""
        with self._over_the_mesh(x, batch_size, validation_split):
            if self.optimizer is not None:
                self._build_optimizer()
            return super().fit(x, y, batch_size, *args, validation_split=validation_split, **kwargs)

    @functools.wraps(keras.Model.evaluate, assigned=())
    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        """Returns the loss and the metrics, as `keras.Model.evaluate` does."""
        with self._over_the_mesh(x, batch_size):
            return super().evaluate(x, y, batch_size, *args, **kwargs)

    @functools.wraps(keras.Model.predict, assigned=())
    def predict(self, x=None, batch_size=None, *args, **kwargs):
        """Returns the outputs for rows, as `keras.Model.predict` does."""
        with self._over_the_mesh(x, batch_size):
            return super().predict(x, batch_size, *args, **kwargs)


def _mesh_of(sizes, devices, owner):
    """The mesh as Keras has it."""
    known, number = keras.distribution.list_devices(), math.prod(sizes.values())
    names = known[:number] if devices is None else [str(name).lower() for name in devices]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{owner}: devices must be among {', '.join(known)}, got {unknown[0]!r}.")
    if len(names) != number:
        raise ValueError(f"{owner}: devices must be {number} for a mesh of {sizes}, got {len(names)}: {names}.")
    return keras.distribution.DeviceMesh(tuple(sizes.values()), tuple(sizes), names)
