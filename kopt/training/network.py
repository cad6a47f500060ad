"""A trained network: arrays of its own, and programs that it shares with every network of its structure."""

import contextlib
import dataclasses
import json
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from kopt._forks import check_fork
from kopt._keras import sketching
from kopt.distribute import strategy as distributed
from kopt.distribute.checks import check_layers
from kopt.noise import reseeded
from kopt.optimizers import Optimizer
from kopt.training import cache, meeting
from kopt.training.files import read_as, write_arrays
from kopt.training.followers import All, Course
from kopt.training.look import variables_of_objective
from kopt.training.program import predictions, program, weights
from kopt.training.several import Joined, apart
from kopt.training.together import Fit

PROGRAMS = cache.Cache(size=32)

_building = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """How to make a network anew. Pickles if its parts do.

    Attributes:
        build: a function without arguments that returns a `keras.Model`.
        shape: of a row.
        dtype: of the rows, and of the layers that do not say otherwise.
        strategy: as the user gave it: see `kopt.distribute.strategy.resolve`.
        owner: who asks, for errors.
        device: as the user gave it.
        policy: name of the dtype policy of layers that do not say otherwise; None for `dtype`.
        objective: what steps minimize in the place of the loss, as Keras serializes it, or None.
    """

    build: Callable[[], Any]
    shape: tuple[int, ...]
    dtype: str
    strategy: Any
    owner: str
    device: str | None = None
    policy: str | None = None
    objective: dict | None = None

    @property
    def placed(self):
        """The strategy, resolved."""
        check_fork(self.owner)
        return distributed.resolve(self.strategy, self.owner, self.device)

    def model(self):
        """Returns a model whose variables live where the strategy says, with one output: several are `Joined`."""
        with distributed.scope(self.placed), _seeded(0), _layers_in(self.dtype, self.policy):
            return self._built()[0]

    def draft(self, seed):
        """Returns a fresh model to read, the units of each of its outputs, and its initial weights as arrays.

        Keras builds it without TensorFlow's variables, which are slow to make and never quite freed.
        """
        try:
            with _seeded(seed), _layers_in(self.dtype, self.policy), sketching():
                model, units = self._built()
                return model, units, [np.asarray(v.value) for v in weights(model)]
        except Exception:  # some layers make variables that cannot wait; an error of the user's comes again below
            with _seeded(seed), _layers_in(self.dtype, self.policy):
                model, units = self._built()
                return model, units, [np.asarray(v.value) for v in weights(model)]

    def _built(self):
        """The model, with one output where the user's has several, and the units of each."""
        model = self.build()
        if not isinstance(model, keras.Model):
            raise TypeError(f"{self.owner}: model must return a keras.Model, got {model!r}.")
        if getattr(model, "objective", None) is not None:
            raise ValueError(
                f"{self.owner}: model must have no objective of its own, got {type(model.objective).__name__}. Give it "
                "to the estimator as objective."
            )
        outputs = getattr(model, "outputs", None) or tree.flatten(model(np.zeros((1, *self.shape), self.dtype)))
        if any(len(getattr(output, "shape", ())) != 2 for output in outputs):
            raise ValueError(f"{self.owner}: model must have outputs of shape (rows, units), got {outputs}.")
        units = tuple(output.shape[1] for output in outputs)
        model = model if len(units) == 1 else Joined(model)
        if self.objective is not None:  # untracked, as in `kopt.Model`
            model.__dict__["objective"] = keras.saving.deserialize_keras_object(self.objective)
        return model, units


class Network:
    """A network with its weights and its optimizer's state.

    Args:
        blueprint: makes the like of `draft`.
        draft: a model of the blueprint.
        initial: its weights.
        optimizer: the optimizer's class and its configuration.
        loss: as `kopt.training.losses.resolve` returns it.
        target: the shape of one target, and its dtype.
        seed: of the order in which rows are visited.

    Attributes:
        history: the values of each epoch, by name.
    """

    def __init__(self, blueprint, draft, initial, optimizer, loss, target, seed):
        self.blueprint, self.optimizer, self.loss, self.target = blueprint, optimizer, loss, target
        self.history = {}
        self._rng = np.random.default_rng(seed)
        self._key, self._found, self._model, self._tensors = self._key_of(draft), None, None, None
        self._n_weights, self._n_own = len(initial), len(initial) - len(variables_of_objective(draft))
        self._state = [*initial, *self.program().unused_optimizer(cache.inputs_of_optimizer(*optimizer))]

    @property
    def weights(self):
        """The weights as arrays, in the order of a model's trainable, then other variables, then the objective's."""
        return self._state[: self._n_weights]

    @property
    def own_weights(self):
        """The same without the objective's."""
        return self._state[: self._n_own]

    def start_from(self, weights):
        """Takes weights of another network of this structure."""
        shapes, given = ([a.shape for a in arrays] for arrays in (self.own_weights, weights))
        if shapes != given:
            raise ValueError(
                f"{self.blueprint.owner}: warm_start must go on with the network it has, whose weights have shapes "
                f"{given}, got a model with {shapes}. Set warm_start=False."
            )
        self._state[: self._n_own] = weights

    def check_objective(self, objective):
        """Raises ValueError unless this is the objective that the network is trained with."""
        if objective != self.blueprint.objective:
            raise ValueError(
                f"{self.blueprint.owner}: partial_fit must go on with the objective it has, "
                f"{_told(self.blueprint.objective)}, got {_told(objective)}. Fit anew."
            )

    def keep(self, path):
        """Writes where training stands to a file, for `go_on`."""
        about = {"history": self.history, "order": self._rng.bit_generator.state}
        arrays: Any = {str(i): array for i, array in enumerate(self._state)}
        write_arrays(path, arrays | {"about": np.array(json.dumps(about))})

    def go_on(self, path):
        """Goes on from a file of `keep`, to the bit, if there is one; returns how many epochs it has."""
        if not path.exists():
            return 0
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            self._state = [read_as(file[str(i)], own.dtype) for i, own in enumerate(self._state)]
        self.history, self._rng.bit_generator.state = about["history"], about["order"]
        return len(self.history["loss"])

    def at(self, state):
        """Returns this network with other arrays for weights and optimizer, in the order of `Program.variables`."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _state=state, _model=None, _tensors=None)
        return other

    def train(self, X, y, w, *, epochs, batch_size, followers=(), planned=None):
        """Trains for some epochs.

        Args:
            X: rows, dense or sparse.
            y: targets.
            w: positive weights of the rows.
            epochs: how often to go over the rows, at most.
            batch_size: rows in a step; None for what suits the optimizer: see `Program.batch_size`.
            followers: `kopt.training.followers.Follower`s, which are told in this order.
            planned: how many epochs there are in all, where these are a part of them.

        Raises:
            ValueError: the loss is no longer a finite number, or the optimizer takes the data set as one batch and
                `batch_size` is less.
        """
        program, n_rows = self.program(), len(w)
        if not followers and meeting.meet(Fit(self, program, X, y, w, epochs, batch_size)):
            return
        followers, logs = All(followers), {}
        with program.lock, distributed.scope(program.strategy):
            self.begin(program)
            first = len(self.history["loss"])
            batch_size = program.batch_size(X, batch_size)
            planned = 0 if followers.wants_batches else planned or epochs
            train = program.epochs(X, y, w, batch_size, planned)
            course = Course(self, program, first, epochs, -(-n_rows // batch_size))
            followers.begin(course)
            for number in range(first, first + epochs):
                followers.begin_epoch(number)
                loss, stop = _epoch(train, self.order(n_rows, batch_size), w, batch_size, followers)
                logs = {"loss": loss}
                if not np.isfinite(loss):
                    raise self.not_finite(loss)
                if followers.looks:
                    program.swap("evaluation")
                stop |= followers.end_epoch(number, logs)
                for name, value in logs.items():
                    self.history.setdefault(name, []).append(value)
                if stop:
                    break
                program.swap("training")
            followers.restore()
            self.end(program, lambda: followers.end(logs))

    def begin(self, program):
        """Takes its values to its program, to train there."""
        self.history.setdefault("loss", [])
        program.load(self._state)
        program.swap("training")

    def orders_as(self, other):
        """Whether another network will visit rows in the same order."""
        return self._rng.bit_generator.state == other._rng.bit_generator.state

    def order(self, n_rows, batch_size):
        """The numbers of the rows in the order of the next epoch."""
        shuffled = self._rng.permutation(n_rows) if n_rows > batch_size else np.arange(n_rows)
        return shuffled.astype("int32")

    def not_finite(self, loss):
        """The error of an epoch that ends with this loss."""
        return ValueError(
            f"{self.blueprint.owner}: the loss must stay finite, got {loss} in epoch {len(self.history['loss']) + 1}. "
            "Lower optimizer__learning_rate, scale the data, or clip gradients with optimizer__clipnorm."
        )

    def end(self, program, last=lambda: None):
        """Takes from its program the values that it has come to; `last` may still change them there."""
        if program.optimizer.use_ema:  # the averages become the weights, as at the end of Keras's fit
            program.optimizer.finalize_variable_values(program.model.trainable_variables)
        program.swap("evaluation")
        last()
        self._state = program.state()
        self._model = self._tensors = None

    def set_optimizer(self, kind, config):
        """Goes on with these numbers for hyperparameters; the optimizer's state stays.

        Raises:
            ValueError: more than numbers would change.
        """
        if (kind, config) == self.optimizer:
            return
        structures = [cache.structure_of_optimizer(*each) for each in (self.optimizer, (kind, config))]
        if structures[0] != structures[1]:
            raise ValueError(
                f"{self.blueprint.owner}: partial_fit must go on with the optimizer it has, "
                f"{self.optimizer[0].__name__}, of which only numbers may change that were not zero. Fit anew."
            )
        self.optimizer, program = (kind, config), self.program()
        with program.lock, distributed.scope(program.strategy):
            program.load(self._state)
            program.set_inputs(cache.inputs_of_optimizer(kind, config))
            self._state = program.state()

    def __call__(self, X):
        """Returns the outputs for rows, dense or sparse, in their dtype."""
        return self._run(self.program().predict, X)

    def draws(self, X, samples, seed):
        """Returns as many outputs for rows as samples, with the noise of training: (samples, rows, units)."""
        program, rng, seen = self.program(), np.random.default_rng(seed), []
        for _ in range(samples):
            tensors = [tf.constant(a) for a in reseeded(program.weights, self.weights, rng)]
            seen.append(predictions(program.draw, X, tensors))
        return np.stack(seen)

    def hidden(self, X, place):
        """Returns the outputs of the layer at a place, a vector for each row: see `kopt.training.several.place`."""
        return self._run(self.program().hidden(place), X)

    def _run(self, predict, X):
        if self._tensors is None:
            self._tensors = [tf.constant(a) for a in self.weights]
        return predictions(predict, X, self._tensors)

    def model(self):
        """Returns a `keras.Model` with these weights, for one device, as the user has made it."""
        if self._model is None:
            model = dataclasses.replace(self.blueprint, strategy=None, device=None, objective=None).model()
            for variable, array in zip(weights(model), self.own_weights, strict=True):
                variable.assign(array)
            self._model = apart(model)
        return self._model

    def program(self):
        """The program of this structure, from the cache or compiled anew."""
        check_fork(self.blueprint.owner)
        found = self._found and self._found()
        if found is None or PROGRAMS.latest is not found:
            if self._key is None:
                self._key = self._key_of(self.blueprint.draft(seed=0)[0])
            found = PROGRAMS.find(self._key, self._compile)
            self._found = weakref.ref(found)
        return found

    def _key_of(self, draft):
        structures = (
            cache.structure_of_model(draft),
            cache.structure_of_optimizer(*self.optimizer),
            cache.structure_of_loss(self.loss),
        )
        kind, config = self.optimizer
        treatments = ()  # by the weights' names, which structures leave out
        if issubclass(kind, Optimizer):
            treatments = tuple(kind.from_config(dict(config)).treatments(draft.trainable_variables))
        objective = cache.structure_of_objective(self.blueprint.objective, draft)
        return *structures, treatments, objective, self.blueprint.placed, self.blueprint.policy, *self._rows()

    def _compile(self):
        kind, config = self.optimizer
        model, strategy = self.blueprint.model(), self.blueprint.placed
        check_layers(model, strategy, self.blueprint.owner)
        with distributed.scope(strategy):
            optimizer = kind.from_config(dict(config))
            if self.blueprint.policy == "mixed_float16" and optimizer.loss_scale_factor is None:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)  # as `compile` does
            optimizer.build(model.trainable_variables)
        return program(model, optimizer, self.loss, strategy, self._rows())

    def _rows(self):
        """What rows, targets and weights look like."""
        shape, dtype = self.target
        return (
            tf.TensorSpec([None, *self.blueprint.shape], self.blueprint.dtype),
            tf.TensorSpec([None, *shape], dtype),
            tf.TensorSpec([None], self.blueprint.dtype),
        )

    def __getstate__(self):
        return {**vars(self), "_key": None, "_found": None, "_model": None, "_tensors": None}


def _epoch(train, order, w, batch_size, follower):
    """Trains for an epoch in this order; returns the mean loss, and whether the follower wants to stop."""
    if not follower.wants_batches:
        return train(order) / float(w.sum()), False
    total = weight = 0.0
    for number, start in enumerate(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        follower.begin_batch(number)
        total, weight = total + train(batch), weight + float(w[batch].sum())
        if follower.end_batch(number, {"loss": total / weight}):
            return total / weight, True
    return total / weight, False


def _told(objective):
    """An objective in words."""
    if objective is None:
        return "None"
    return f"{objective['class_name']}({', '.join(f'{name}={x!r}' for name, x in objective['config'].items())})"


@contextlib.contextmanager
def _seeded(seed):
    """Seeds what Keras and numpy draw from unless told otherwise, and puts the generators back as they were."""
    with _building:
        python, legacy = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextlib.contextmanager
def _layers_in(dtype, asked=None):
    """Makes layers compute as asked; else in the rows' dtype, unless Keras was told another one than its default."""
    policy = keras.config.dtype_policy()
    if asked or policy.name in ("float32", "float64"):
        keras.config.set_dtype_policy(asked or dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
