"""Noise for recurrent networks."""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kopt.layers.base import Rates, Scheduled


@keras.saving.register_keras_serializable("kopt")
class Zoneout(keras.layers.RNN, Rates):
    """A recurrent network some of whose units keep, at each step, the state that they had.

        h_t = z · h_{t-1} + (1 - z) · h̃_t,  z ~ Bernoulli(rate) for each unit, example and step        when training
        h_t = rate · h_{t-1} + (1 - rate) · h̃_t                                                         else

    with h̃ what the cell would have next. The states after the first, of an LSTM the memory c, have a rate of their
    own. Where a mask leaves steps out, states stay, as in any `keras.layers.RNN`.

    Dropout of what goes around in a recurrent network, with one mask for all steps (Gal and Ghahramani 2016), Keras
    has: `recurrent_dropout` of its `LSTM`, `GRU` and `SimpleRNN`.

    Args:
        cell: a cell, as `keras.layers.LSTMCell(32)`, whose output is its first state.
        rate: probability that a unit keeps its state, in [0, 1), or a schedule; the paper's is 0.05 for h.
        cell_rate: the same for the states after the first; the paper's is 0.5 for c. None for `rate`.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.RNN`: `return_sequences`, `go_backwards` and so on.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)` and any float type.
        mask, training, initial_state: as in `keras.layers.RNN`.

    Raises:
        TypeError: a rate is neither a number nor a schedule, or `cell` no cell.
        ValueError: a rate is not in [0, 1), or the cell's states are no vectors.

    References:
        Krueger et al., *Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations*, 2017.
        https://arxiv.org/abs/1606.01305
    """

    ranges: ClassVar[dict[str, str]] = {"rate": "[0, 1)", "cell_rate": "[0, 1)"}

    def __init__(self, cell, rate: Scheduled = 0.05, cell_rate: Scheduled | None = None, seed=None, **kwargs):
        super().__init__(ZonedCell(cell), **kwargs)
        self._set_rates(rate=rate, cell_rate=rate if cell_rate is None else cell_rate)
        self.cell_rate, self.seed = cell_rate, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Goes through the steps; how far each unit keeps its state goes with the features of each step."""
        now, sizes, dtype = self._now(training), np.array(self.cell.sizes), self.variable_dtype
        rates = [ops.cast(rate, dtype) for rate in (now.rate, *(now.cell_rate for _ in sizes[1:]))]
        chances = ops.repeat(ops.stack(rates), sizes)
        shape = (*ops.shape(sequences)[:2], sum(sizes))
        if training:
            stays = keras.random.uniform(shape, dtype=dtype, seed=self.seed_generator) < chances
        else:
            stays = ops.broadcast_to(chances, shape)
        sequences = ops.concatenate([sequences, ops.cast(stays, sequences.dtype)], axis=-1)
        return super().inner_loop(sequences, initial_state, mask, training)

    def get_config(self):
        """Returns the constructor's arguments, cell and schedules serialized."""
        given = dict(cell=self.cell.cell, rate=self.rate, cell_rate=self.cell_rate)
        own = {name: keras.saving.serialize_keras_object(value) for name, value in given.items()}
        return super().get_config() | own | dict(seed=self.seed)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes a layer, without weights, from what `get_config` returned."""
        rates = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("rate", "cell_rate")}
        return super().from_config(config | rates, custom_objects)


class ZonedCell(keras.layers.Layer):
    """A cell whose inputs tell, behind the features, how far each unit keeps its state.

    Attributes:
        sizes: of the states.
    """

    def __init__(self, cell):
        if not isinstance(cell, keras.layers.Layer) or not hasattr(cell, "state_size"):
            raise TypeError(f"Zoneout: cell must be the cell of a recurrent layer, got {cell!r}.")
        super().__init__(dtype=cell.dtype_policy)
        sizes = cell.state_size if isinstance(cell.state_size, list | tuple) else [cell.state_size]
        if not all(isinstance(size, int) for size in sizes) or getattr(cell, "output_size", sizes[0]) != sizes[0]:
            raise ValueError(f"Zoneout: cell must have vectors for states, the first its output, got {cell!r}.")
        if getattr(cell, "dropout", 0) or getattr(cell, "recurrent_dropout", 0):
            raise ValueError(f"Zoneout: cell must have no dropout of its own, got {cell!r}.")
        self.cell, self.state_size, self.output_size, self.sizes = cell, cell.state_size, sizes[0], list(sizes)

    def build(self, input_shape):
        if not self.cell.built:
            self.cell.build(input_shape)

    def get_initial_state(self, batch_size=None):
        return self.cell.get_initial_state(batch_size)

    def call(self, inputs, states, training=False):
        number, start, kept = sum(self.sizes), 0, []
        inputs, stays = inputs[:, :-number], inputs[:, -number:]
        _, after = self.cell(inputs, states, training=training)
        after = after if isinstance(after, list | tuple) else [after]
        for size, old, new in zip(self.sizes, states, after, strict=True):
            kept.append(new + stays[:, start : start + size] * (old - new))
            start += size
        return kept[0], kept

    def get_config(self):
        return dict(cell=keras.saving.serialize_keras_object(self.cell))
