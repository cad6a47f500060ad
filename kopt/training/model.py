"""A `keras.Model` whose optimizer may look at a batch more than once."""

from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import outside_the_trace, replicas, sum_over_replicas
from kopt.distribute.alone import applying
from kopt.distribute.shares import sharing
from kopt.distribute.workers import apart
from kopt.training import loop
from kopt.training.batch import Batch
from kopt.training.everywhere import step_everywhere
from kopt.training.oracle import computing, step
from kopt.training.whole import minimizers, whole_batch


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

    A subclass may define `compute_residuals(x, y, y_pred, sample_weight)`, which returns a tensor or a list of tensors
    that ought to be zero, as in physics-informed models. The mean of the squares of each is added to the loss that was
    compiled, if any, and `kopt.LevenbergMarquardt` works with them as they are.
    """

    fresh_noise = False

    objective: Any = None
    """What steps minimize in the place of the loss of each batch: see `compile`."""

    compute_residuals: Any = None
    """A method `(x, y, y_pred, sample_weight)` of a subclass that returns a tensor or several: see `compute_loss`."""

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

    _engine_class, _batch_class = loop.Engine, Batch

    progress: Any = None
    """Where the last `fit` stands: a `kopt.training.progress.Progress`."""

    @property
    def _engine(self):
        """The compiled programs."""
        return self.__dict__.setdefault("_compiled_engine", self._engine_class())

    @property
    def non_trainable_variables(self):
        """What training changes besides the weights; the objective's random state and its own weights, too."""
        own = super().non_trainable_variables
        return own if self.objective is None else [*own, *self.objective.variables]

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile: bool | str = "auto",
        auto_scale_loss=True,
        objective=None,
    ):
        """Configures the model for training, as `keras.Model.compile` does.

        With `jit_compile="auto"`, `fit` and `evaluate` compile with XLA where that takes less time than it saves.
        `objective`, one of `kopt.objectives`, is what steps minimize in the place of the loss of each batch.

        Raises:
            TypeError: `objective` is none.
        """
        if objective is not None and not hasattr(objective, "total"):
            raise TypeError(f"Model.compile: objective must be one of kopt.objectives, got {objective!r}.")
        self.__dict__["objective"] = objective  # past Keras, which tracks no layers once a model is built
        how = dict(weighted_metrics=weighted_metrics, run_eagerly=run_eagerly, steps_per_execution=steps_per_execution)
        how |= dict(jit_compile=jit_compile, auto_scale_loss=auto_scale_loss)
        with self.distribute_strategy.scope():
            super().compile(optimizer, loss, loss_weights, metrics, **how)
        self.__dict__["_compiled_engine"] = self._engine_class("auto" if jit_compile == "auto" else self.jit_compile)

    def get_compile_config(self):
        """Returns what `compile` was given, for saving: `jit_compile="auto"` too, which Keras resolves."""
        config = super().get_compile_config()
        if not config:
            return config
        objective = keras.saving.serialize_keras_object(self.objective)
        return {**config, "jit_compile": self._engine.jit, "objective": objective}

    def compile_from_config(self, config):
        """Compiles a loaded model. Keras's own leaves a model alone whose `compile` is not Keras's."""
        if not type(self).compile.__module__.startswith("kopt."):
            return super().compile_from_config(config)
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Trains the model, as `keras.Model.fit` does: all arguments are the same.

        Many steps are one compiled program. Callbacks for every batch, where there are any, have them one by one.
        Methods for the whole data set (`kopt.LBFGS`, ...) get all rows as one batch where `batch_size` is None.

        Raises:
            ValueError: such a method would get the rows in several batches, and is not `stochastic`.
        """
        how = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        for minimizer in minimizers(getattr(self, "optimizer", None)):
            how["batch_size"] = whole_batch(minimizer, x, how["batch_size"])
            minimizer.forget()
        with loop.placed(self):
            return loop.fit(self, **how) if loop.in_one_program(self, "train") else super().fit(**how)

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Returns the loss and the metrics, as `keras.Model.evaluate` does: all arguments are the same."""
        how = {name: value for name, value in locals().items() if name not in ("self", "__class__", "kwargs")}
        cached = kwargs.get("_use_cached_eval_dataset", False)
        with loop.placed(self):
            if self._engine.validation is None if cached else not loop.in_one_program(self, "test"):
                return super().evaluate(**how, **kwargs)
            if kwargs.keys() - {"_use_cached_eval_dataset"}:
                raise ValueError(f"Model.evaluate: arguments must be those of keras.Model.evaluate, got {kwargs}.")
            return loop.evaluate(self, **how, cached=cached)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """Returns the outputs for rows, as `keras.Model.predict` does: all arguments are the same."""
        how = dict(x=x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)
        with apart(self, "Model.predict"), loop.placed(self):
            found = loop.predict(self, **how) if loop.in_one_program(self, "predict") else NotImplemented
            return super().predict(**how) if found is NotImplemented else found

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Computes what `keras.Model.compute_loss` does, plus the means of the squares of `compute_residuals`."""
        if self.compute_residuals is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        loss = means_of_squares(self.compute_residuals(x, y, y_pred, sample_weight))
        if self._compile_loss is None and not self.losses:
            return loss
        return loss + super().compute_loss(x, y, y_pred, sample_weight, training)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras's, for its own loop under a strategy, with a replica's rows: Keras's fails where replicas' differ."""
        if self._distribute_strategy is None:
            return
        results = self._distribute_strategy.experimental_local_results
        for *_, batches in iterator or ():
            data_batch = tree.map_structure(lambda x: results(x)[0], next(batches))
            break
        with self._distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def train_step(self, data):
        """Takes a step on a batch, and returns the metrics by name."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:  # a subclassed model: an oracle has to know its weights
            self(x)
        compiled = self._compile_loss
        if compiled is not None and not compiled.built and len(tree.flatten(self.loss)) > 1:
            compiled.build(y, self(x))  # makes a metric for each loss, which no look can
        outer = self.optimizer
        if not outer.built:  # which scales losses by what it keeps only then
            with outside_the_trace():
                outer.build(self.trainable_variables)
        inner, scale = inner_and_scale(outer)

        def batch_of(data):
            compiled = self._engine.jit is True and replicas() > 1  # on one device the whole step is
            return self._batch_class(self, computing(self, data), scale, self.fresh_noise, self.loss, compiled)

        def track(data, batch):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            track_loss(self, outer, sum_over_replicas([batch.loss])[0], x)
            return self.compute_metrics(x, y, batch.outputs, sample_weight=sample_weight)

        if tf.distribute.in_cross_replica_context():
            return step_everywhere(inner, self.distribute_strategy, data, batch_of, track)
        with sharing(data):
            step(inner, batch := batch_of(data), applying(outer, self.variables))
            return track(data, batch)

    def test_step(self, data):
        """Returns the metrics by name, with a batch's, as `keras.Model.test_step` does."""
        with sharing(data):
            return super().test_step(data)


def inner_and_scale(optimizer):
    """The optimizer inside of a loss-scale wrapper, or itself; and what it scales losses by, or None."""
    wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    scaled = wrapped or optimizer.loss_scale_factor is not None
    return optimizer.inner_optimizer if wrapped else optimizer, optimizer.scale_loss(1.0) if scaled else None


def track_loss(model, optimizer, loss, x):
    """Adds a batch's loss to the mean that is reported, unless the optimizer leaves its step out."""
    rows = tf.shape(next(part for part in tree.flatten(x) if part is not None))[0]
    if getattr(optimizer, "skip_nonfinite", False):
        finite = tf.math.is_finite(loss)
        loss, rows = tf.where(finite, loss, tf.zeros_like(loss)), tf.where(finite, rows, 0)
    model._loss_tracker.update_state(loss, sample_weight=rows)


def means_of_squares(residuals):
    """The sum over all tensors of the mean of their squares, in the form of a loss that Keras knows."""
    square = keras.losses.MeanSquaredError()
    columns = [keras.ops.reshape(r, (-1, 1)) for r in tree.flatten(residuals)]
    return sum(square(keras.ops.zeros_like(r), r) for r in columns)


def _are_tensors(args, kwargs):
    """Whether the arguments of a constructor are inputs and outputs."""
    return len(args) == 2 or (len(args) == 1 and "outputs" in kwargs) or {"inputs", "outputs"} <= kwargs.keys()


Functional: Any = type(keras.Model.__new__(keras.Model, inputs=None, outputs=None))  # Keras does not export it


@keras.saving.register_keras_serializable("kopt")
class FunctionalModel(Model, Functional):
    """What `Model(inputs, outputs)` makes. Keras would change the bases of `Model` itself, and so of its subclasses."""

    __init__ = Functional.__init__
