"""Noise for recurrent networks."""

import keras
from keras import ops

from kopt._checks import check_range


@keras.saving.register_keras_serializable("kopt")
class Zoneout(keras.layers.RNN):
    """A recurrent network some of whose units keep, at each step, the state that they had.

        h_t = z · h_{t-1} + (1 - z) · h̃_t,  z ~ Bernoulli(rate) for each unit, example and step        when training
        h_t = rate · h_{t-1} + (1 - rate) · h̃_t                                                         else

    with h̃ what the cell would have next. The states after the first, of an LSTM the memory c, have a rate of their
    own. Where a mask leaves steps out, states stay, as in any `keras.layers.RNN`.

    Dropout of what goes around in a recurrent network, with one mask for all steps (Gal and Ghahramani 2016), Keras
    has: `recurrent_dropout` of its `LSTM`, `GRU` and `SimpleRNN`.

    Args:
        cell: a cell, as `keras.layers.LSTMCell(32)`, whose output is its first state.
        rate: probability that a unit keeps its state, in [0, 1); the paper's is 0.05 for h.
        cell_rate: the same for the states after the first, in [0, 1); the paper's is 0.5 for c. None for `rate`.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.RNN`: `return_sequences`, `go_backwards` and so on.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)` and any float type.
        mask, training, initial_state: as in `keras.layers.RNN`.

    Raises:
        TypeError: a rate is no number, or `cell` no cell.
        ValueError: a rate is not in [0, 1), or the cell's states are no vectors.

    References:
        Krueger et al., *Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations*, 2017.
        https://arxiv.org/abs/1606.01305
    """

    def __init__(self, cell, rate=0.05, cell_rate=None, seed=None, **kwargs):
        check_range(self, "[0, 1)", rate=rate)
        others = rate if cell_rate is None else check_range(self, "[0, 1)", cell_rate=cell_rate)
        super().__init__(ZonedCell(cell, rate, others), **kwargs)
        self.rate, self.cell_rate, self.seed = rate, cell_rate, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Goes through the steps; which units keep their states goes with the features of each step."""
        if training:
            rows, time = ops.shape(sequences)[:2]
            draws = keras.random.uniform((rows, time, sum(self.cell.sizes)), seed=self.seed_generator)
            stays = ops.cast(draws < ops.convert_to_tensor(self.cell.chances, draws.dtype), sequences.dtype)
            sequences = ops.concatenate([sequences, stays], axis=-1)
        return super().inner_loop(sequences, initial_state, mask, training)

    def get_config(self):
        """Returns the constructor's arguments, the cell serialized."""
        cell = keras.saving.serialize_keras_object(self.cell.cell)
        return super().get_config() | dict(cell=cell, rate=self.rate, cell_rate=self.cell_rate, seed=self.seed)


class ZonedCell(keras.layers.Layer):
    """A cell whose inputs tell, behind the features, which units keep their states; at inference all do in part.

    Attributes:
        sizes: of the states.
        chances: of each unit of each state to stay.
    """

    def __init__(self, cell, rate, others):
        if not isinstance(cell, keras.layers.Layer) or not hasattr(cell, "state_size"):
            raise TypeError(f"Zoneout: cell must be the cell of a recurrent layer, got {cell!r}.")
        super().__init__(dtype=cell.dtype_policy)
        sizes = cell.state_size if isinstance(cell.state_size, list | tuple) else [cell.state_size]
        if not all(isinstance(size, int) for size in sizes) or getattr(cell, "output_size", sizes[0]) != sizes[0]:
            raise ValueError(f"Zoneout: cell must have vectors for states, the first its output, got {cell!r}.")
        if getattr(cell, "dropout", 0) or getattr(cell, "recurrent_dropout", 0):
            raise ValueError(f"Zoneout: cell must have no dropout of its own, got {cell!r}.")
        self.cell, self.state_size, self.output_size, self.sizes = cell, cell.state_size, sizes[0], list(sizes)
        self.rates = [rate, *(others for _ in sizes[1:])]
        self.chances = [rate for rate, size in zip(self.rates, sizes, strict=True) for _ in range(size)]

    def build(self, input_shape):
        if not self.cell.built:
            self.cell.build(input_shape)

    def get_initial_state(self, batch_size=None):
        return self.cell.get_initial_state(batch_size)

    def call(self, inputs, states, training=False):
        number = sum(self.sizes)
        parts, start = list(self.rates), 0
        if training:
            inputs, stays = inputs[:, :-number], inputs[:, -number:]
            for i, size in enumerate(self.sizes):
                parts[i], start = stays[:, start : start + size], start + size
        _, after = self.cell(inputs, states, training=training)
        after = after if isinstance(after, list | tuple) else [after]
        kept = [new + part * (old - new) for part, old, new in zip(parts, states, after, strict=True)]
        return kept[0], kept

    def get_config(self):
        cell = keras.saving.serialize_keras_object(self.cell)
        return dict(cell=cell, rate=self.rates[0], others=self.rates[-1])
