"""A weight decay of a layer's own."""

from keras import ops

from kopt.penalties.base import Penalty


class WeightDecay(Penalty):
    """Gives a weight a decoupled decay of its own, in the place of the optimizer's `weight_decay`.

        w ← w - learning_rate · (u + strength · w)

        keras.layers.Dense(64, kernel_regularizer=kopt.penalties.WeightDecay(0.05))

    It adds nothing to the loss: kopt's optimizers read it from the weight when they are built, and a `.keras` file
    keeps it with the layer. The factors of `groups` multiply it, and `no_decay` takes it away. A strength of 0 spares
    the weight. Other optimizers, Keras's among them, do not know of it: with them the weight does not decay.

    Args:
        strength: the weight decay, in [0, inf).

    Raises:
        TypeError: `strength` is no number.
        ValueError: `strength` is out of range.

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019. https://arxiv.org/abs/1711.05101
    """

    def value(self, w):
        """0"""
        return ops.zeros((), w.dtype)
