"""Networks of estimators that train together: those of one program on the same rows, each as it would alone."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kopt._backend import pure
from kopt._keras import is_seed
from kopt.distribute import strategy as distributed
from kopt.training import stacked
from kopt.training.alike import check_steps
from kopt.training.memory import advised
from kopt.training.oracle import step
from kopt.training.program import dense, in_blocks
from kopt.training.stacked import Stacked, in_batches, mapped


class Fit(NamedTuple):
    """What `Network.train` got, of a network that nobody follows.

    Attributes:
        network: the `kopt.training.network.Network`.
        program: its program.
        X: rows, dense or sparse.
        y: targets.
        w: weights.
        epochs: how often to go over the rows.
        batch_size: rows in a step, or None.
    """

    network: Any
    program: Any
    X: Any
    y: Any
    w: Any
    epochs: int
    batch_size: int | None

    @property
    def is_apart(self):
        """Whether a network like this has to train alone."""
        program = self.program
        if distributed.replicas(program.strategy) > 1 or in_blocks(self.X):
            return True
        try:
            check_steps(program.model, program.outer, self.network.blueprint.owner)
            pure(program.optimizer)
        except ValueError:
            return True
        return False

    def is_like(self, other):
        """Whether both can train as one."""
        return (
            self.program is other.program
            and (self.epochs, self.batch_size) == (other.epochs, other.batch_size)
            and all(_equal(a, b) for a, b in ((self.X, other.X), (self.y, other.y), (self.w, other.w)))
        )


def _equal(a, b):
    return a is b or (a.shape == b.shape and np.array_equal(dense(a), dense(b)))


def train_all(fits):
    """Trains the networks that have their like; returns for each whether it was, and the error that it met, or None."""
    outcomes: Any = [(False, None)] * len(fits)
    for population in _populations(fits):
        if len(population) > 1:
            numbers, like = zip(*population, strict=True)
            errors = _train([fit.network for fit in like], like[0])
            for number, error in zip(numbers, errors or (), strict=errors is not None):
                outcomes[number] = True, error
    return outcomes


def _populations(fits):
    """Lists of the fits that can train as one, each with its number."""
    populations = []
    for numbered in enumerate(fits):
        like = next((each for each in populations if each[0][1].is_like(numbered[1])), None)
        if like is None:
            populations.append([numbered])
        else:
            like.append(numbered)
    return populations


def _train(networks, fit):
    """Trains networks that are alike, as the fit of one of them says; returns errors, or None where it cannot."""
    program, n_rows, owner = fit.program, len(fit.w), networks[0].blueprint.owner
    errors: Any = [None] * len(networks)
    with program.lock, distributed.scope(program.strategy):
        batch_size = program.batch_size(fit.X, fit.batch_size)
        rows = program.on_device(fit.X, fit.y, fit.w)
        many = fit.epochs * -(-n_rows // batch_size) >= stacked.MANY
        jit_compile = "auto" if many and not any(map(is_seed, program.weights)) else False  # XLA draws other numbers
        shared = n_rows <= batch_size or all(network.orders_as(networks[0]) for network in networks)
        key = len(networks), n_rows, batch_size, shared, jit_compile
        population = program.populations.find(key, lambda: StackedNetworks(program, batch_size, jit_compile, owner))
        states = []
        for network in networks:
            network.begin(program)
            states.append(program.state())
        population.load(states)
        try:
            population.compile(rows, shared)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
            return None
        for _ in range(fit.epochs):
            orders = [network.order(n_rows, batch_size) for network in networks]
            with advised("Let fewer networks train together."):
                losses = population.train(rows, tf.constant(orders[0] if shared else orders)) / float(fit.w.sum())
            for number, (network, loss) in enumerate(zip(networks, losses, strict=True)):
                if errors[number] is None and not np.isfinite(loss):
                    errors[number] = network.not_finite(float(loss))
                network.history["loss"].append(float(loss))
            if None not in errors:
                break
        for network, state in zip(networks, population.states(), strict=True):
            program.load(state)
            network.end(program)
        population.state = []  # which the next one brings
    return errors


class StackedNetworks(Stacked):
    """Several networks of one `kopt.training.program.Program`, which train by its steps on rows that they share.

    Args:
        program: the program, of one device, whose optimizer has no wrapper.
        batch_size: rows in a step.
        jit_compile: whether XLA compiles the program; "auto" if it can.
        owner: who asks, for errors.
    """

    def __init__(self, program, batch_size, jit_compile, owner):
        super().__init__(program.optimizer, [*program.weights, *program.optimizer.variables], jit_compile, owner)
        self.program, self.batch_size = program, batch_size

    def compile(self, rows, shared):
        """Compiles `train` for these rows.

        Args:
            rows: X, y and w, as tensors.
            shared: whether all networks will see one order of them.

        Raises:
            ValueError: TensorFlow cannot take the step for several networks at once.
        """
        order = tf.range(rows[0].shape[0])
        order = order if shared else tf.stack([order] * self.state[0].shape[0])
        self._program(self._epoch, self.state, self.steps, rows, order)

    def train(self, rows, order):
        """Trains for an epoch, and returns the sum of w · loss of each network, as an array.

        Args:
            rows: X, y and w, as tensors.
            order: the numbers of the rows as all networks see them; or a row of numbers for each.
        """
        self.state, self.steps, totals = self._run(self._epoch, self.state, self.steps, rows, order)
        return totals.numpy()

    def _epoch(self, state, steps, rows, order):
        def take(start, size, carried):
            state, steps, totals = carried
            numbers = tf.gather(order, start + tf.range(size), axis=-1)
            batch = [tf.gather(x, numbers) for x in rows]
            if order.shape.rank == 1:
                state, losses = mapped(lambda own: self._step(own, steps, batch), state)
            else:
                state, losses = mapped(lambda own: self._step(own[0], steps, own[1]), (state, batch))
            return state, [taken + 1 for taken in steps], totals + losses

        begin = state, steps, tf.zeros([state[0].shape[0]], rows[2].dtype)
        return in_batches(take, order.shape[-1], self.batch_size, begin)

    def _step(self, state, steps, batch):
        """State of a network after a step, and the sum of w · loss."""
        X, y, w = batch
        weight = tf.reduce_sum(w)
        with self._at(state, steps) as scope:
            look = self.program.batch(X, y, w, weight)
            step(self.optimizer, look, self.optimizer.apply)
        return self._left_in(scope), weight * look.loss
