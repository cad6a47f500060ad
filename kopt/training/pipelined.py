"""A `kopt.Model` whose layers lie on several devices, in stages, through which a batch goes in micro-batches."""

import contextlib
import functools
from numbers import Integral
from typing import Any

import keras
import tensorflow as tf

from kopt._backend import on_device
from kopt._checks import check_choice, check_range
from kopt.distribute.pipeline import balance, graph, placement
from kopt.distribute.pipeline.schedules import SCHEDULES
from kopt.optimizers import Optimizer
from kopt.training.divided import check_compile, of_any_arguments
from kopt.training.model import FunctionalModel, Model, inner_and_scale, track_loss
from kopt.training.oracle import step
from kopt.training.pipelined_batch import PipelinedBatch


@keras.saving.register_keras_serializable("kopt")
class PipelineModel(FunctionalModel):
    """A functional `kopt.Model` in stages, each on a device of its own, for models that are too large for one.

    Each batch is divided into micro-batches. While a stage has one of them, the stages before and after it have others:
    with M micro-batches S equal stages are idle for (S - 1) / (M + S - 1) of the time, where one after another would
    be for (S - 1) / S. Gradients are added up, and the optimizer takes one step.

        kopt.PipelineModel(inputs, outputs, stages=4, micro_batches=8)
        kopt.PipelineModel(model.inputs, model.outputs, stages=["block2", "block4"], micro_batches=8)

    The second form shares the layers of any functional or sequential Keras model, whose weights move to the stages'
    devices. All else is as in `kopt.Model`: `fit`, `evaluate`, `predict`, callbacks, saving.

    Losses, gradients and metrics are those of the whole batch on one device, however the batch divides, with sample
    weights, masks, regularizers and losses of layers, which are taken for means over rows. What differs:

    - Batch normalization normalizes each micro-batch by its own statistics, as if it were the batch. The moving ones
      move once in a step, by the mean over micro-batches.
    - Each micro-batch draws noise of its own, from the states of the layers' seeds: the same in every run, another than
      that of one device.

    Args:
        inputs: as in `keras.Model`.
        outputs: as in `keras.Model`.
        name: as in `keras.Model`.
        stages: how many stages, cut where their measured times, forward and backward, are the most alike; or the names
            of the layers that end a stage, in the order of `summary()`: one less than there are stages, since the last
            one ends with the outputs.
        micro_batches: into how many parts of equal rows, give or take one, each pipeline takes its rows of a batch.
        schedule: `"1f1b"`, in which a micro-batch goes back as soon as it can, so that the first stage holds as many as
            there are stages; or `"gpipe"`, in which all go forward first, so that each holds all.
        devices: the name of a device for each stage of each pipeline, pipeline after pipeline; of other machines, too,
            after `tf.config.experimental_connect_to_cluster`. All GPUs where None, or all logical CPUs where there is
            no GPU.
        pipelines: how many pipelines share each batch: data parallelism. The first has the weights; copies for a step
            go to the others, and gradients come back.
        recompute: whether a stage keeps what it was given alone, and goes forward again before it goes back: about a
            third more time, for activations of one micro-batch.
        **kwargs: as in `keras.Model`.

    Raises:
        TypeError: a number is none.
        ValueError: there are no such layers or devices, numbers are out of their range, or a subclass defines
            `compute_residuals`.

    References:
        Huang et al., *GPipe*, 2019. https://arxiv.org/abs/1811.06965
        Narayanan et al., *PipeDream*, 2019. https://arxiv.org/abs/1806.03377
    """

    _pipeline: Any = None
    _stages: Any = None
    _devices: Any = None
    _found: Any = None

    @of_any_arguments
    def __init__(
        self,
        inputs,
        outputs,
        name=None,
        *,
        stages,
        micro_batches,
        schedule="1f1b",
        devices=None,
        pipelines=1,
        recompute=False,
        **kwargs,
    ):
        owner = type(self).__name__
        check_range(owner, "[1, inf)", kind=Integral, micro_batches=micro_batches)
        check_range(owner, "[1, inf)", kind=Integral, pipelines=pipelines)
        check_choice(owner, tuple(SCHEDULES), schedule=schedule)
        check_choice(owner, (True, False), recompute=recompute)
        by_hand = isinstance(stages, list | tuple)
        if not by_hand and not isinstance(stages, Integral):
            rule = "stages must be the number of stages, or a list of the names of layers that end one"
            raise TypeError(f"{owner}: {rule}, got {stages!r}.")
        if not by_hand:
            check_range(owner, "[1, inf)", kind=Integral, stages=stages)
        if devices is not None and not isinstance(devices, list | tuple):
            raise TypeError(f"{owner}: devices must be a list of names, got {devices!r}.")
        if tf.distribute.has_strategy():
            raise ValueError(
                f"{owner}: must be made outside of any strategy's scope. Set pipelines for data parallelism."
            )
        if self.compute_residuals is not None:
            raise ValueError(f"{owner}: compute_residuals must not be defined, for it wants all rows. Try kopt.Model.")
        super().__init__(inputs, outputs, name=name, **kwargs)
        number = len(stages) + 1 if by_hand else int(stages)
        names = placement.devices_of(devices, number * pipelines, owner)
        ends = graph.ends_of(self, stages, owner) if by_hand else balance.balanced(self, stages, owner)
        how = dict(micro_batches=int(micro_batches), schedule=schedule, pipelines=int(pipelines), recompute=recompute)
        self.__dict__["_pipeline"] = how | dict(devices=None if devices is None else list(devices))
        self.__dict__["_stages"] = graph.cut(self, ends)
        self.__dict__["_devices"] = [names[i : i + number] for i in range(0, len(names), number)]
        self._place()

    @property
    def stages(self):
        """The names of each stage's layers, in lists; the last name of each but the last is what ends it."""
        return [stage.names for stage in self._stages]

    @property
    def devices(self):
        """The names of the stages' devices, a list for each pipeline."""
        return [list(names) for names in self._devices]

    @property
    def losses(self):
        """What layers and regularizers add to the loss."""
        return super().losses if self._found is None else self._found

    @contextlib.contextmanager
    def _without_losses(self):
        """A context in which layers have added no losses: each stage counts its own."""
        self.__dict__["_found"] = [] if self._compile_loss is not None else [tf.zeros((), keras.config.floatx())]
        try:
            yield
        finally:
            self.__dict__["_found"] = None

    def _place(self):
        """Moves each stage's variables to its device, the model's own to the last one's."""
        moved = []
        of_layers = {id(variable) for stage in self._stages for variable in stage.used}
        for stage, device in zip(self._stages, self._devices[0], strict=True):
            moved += placement.place(stage.variables, device)
        moved += placement.place([v for v in self.variables if id(v) not in of_layers], self._devices[0][-1])
        if moved:
            placement.forget_programs(moved)

    def get_config(self):
        """Returns what makes the same model again: stages by name, devices as they were given."""
        ends = [stage.names[-1] for stage in self._stages[:-1]]
        return super().get_config() | dict(self._pipeline, stages=ends)

    @functools.wraps(Model.compile, assigned=())
    def compile(self, *args, jit_compile: bool | str = "auto", objective=None, **kwargs):
        """Configures the model for training, as `keras.Model.compile` does, without XLA.

        Raises:
            ValueError: `jit_compile` is True, there is an `objective`, or the optimizer asks for more than gradients.
        """
        check_compile(type(self).__name__, jit_compile, objective)
        super().compile(*args, jit_compile=False, **kwargs)
        self._check_optimizer()

    @functools.wraps(Model.fit, assigned=())
    def fit(self, *args, **kwargs):
        """Trains the model, as `kopt.Model.fit` does."""
        optimizer: Any = getattr(self, "optimizer", None)
        if optimizer is not None and not optimizer.built:  # here, since slots made within a trace lie anywhere
            optimizer.build(self.trainable_variables)
        return super().fit(*args, **kwargs)

    def _check_optimizer(self):
        """Refuses an optimizer that looks at a batch more than once, or knows other weights."""
        optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        nodes = [node for _, node in optimizer._nodes()] if isinstance(optimizer, Optimizer) else []
        if looking := [node for node in nodes if node.looks]:
            raise ValueError(
                f"{type(self).__name__}: optimizer must ask for gradients alone, and {type(looking[0]).__name__} asks "
                "more of each batch. Try kopt.AdamW, or kopt.Model on one device."
            )
        known = getattr(optimizer, "_trainable_variables_indices", {})
        if known and any(optimizer._var_key(variable) not in known for variable in self.trainable_variables):
            raise ValueError(
                f"{type(self).__name__}: optimizer must be new, and {type(optimizer).__name__} was built for other "
                "weights, or for these before they moved. Try type(optimizer).from_config(optimizer.get_config())."
            )

    def _run_through_graph(self, inputs, operation_fn=lambda operation: operation, **how):
        """As Keras has it, each operation on the device of its stage."""
        if self._devices is None:  # while the model is made
            return super()._run_through_graph(inputs, operation_fn, **how)
        pairs = zip(self._stages, self._devices[0], strict=True)
        places = {id(node.operation): device for stage, device in pairs for node in stage.nodes}

        def placed(operation):
            call = operation_fn(operation)

            def on_its_device(*args, **kwargs):
                with on_device(places.get(id(operation))):
                    return call(*args, **kwargs)

            return on_its_device

        return super()._run_through_graph(inputs, placed, **how)

    def train_step(self, data):
        """Takes a step on a batch, and returns the metrics by name."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._check_optimizer()
        outer: Any = self.optimizer
        inner, scale = inner_and_scale(outer)
        batch = PipelinedBatch(self, x, y, sample_weight, scale)

        def apply(grads, variables):
            with placement.beside_weights(inner):
                outer.apply(grads, variables)

        step(inner, batch, apply)
        track_loss(self, outer, batch.loss, x)
        return self.compute_metrics(x, y, batch.outputs, sample_weight=sample_weight)
