"""The passes of a pipeline's stages, forward and backward, in the order of a schedule, in one graph."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf
from keras import tree

from kopt._keras import is_seed
from kopt.distribute.pipeline import schedules
from kopt.distribute.pipeline.carried import Carried
from kopt.distribute.seeds import reseeded


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a micro-batch brings.

    Attributes:
        number: its own, in the whole batch.
        inputs: the tensor for each input of the model.
        share: the part that its rows are of all, and 0 where it has none.
        extra: what the last stage computes the loss from, besides outputs.
    """

    number: int
    inputs: Any
    share: Any
    extra: Any


class Record(NamedTuple):
    """A pass forward that can be differentiated.

    Attributes:
        outcome: its `Outcome`.
        tape: that knows how it came.
        weights: what it can be differentiated by.
        sources: and else, by the symbolic tensor's identity and the name of its part.
    """

    outcome: Any
    tape: Any
    weights: Any
    sources: Any


class Passes:
    """One pipeline's way through its micro-batches: a batch's losses, gradients and new states.

    Each stage waits with a pass for its pass before, whatever else may be ready: that is what bounds the micro-batches
    that it holds. Between stages nothing waits for more than its tensors.

    Args:
        programs: a `StageProgram` for each stage.
        devices: the name of each stage's device.
        feeds: a `Feed` for each micro-batch.
        values: what variables hold, by the variable's identity.
        scale: what the loss is multiplied by while it is differentiated, or None.
        recompute: whether to keep what stages take alone, and go forward again before going back.

    Attributes:
        outcomes: the `Outcome` of each micro-batch at each stage.
        sums: for each stage the gradient for each of its weights, over the micro-batches.
    """

    def __init__(self, programs, devices, feeds, values, scale=None, recompute=False):
        self.programs, self.devices, self.feeds, self.scale = programs, devices, feeds, scale
        self.recompute, self._values = recompute, values
        self.outcomes = [[None] * len(programs) for _ in feeds]
        self.sums: list[list[Any]] = [[None] * len(program.weights) for program in programs]
        self._crossing = [{key: Carried(x) for key, x in feed.inputs.items()} for feed in feeds]
        self._slopes = [{} for _ in feeds]
        self._kept, self._before = {}, [[] for _ in programs]
        self._copies = [self._copy(stage) for stage in range(len(programs))]

    def run(self, table):
        """Goes through a schedule: see `kopt.distribute.pipeline.schedules`."""
        again = [self.recompute and schedules.held(tasks) > 1 for tasks in table]
        for _, _, stage, task in schedules.run(table):
            with tf.device(self.devices[stage]), tf.control_dependencies(self._before[stage]):
                if task.forward:
                    self._forward(stage, task.number, keep=not again[stage])
                else:
                    self._backward(stage, task.number)

    def _copy(self, stage):
        """What a stage's variables hold, on its device."""
        program = self.programs[stage]
        with tf.device(self.devices[stage]):
            return [[tf.identity(self._values[id(v)]) for v in some] for some in (program.weights, program.state)]

    def _arguments(self, stage, number):
        """The arguments of a stage's program for a micro-batch."""
        program, feed = self.programs[stage], self.feeds[number]
        weights, state = self._copies[stage]
        seeds = [reseeded(x, feed.number) if is_seed(v) else x for v, x in zip(program.state, state, strict=True)]
        takes = [self._crossing[number][id(tensor)].each(tf.identity) for tensor in program.stage.takes]
        last = stage == len(self.programs) - 1
        return weights, seeds, takes, feed.share, tree.map_structure(_copy, feed.extra) if last else ()

    def _forward(self, stage, number, keep):
        """A pass forward, recorded for the one back if `keep`."""
        arguments = self._arguments(stage, number)
        kept = self._recorded(stage, arguments) if keep else arguments
        outcome = kept.outcome if isinstance(kept, Record) else self.programs[stage].run(*arguments)
        self.outcomes[number][stage], self._kept[stage, number] = outcome, kept
        gives = self.programs[stage].stage.gives
        self._crossing[number] |= {id(t): x for t, x in zip(gives, outcome.gives, strict=True)}
        self._before[stage] = [x for x in tree.flatten(outcome) if x is not None]

    def _recorded(self, stage, arguments):
        """The `Record` of a pass forward with these arguments."""
        program, (weights, state, takes, share, extra) = self.programs[stage], arguments
        inputs = {id(tensor) for tensor in program.model.inputs}
        made = [(t, x) for t, x in zip(program.stage.takes, takes, strict=True) if id(t) not in inputs]
        sources = {(id(t), name): part for t, x in made for name, part in x.slopes().items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*weights, *sources.values()])
            outcome = program.run(weights, state, takes, share, extra)
        return Record(outcome, tape, weights, sources)

    def _backward(self, stage, number):
        """A pass back: adds to the sums, and leaves the slopes of what was taken to those who gave it."""
        record: Any = self._kept.pop((stage, number))
        if not isinstance(record, Record):  # from copies made now: else TensorFlow would merge it with the first pass
            record = self._recorded(stage, tree.map_structure(_copy, record))
        outcome, tape, weights, sources = record
        targets, slopes = [], []
        for tensor, given in zip(self.programs[stage].stage.gives, outcome.gives, strict=True):
            for name, part in given.slopes().items():
                if found := self._slopes[number].pop((id(tensor), name), None):
                    targets.append(part)
                    slopes.append(found[0] if len(found) == 1 else tf.add_n(found))
        if outcome.loss is not None:
            targets.append(outcome.loss)
            one = tf.ones((), outcome.loss.dtype)
            slopes.append(one if self.scale is None else tf.cast(self.scale, outcome.loss.dtype))
        if not targets or not (weights or sources):
            return
        found = tape.gradient(targets, [*weights, *sources.values()], output_gradients=slopes)
        self.sums[stage] = [plus(a, b) for a, b in zip(self.sums[stage], found[: len(weights)], strict=True)]
        for key, slope in zip(sources, found[len(weights) :], strict=True):
            if slope is not None:
                self._slopes[number].setdefault(key, []).append(tf.convert_to_tensor(slope))
        done = [*self.sums[stage], *found[len(weights) :]]
        self._before[stage] = [x for x in done if x is not None]


def _copy(x):
    return None if x is None else tf.identity(x)


def plus(a, b):
    """The sum of two gradients, each a tensor, a sparse one, or None. Sparse ones stay sparse."""
    if a is None or b is None:
        return a if b is None else b
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        values, indices = tf.concat([a.values, b.values], 0), tf.concat([a.indices, b.indices], 0)
        return tf.IndexedSlices(values, indices, a.dense_shape)
    return tf.convert_to_tensor(a) + tf.convert_to_tensor(b)
