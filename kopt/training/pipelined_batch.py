"""A batch as a pipeline takes it: in micro-batches whose losses and gradients add up to its own."""

import itertools
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import dense
from kopt._keras import give_mask, is_seed, mask_of, outputs_of
from kopt.distribute.pipeline.passes import Feed, Passes, plus
from kopt.distribute.pipeline.program import StageProgram
from kopt.distribute.pipeline.schedules import SCHEDULES
from kopt.training.batch import Batch
from kopt.training.model import Model


class PipelinedBatch(Batch):
    """A batch that is looked at once, for its gradient, by the stages of a `kopt.PipelineModel`.

    Args:
        model: the model.
        x: as `train_step` is given them, as the next ones.
        y: targets.
        sample_weight: weights.
        scale: as in `Batch`.
    """

    def __init__(self, model, x, y, sample_weight, scale=None):
        build_losses(model, y)
        super().__init__(model, None, scale)
        self.x, self.y, self.sample_weight = x, y, sample_weight
        self.rows = tf.shape(next(part for part in tree.flatten(x) if part is not None))[0]
        self.number = model._pipeline["micro_batches"] * model._pipeline["pipelines"]

    def look(self, weights, through=None):
        """Refused."""
        raise ValueError(
            f"{type(self.model).__name__}: the optimizer asks more of each batch than its gradient. Try kopt.Model."
        )

    def differentiate(self, weights):
        """As in `Batch`; the look that is taken is the only one."""
        model, settings = self.model, self.model._pipeline
        values = {id(variable): value for variable, value in self._others}
        values |= {id(variable): value for variable, value in zip(self.variables, weights, strict=True)}
        programs, feeds = self._programs(), self._feeds()
        table = SCHEDULES[settings["schedule"]](len(programs), settings["micro_batches"])
        pipelines = []
        for number, devices in enumerate(model._devices):
            some = feeds[number * settings["micro_batches"] :][: settings["micro_batches"]]
            passes = Passes(programs, devices, some, values, self.scale, settings["recompute"])
            passes.run(table)
            pipelines.append(passes)
        outcomes = [each for passes in pipelines for each in passes.outcomes]
        losses = [stage.loss for each in outcomes for stage in each if stage.loss is not None]
        penalties, slopes = self._penalties(weights)
        self.loss = tf.add_n([tf.cast(loss, losses[0].dtype) for loss in (*losses, *penalties)])
        self._keep_state(programs, feeds, outcomes)
        self.outputs = outputs_of(model, self._joined([each[-1].outputs for each in outcomes]))
        return self.loss, self._summed(programs, pipelines, slopes)

    def _programs(self):
        """A `StageProgram` for each stage."""
        model, trained = self.model, {id(v) for v in self.variables}
        others = [variable for variable, _ in self._others]
        of_layers = {id(v) for stage in model._stages for v in stage.used}
        programs = []
        for number, stage in enumerate(model._stages):
            last = number == len(model._stages) - 1
            used = {id(v): v for v in stage.used}
            if last:  # where losses are computed, with the model's own variables, and metrics that compute_loss has
                used |= {id(v): v for v in (*self.variables, *others) if id(v) not in of_layers}
            weights = [v for v in used.values() if id(v) in trained]
            state = [v for v in used.values() if id(v) not in trained]
            programs.append(StageProgram(model, stage, weights, state, self._loss if last else None))
        return programs

    def _loss(self, outputs, extra):
        """A micro-batch's part in the loss of the outputs."""
        x, y, sample_weight, factor = extra
        with self.model._without_losses():
            loss = self.model._compute_loss(x, y, outputs_of(self.model, outputs), sample_weight, training=True)
        return loss * tf.cast(factor, loss.dtype)

    # ---- what each micro-batch is given --------------------------------------------------------------------------

    def _feeds(self):
        """A `Feed` for each micro-batch. One without rows borrows a row, which does not count."""
        bounds = [self.rows * number // self.number for number in range(self.number + 1)]
        self._counts = [end - start for start, end in itertools.pairwise(bounds)]
        starts = [tf.minimum(start, self.rows - 1) for start in bounds[:-1]]
        pieces = [(start, start + tf.maximum(count, 1)) for start, count in zip(starts, self._counts, strict=True)]
        inputs = self.model._standardize_inputs(self.x)
        if odd := [type(x).__name__ for x in inputs if not isinstance(x, tf.Tensor)]:
            raise ValueError(f"{type(self.model).__name__}: x must be dense tensors, one for each input, got {odd[0]}.")
        self._shares = _shares(self._counts)
        self._factors = self._loss_factors(pieces)
        own_loss = type(self.model).compute_loss is not Model.compute_loss  # Keras's, and kopt's, leave x aside
        data = self.x if own_loss else None, self.y, self.sample_weight
        feeds = []
        for number, (start, end) in enumerate(pieces):
            own = {id(t): x[start:end] for t, x in zip(self.model.inputs, inputs, strict=True)}
            part = [tree.map_structure(lambda a, s=start, e=end: None if a is None else a[s:e], each) for each in data]
            feeds.append(Feed(number, own, self._shares[number], (*part, self._factors[number])))
        return feeds

    def _loss_factors(self, pieces):
        """What each micro-batch's loss is multiplied by so that their sum is the batch's."""
        reductions = {getattr(loss, "reduction", "sum_over_batch_size") for loss in tree.flatten(self.losses)}
        who = type(self.model).__name__
        if len(reductions) > 1 or reductions & {None, "none"}:
            raise ValueError(
                f"{who}: all losses must be reduced alike, to means or sums, got {sorted(map(str, reductions))}."
            )
        (reduction,) = reductions
        if reduction == "sum":
            return [tf.cast(count > 0, "float32") for count in self._counts]
        masks = self._masks()
        weights = [x for x in tree.flatten(self.sample_weight) if x is not None]
        if reduction != "mean_with_sample_weight":
            weights = []
        if len(weights) > 1 or len(masks) > 1 or (masks and len(self.model.outputs) > 1):
            raise ValueError(
                f"{who}: all outputs must share what their losses are divided by, and several have masks, or sample "
                f"weights under reduction={reduction!r}. Join the outputs, or weigh them by hand."
            )
        if not masks and not weights:
            return self._shares
        counted = [tf.cast(x, "float32") for x in (*masks, *weights)]
        rank = max(len(x.shape) for x in counted)
        whole: Any = 1.0
        for x in counted:
            whole *= tf.reshape(x, tf.concat([tf.shape(x), tf.ones(rank - len(x.shape), "int32")], 0))
        sums = [tf.reduce_sum(whole[start:end]) for start, end in pieces]
        return _shares([tf.where(n > 0, s, 0.0) for n, s in zip(self._counts, sums, strict=True)])

    def _masks(self):
        """The mask of each output that has one, for all rows. All else that comes with it is pruned from the graph."""
        if all(mask_of(tensor) is None for tensor in self.model.outputs):
            return []
        mapping = [*self._others, *((v, dense(v)) for v in self.variables)]
        with keras.StatelessScope(mapping, collect_losses=True):
            outputs = tree.flatten(self.model(self.x, training=True))
        return [mask for mask in map(mask_of, outputs) if mask is not None]

    # ---- what all of them come to --------------------------------------------------------------------------------

    def _penalties(self, weights):
        """The losses of the weights' regularizers, and their gradient for each weight."""
        losses, slopes = [], []
        for variable, weight in zip(self.variables, weights, strict=True):
            slopes.append(None)
            if variable.regularizer is not None:
                with tf.device(variable.value.device), tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(weight)
                    losses.append(tf.reduce_sum(variable.regularizer(weight)))
                    scaled = losses[-1] if self.scale is None else tf.cast(self.scale, losses[-1].dtype) * losses[-1]
                with tf.device(variable.value.device):
                    slopes[-1] = tape.gradient(scaled, weight)
        return losses, slopes

    def _summed(self, programs, pipelines, slopes):
        """The gradient for each weight, where the weight lies."""
        sums = dict(zip(map(id, self.variables), slopes, strict=True))
        for number, program in enumerate(programs):
            for position, variable in enumerate(program.weights):
                with tf.device(variable.value.device):
                    for passes in pipelines:
                        sums[id(variable)] = plus(sums[id(variable)], passes.sums[number][position])
        return [sums[id(variable)] for variable in self.variables]

    def _keep_state(self, programs, feeds, outcomes):
        """Assigns what the passes have changed besides the weights: the mean of it by rows, or what the first has."""
        before, done = {id(variable): value for variable, value in self._others}, {}
        totals = {id(metric.total) for metric in getattr(self.model._compile_loss, "metrics", ())}
        for stage, program in enumerate(programs):
            for position, variable in enumerate(program.state):
                new = [each[stage].state[position] for each in outcomes]
                if new[0] is None:
                    continue
                if id(variable) in done:
                    raise ValueError(
                        f"{type(self.model).__name__}: a layer that changes a state must be in one stage, and "
                        f"{variable.path} is changed in stages {done[id(variable)]} and {stage}. Cut elsewhere."
                    )
                done[id(variable)] = stage
                shares = self._factors if id(variable) in totals else self._shares
                variable.assign(_mean(before[id(variable)], new, shares) if _blends(variable) else new[0])

    def _joined(self, outputs):
        """The outputs for all rows, of those for each micro-batch."""
        found = []
        for parts in zip(*outputs, strict=True):
            joined = tf.concat([x.value[:n] for x, n in zip(parts, self._counts, strict=True)], 0)
            if parts[0].mask is not None:
                give_mask(joined, tf.concat([x.mask[:n] for x, n in zip(parts, self._counts, strict=True)], 0))
            found.append(joined)
        return found


def build_losses(model, y):
    """Makes the metrics that Keras has for each of several losses, which no look can."""
    compiled = model._compile_loss
    if compiled is not None and not compiled.built and len(tree.flatten(model.loss)) > 1:
        compiled.build(y, outputs_of(model, model.outputs))


def _shares(counts):
    """Each of some counts over the sum of all."""
    counts = [tf.cast(count, "float64") for count in counts]
    return [tf.math.divide_no_nan(count, tf.add_n(counts)) for count in counts]


def _blends(variable):
    """Whether values of a variable have a mean."""
    return not is_seed(variable) and tf.as_dtype(variable.dtype).is_floating


def _mean(before, new, shares):
    """before + Σ share · (new - before)"""
    return before + tf.add_n([tf.cast(s, before.dtype) * (x - before) for x, s in zip(new, shares, strict=True)])
