"""A trained network: arrays of its own, and programs that it shares with every network of its structure."""

import contextlib
import dataclasses
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kopt._forks import check_fork
from kopt.distribute import strategy as distributed
from kopt.optimizers import Optimizer
from kopt.training import cache
from kopt.training.program import predictions, program, weights

PROGRAMS = cache.Cache(size=32)

_building = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """How to make a network anew. Pickles if its parts do.

    Attributes:
        build: a function without arguments that returns a `keras.Model`.
        n_features: columns of the rows.
        dtype: of the rows, and of the layers that do not say otherwise.
        strategy: as the user gave it: see `kopt.distribute.strategy.resolve`.
        owner: who asks, for errors.
        device: as the user gave it.
        policy: name of the dtype policy of layers that do not say otherwise; None for `dtype`.
    """

    build: Callable[[], Any]
    n_features: int
    dtype: str
    strategy: Any
    owner: str
    device: str | None = None
    policy: str | None = None

    @property
    def placed(self):
        """The strategy, resolved."""
        check_fork(self.owner)
        return distributed.resolve(self.strategy, self.owner, self.device)

    def model(self):
        """Returns a model whose variables live where the strategy says."""
        with distributed.scope(self.placed), _seeded(0), _layers_in(self.dtype, self.policy):
            return self._built()[0]

    def draft(self, seed):
        """Returns a fresh model to read, the number of its outputs, and its initial weights as arrays.

        Keras builds it without TensorFlow's variables, which are slow to make and never quite freed.
        """
        try:
            with _seeded(seed), _layers_in(self.dtype, self.policy), keras.StatelessScope(initialize_variables=False):
                model, units = self._built()
                return model, units, [np.asarray(v.value) for v in weights(model)]
        except Exception:  # some layers make variables that cannot wait; an error of the user's comes again below
            with _seeded(seed), _layers_in(self.dtype, self.policy):
                model, units = self._built()
                return model, units, [np.asarray(v.value) for v in weights(model)]

    def _built(self):
        model = self.build()
        if not isinstance(model, keras.Model):
            raise TypeError(f"{self.owner}: model must return a keras.Model, got {model!r}.")
        outputs = getattr(model, "outputs", None) or [model(np.zeros((1, self.n_features), self.dtype))]
        shape = getattr(outputs[0], "shape", ())
        if len(outputs) != 1 or len(shape) != 2:
            raise ValueError(f"{self.owner}: model must have one output of shape (rows, units), got {outputs}.")
        return model, shape[1]


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
        self._n_weights = len(initial)
        self._state = [*initial, *self._program().unused_optimizer(cache.inputs_of_optimizer(*optimizer))]

    @property
    def weights(self):
        """The weights as arrays, in the order of a model's trainable, then other variables."""
        return self._state[: self._n_weights]

    def start_from(self, weights):
        """Takes weights of another network of this structure."""
        shapes, given = ([a.shape for a in arrays] for arrays in (self.weights, weights))
        if shapes != given:
            raise ValueError(
                f"{self.blueprint.owner}: warm_start must go on with the network it has, whose weights have shapes "
                f"{given}, got a model with {shapes}. Set warm_start=False."
            )
        self._state[: self._n_weights] = weights

    def train(self, X, y, w, *, epochs, batch_size, validation=None, patience=None, verbose=False):
        """Trains for some epochs.

        Args:
            X: rows, dense or sparse.
            y: targets.
            w: positive weights of the rows.
            epochs: how often to go over the rows, at most.
            batch_size: rows in a step; None for what suits the optimizer: see `Program.batch_size`.
            validation: rows, targets and weights on which the loss is followed.
            patience: epochs without a lower validation loss after which to stop, at the weights that had the lowest.
            verbose: whether to show a progress bar.

        Raises:
            ValueError: the loss is no longer a finite number, or the optimizer takes the data set as one batch and
                `batch_size` is less.
        """
        program, n_rows = self._program(), len(y)
        best, best_state, waited = np.inf, None, 0
        bar = keras.utils.Progbar(
            epochs, unit_name="epoch", verbose=int(verbose), stateful_metrics=["loss", "val_loss"]
        )
        with program.lock, distributed.scope(program.strategy):
            program.load(self._state)
            batch_size = program.batch_size(X, batch_size)
            program.swap("training")
            train = program.epochs(X, y, w, batch_size)
            for number in range(1, epochs + 1):
                shuffled = self._rng.permutation(n_rows) if n_rows > batch_size else np.arange(n_rows)
                logs = {"loss": train(shuffled.astype("int32")) / float(w.sum())}
                if not np.isfinite(logs["loss"]):
                    raise ValueError(
                        f"{self.blueprint.owner}: the loss must stay finite, got {logs['loss']} in epoch {number}. "
                        "Lower optimizer__learning_rate, scale the data, or clip gradients with optimizer__clipnorm."
                    )
                if validation is not None:
                    program.swap("evaluation")
                    logs["val_loss"] = program.evaluate(*validation)
                for name, value in logs.items():
                    self.history.setdefault(name, []).append(value)
                bar.update(number, list(logs.items()), finalize=number == epochs)
                if validation is not None:
                    waited += 1
                    if logs["val_loss"] < best:
                        best, best_state, waited = logs["val_loss"], program.state(), 0
                    if waited == patience:
                        bar.update(number, finalize=True)
                        break
                    program.swap("training")
            if best_state is not None:
                program.load(best_state)
            if program.optimizer.use_ema:  # the averages become the weights, as at the end of Keras's fit
                program.optimizer.finalize_variable_values(program.model.trainable_variables)
            program.swap("evaluation")
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
        self.optimizer, program = (kind, config), self._program()
        with program.lock, distributed.scope(program.strategy):
            program.load(self._state)
            program.set_inputs(cache.inputs_of_optimizer(kind, config))
            self._state = program.state()

    def __call__(self, X):
        """Returns the outputs for rows, dense or sparse, in their dtype."""
        program = self._program()
        if self._tensors is None:
            self._tensors = [tf.constant(a) for a in self.weights]
        return predictions(program.predict, X, self._tensors)

    def model(self):
        """Returns a `keras.Model` with these weights, for one device."""
        if self._model is None:
            model = dataclasses.replace(self.blueprint, strategy=None, device=None).model()
            for variable, array in zip(weights(model), self.weights, strict=True):
                variable.assign(array)
            self._model = model
        return self._model

    def _program(self):
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
        return *structures, treatments, self.blueprint.placed, self.blueprint.policy, *self._rows()

    def _compile(self):
        kind, config = self.optimizer
        model, strategy = self.blueprint.model(), self.blueprint.placed
        with distributed.scope(strategy):
            optimizer = kind.from_config(dict(config))
            distributed.check_optimizer(strategy, optimizer, self.blueprint.owner)
            if self.blueprint.policy == "mixed_float16" and optimizer.loss_scale_factor is None:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)  # as `compile` does
            optimizer.build(model.trainable_variables)
        return program(model, optimizer, self.loss, strategy, self._rows())

    def _rows(self):
        """What rows, targets and weights look like."""
        shape, dtype = self.target
        return (
            tf.TensorSpec([None, self.blueprint.n_features], self.blueprint.dtype),
            tf.TensorSpec([None, *shape], dtype),
            tf.TensorSpec([None], self.blueprint.dtype),
        )

    def __getstate__(self):
        return {**vars(self), "_key": None, "_found": None, "_model": None, "_tensors": None}


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
