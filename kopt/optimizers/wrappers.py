"""Small changes to what any optimizer does."""

import math
from collections.abc import Iterable

from keras import ops

from kopt._backend import normal
from kopt.math import mean, norm, within
from kopt.optimizers.base import Optimizer, Scheduled
from kopt.optimizers.sparing import Sparing
from kopt.optimizers.wrapper import Wrapper


class Cautious(Wrapper):
    """Leaves out of any optimizer's step what points against the gradient at hand.

        agree = [u · g > 0]
        u ← u · agree / max(mean(agree), 0.001)

    The mean is over each weight tensor: what is left is made larger, so that the steps are about as long as before.
    One line on top of any optimizer with momentum, with the learning rate that it has. Without momentum nothing is
    left out. The decay is added after, and is never left out.

    Args:
        inner: the optimizer whose directions are masked.

    References:
        Liang et al., *Cautious Optimizers: Improving Training with One Line of Code*, 2024.
        https://arxiv.org/abs/2411.16085
    """

    cites = ("liang2024cautious",)

    def direction(self, g, w, t, h, **slots):
        u, slots = super().direction(g, w, t, h, **slots)
        agree = ops.cast(u * g > 0, u.dtype)
        return u * agree / ops.maximum(mean(agree), 1e-3), slots


class _OfGradients(Sparing, Wrapper):
    """A change of gradients before the optimizer inside sees them."""

    sparing = "exclude"
    patterns = ("exclude",)

    def __init__(self, inner, exclude):
        super().__init__(inner)
        self.exclude = exclude

    def gradient(self, g, w, h):
        raise NotImplementedError

    def measure(self, g, w, t, h, **slots):
        return super().measure(g if self.spares else self.gradient(g, w, h), w, t, h, **slots)

    def direction(self, g, w, t, h, **slots):
        return super().direction(g if self.spares else self.gradient(g, w, h), w, t, h, **slots)


class AdaptiveGradientClipping(_OfGradients):
    """Clips the gradient of each output unit to a small part of the length of its weights.

        g ← g · min(1, clipping · max(‖w‖, ε) / ‖g‖)

    The norms are over what leads to one output, that is over all axes of a kernel but the last; over all of a vector.
    Made for deep networks without normalization (NFNets) in large batches, which want smaller `clipping` the larger
    they are. The paper leaves the last layer out: name it in `exclude`.

    Args:
        inner: the optimizer that gets the clipped gradients.
        clipping: length of the longest gradient, in lengths of the weights, in (0, inf).
        epsilon: the least that a unit's weights count as, in [0, inf), so that zeros can begin to move.
        exclude: a regular expression or several: weights whose path one of them matches are not clipped.

    References:
        Brock et al., *High-Performance Large-Scale Image Recognition Without Normalization*, 2021.
        https://arxiv.org/abs/2102.06171
    """

    cites = ("brock2021nfnets",)
    ranges = {"clipping": "(0, inf)"}

    def __init__(
        self,
        inner: Optimizer,
        *,
        clipping: Scheduled = 0.01,
        epsilon: Scheduled = 1e-3,
        exclude: str | Iterable[str] = (),
    ):
        super().__init__(inner, exclude)
        self.clipping, self.epsilon = clipping, epsilon

    def gradient(self, g, w, h):
        axes = within(g)[:-1]
        longest, length = h.clipping * ops.maximum(norm(w, axes), h.epsilon), norm(g, axes)
        return ops.where(length > longest, longest * g / ops.where(length > 0, length, 1.0), g)


class GradientCentralization(_OfGradients):
    """Takes from the gradient of each output unit its mean, so that the mean of the unit's weights stays.

        g ← g - mean(g)        over all axes of a kernel but the last; vectors are left as they are

    For convolutional and dense layers, with any optimizer; it costs next to nothing. In an embedding the rows are
    inputs, and every one of them would move at every step: they are left out.

    Args:
        inner: the optimizer that gets the centralized gradients.
        exclude: a regular expression or several: weights whose path one of them matches are left as they are.

    References:
        Yong et al., *Gradient Centralization: A New Optimization Technique for Deep Neural Networks*, 2020.
        https://arxiv.org/abs/2004.01461
    """

    cites = ("yong2020centralization",)

    def __init__(self, inner: Optimizer, *, exclude: str | Iterable[str] = ("embedding",)):
        super().__init__(inner, exclude)

    def gradient(self, g, w, h):
        axes = within(g)[:-1]
        return g - mean(g, axes) if axes else g


class GradientNoise(Wrapper):
    """Adds to each gradient normal noise that fades, before the optimizer inside sees it.

        g ← g + σ_t · N(0, 1),  σ_t² = eta / t^gamma,  t = 1, 2, ...

    It helps very deep networks, and such as begin badly, out of bad places; it does not replace clipping, which comes
    before it. All replicas add the same.

    Args:
        inner: the optimizer that gets the noisy gradients.
        eta: variance of the first step's noise, in [0, inf); the paper has 0.01, 0.3 and 1.
        gamma: how fast it fades, in [0, inf); the paper's is 0.55.
        seed: of the noise, an integer in [0, 2**30).

    References:
        Neelakantan et al., *Adding Gradient Noise Improves Learning for Very Deep Networks*, 2015.
        https://arxiv.org/abs/1511.06807
    """

    cites = ("neelakantan2015noise",)
    elementwise = False  # each weight of a stack has noise of its own
    ranges = {"eta": "[0, inf)", "gamma": "[0, inf)"}
    integers = {"seed": f"[0, {2**30})"}

    def __init__(self, inner: Optimizer, *, eta: Scheduled = 0.3, gamma: Scheduled = 0.55, seed: int = 0):
        super().__init__(inner)
        self.eta, self.gamma, self.seed = eta, gamma, seed

    def _noisy(self, g, t, h):
        draw = normal(g.shape, self.seed + math.prod(g.shape), t, "float32")  # other numbers for another shape
        return g + ops.cast(draw, g.dtype) * ops.sqrt(h.eta / t**h.gamma)

    def measure(self, g, w, t, h, **slots):
        return super().measure(self._noisy(g, t, h), w, t, h, **slots)

    def direction(self, g, w, t, h, **slots):
        return super().direction(self._noisy(g, t, h), w, t, h, **slots)
