"""A `keras.Model` whose optimizer may look at a batch more than once."""

from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import replicas
from kopt.optimizers import Optimizer
from kopt.optimizers.minimizer import Minimizer
from kopt.training.oracle import Batch, computing, step


@keras.saving.register_keras_serializable("kopt")
class Model(keras.Model):
    """A `keras.Model` that lets its optimizer look at each batch as often as it needs.

    In `fit`, `keras.Model` hands its optimizer one gradient for each batch. Methods that need a second gradient, the
    loss or products with the curvature (`kopt.SAM`, `kopt.AdaHessian`, ...) get an oracle here, which answers for the
    batch at hand. All else is as in `keras.Model`, with any other optimizer too.

        kopt.Model(inputs, outputs)                  a functional model
        kopt.Model(other.inputs, other.outputs)      any functional or sequential Keras model, sharing its layers
        class Mine(kopt.Model): ...                  a subclassed one

    All looks at a batch see the same dropout masks; `model.fresh_noise = True`, set before `fit`, draws new ones for
    each. The statistics of batch normalization move at the first look alone.
    """

    fresh_noise = False

    def __new__(cls, *args, **kwargs):
        """Makes a functional model of inputs and outputs."""
        return super().__new__(FunctionalModel if cls is Model and _are_tensors(args, kwargs) else cls)

    def __init__(self, *args, **kwargs):
        if _are_tensors(args, kwargs):  # from a subclass, which becomes a functional one
            for cls in type(self).__mro__:
                if Model in cls.__bases__ and cls is not FunctionalModel:
                    cls.__bases__ = tuple(FunctionalModel if base is Model else base for base in cls.__bases__)
            Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)

    def fit(self, x=None, y=None, batch_size=None, *args, **kwargs):
        """Trains the model, as `keras.Model.fit` does: all arguments are the same.

        Methods for the whole data set (`kopt.LBFGS`, ...) get all rows as one batch where `batch_size` is None.

        Raises:
            ValueError: such a method would get the rows in several batches, and is not `stochastic`.
        """
        for minimizer in minimizers(self.optimizer):
            batch_size = whole_batch(minimizer, x, batch_size)
            minimizer.forget()
        return super().fit(x, y, batch_size, *args, **kwargs)

    def train_step(self, data):
        """Takes a step on a batch, and returns the metrics by name."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:  # a subclassed model: an oracle has to know its weights
            self(x)
        outer = self.optimizer
        wrapped = isinstance(outer, keras.optimizers.LossScaleOptimizer)
        scaled = wrapped or outer.loss_scale_factor is not None
        scale = outer.scale_loss(1.0) if scaled else None
        batch = Batch(self, computing(self, data), scale, self.fresh_noise, self.loss)
        step(outer.inner_optimizer if wrapped else outer, batch, outer.apply)
        rows = tf.shape(next(part for part in tree.flatten(x) if part is not None))[0]
        self._loss_tracker.update_state(batch.loss * replicas(), sample_weight=rows)
        return self.compute_metrics(x, y, batch.outputs, sample_weight=sample_weight)


def minimizers(optimizer):
    """The parts of an optimizer that take the whole data set for a batch."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a loss-scale wrapper's
    nodes = [node for _, node in optimizer._nodes()] if isinstance(optimizer, Optimizer) else []
    return [node for node in nodes if isinstance(node, Minimizer)]


def whole_batch(minimizer, x, batch_size):
    """The batch size at which a minimizer gets all rows of `x` at once, unless it asks for less."""
    shape = getattr(next(iter(tree.flatten(x)), None), "shape", None)
    if shape is not None:
        rows = shape[0]
        if minimizer.stochastic or (batch_size or rows) >= rows:
            return batch_size or rows
        raise ValueError(
            f"{type(minimizer).__name__}: batch_size must be None or cover all {rows} rows, got {batch_size}, for the "
            "loss is to be the same function at each step. Set stochastic=True to take steps on batches."
        )
    batches = x.num_batches if isinstance(x, keras.utils.PyDataset) else None
    if isinstance(x, tf.data.Dataset):
        batches = int(x.cardinality())
    if batches is not None and batches > 1 and not minimizer.stochastic:
        raise ValueError(
            f"{type(minimizer).__name__}: the data must come as one batch, got {batches}, for the loss is to be the "
            "same function at each step. Set stochastic=True to take steps on batches."
        )
    return batch_size


def _are_tensors(args, kwargs):
    """Whether the arguments of a constructor are inputs and outputs."""
    return len(args) == 2 or (len(args) == 1 and "outputs" in kwargs) or {"inputs", "outputs"} <= kwargs.keys()


Functional: Any = type(keras.Model.__new__(keras.Model, inputs=None, outputs=None))  # Keras does not export it


@keras.saving.register_keras_serializable("kopt")
class FunctionalModel(Model, Functional):
    """What `Model(inputs, outputs)` makes. Keras would change the bases of `Model` itself, and so of its subclasses."""

    __init__ = Functional.__init__
