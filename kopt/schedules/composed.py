"""Schedules put together from others, one after another."""

from collections.abc import Sequence
from itertools import pairwise

from keras import ops

from kopt._checks import check_choice
from kopt.schedules.anneals import REX, Cosine, Linear, SquareRoot
from kopt.schedules.base import Piece, Schedule, number, piece_of, value_of


class Join(Schedule):
    """One piece after another, each of which counts steps from its own beginning.

    Args:
        pieces: numbers and schedules, kopt's or Keras's; at least one.
        boundaries: the steps at which the second, third, ... begins; ascending numbers in [0, inf).

    Raises:
        TypeError: a piece is neither a number nor a schedule, or a boundary is no number.
        ValueError: the boundaries are not one fewer than the pieces, or do not ascend.

    Example:
        >>> kopt.schedules.Join([0.1, kopt.schedules.Linear(0.1, 50)], [100])  # doctest: +SKIP
    """

    def __init__(self, pieces: Sequence[Piece], boundaries: Sequence[float]):
        self.pieces = [piece_of(self, pieces=piece) for piece in pieces]
        self.boundaries = [number(self, "[0, inf)", boundaries=boundary) for boundary in boundaries]
        if len(self.boundaries) != len(self.pieces) - 1:
            raise ValueError(
                f"Join: boundaries must be one fewer than the pieces, of which there are {len(self.pieces)}, "
                f"got {boundaries!r}."
            )
        if any(later <= earlier for earlier, later in pairwise(self.boundaries)):
            raise ValueError(f"Join: boundaries must ascend, got {boundaries!r}.")

    def at(self, step):
        value = value_of(self.pieces[0], step)
        for piece, boundary in zip(self.pieces[1:], self.boundaries, strict=True):
            value = ops.where(step < boundary, value, value_of(piece, step - boundary))
        return value


class Warmup(Schedule):
    """A straight line up to where another schedule begins, and then that one, which counts steps from there.

    `Warmup(1e-3, 500)` stays at 1e-3; `Warmup(Cosine(1e-3, 9500), 500)` falls from there to zero at step 10,000. As
    in optax and Hugging Face's transformers, the line begins at step 0: with `initial=0` the first step moves nothing.

    Args:
        then: what to warm up to: a number, or a schedule, kopt's or Keras's.
        steps: length of the line, in [0, inf).
        initial: value at step 0, any number.

    References:
        Goyal et al., *Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour*, 2017.
        https://arxiv.org/abs/1706.02677
    """

    def __init__(self, then: Piece, steps: float, initial: float = 0.0):
        self.then = piece_of(self, then=then)
        self.steps = number(self, "[0, inf)", steps=steps)
        self.initial = number(self, initial=initial)

    def at(self, step):
        then = value_of(self.then, step - self.steps)
        line = self.initial + (then - self.initial) * step / (self.steps or 1)
        return ops.where(step < self.steps, line, then)


class WarmupStableDecay(Schedule):
    """A line up, a plateau, and a short decay at the end.

    As good as a cosine of the same length, and a run can be prolonged: go back to a checkpoint of the plateau, which
    knows nothing of the end. A decay over a tenth to a fifth of all steps is enough.

    Args:
        peak: value of the plateau, any number.
        steps: number of all steps, in (0, inf).
        warmup_steps: length of the line up, in [0, inf).
        decay_steps: length of the decay, in (0, inf).
        decay: `"sqrt"` (see `SquareRoot`; the paper's best), `"linear"`, `"cosine"` or `"rex"`.
        initial: value at step 0, any number.
        final: value from step `steps` on, any number.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range, or warmup and decay leave less than no plateau.

    References:
        Hu et al., *MiniCPM*, 2024. https://arxiv.org/abs/2404.06395
        Hägele et al., *Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations*, 2024.
        https://arxiv.org/abs/2405.18392
    """

    decays = {"sqrt": SquareRoot, "linear": Linear, "cosine": Cosine, "rex": REX}

    def __init__(
        self,
        peak: float,
        steps: float,
        *,
        warmup_steps: float,
        decay_steps: float,
        decay: str = "sqrt",
        initial: float = 0.0,
        final: float = 0.0,
    ):
        self.peak = number(self, peak=peak)
        self.steps = number(self, "(0, inf)", steps=steps)
        self.warmup_steps = number(self, "[0, inf)", warmup_steps=warmup_steps)
        self.decay_steps = number(self, "(0, inf)", decay_steps=decay_steps)
        self.decay = check_choice(self, self.decays, decay=decay)
        self.initial = number(self, initial=initial)
        self.final = number(self, final=final)
        stable_steps = self.steps - self.warmup_steps - self.decay_steps
        if stable_steps < 0:
            raise ValueError(
                f"{type(self).__name__}: warmup_steps + decay_steps must be at most steps, "
                f"got {warmup_steps} + {decay_steps} of {steps}."
            )
        fall = self.decays[decay](self.peak, self.decay_steps, self.final)
        self._whole = Warmup(Join([self.peak, fall], [stable_steps]), self.warmup_steps, self.initial)

    def at(self, step):
        return self._whole(step)


class OneCycle(Schedule):
    """Up to a peak and down again, far below the beginning: super-convergence.

    For training in few steps at a rate several times what would be stable all the way. The momentum goes the other
    way, `OneCycle(0.85, steps, initial=0.95, final=0.95)`. The numbers are those of PyTorch's OneCycleLR: the first
    of `steps` steps has `initial`, step `rise · steps - 1` has `peak`, and the last step, `steps - 1`, has `final`.

    Args:
        peak: the value in between, any number.
        steps: number of steps of the cycle, in (1, inf).
        initial: value at step 0, any number; None is peak / 25.
        final: value from the last step on, any number; None is initial / 10,000.
        rise: part of the steps until the peak, in (0, 1); with `three_phase`, at most 0.5.
        anneal: shape of the way up and down, `"cosine"` or `"linear"`.
        three_phase: whether to come down to `initial` as fast as up, and then go on to `final` (as in the paper).

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range, or the peak is not between the first step and the last.

    References:
        Smith and Topin, *Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates*, 2018.
        https://arxiv.org/abs/1708.07120
        Smith, *A Disciplined Approach to Neural Network Hyper-Parameters: Part 1*, 2018 (cycles of momentum).
        https://arxiv.org/abs/1803.09820
    """

    anneals = {"cosine": Cosine, "linear": Linear}

    def __init__(
        self,
        peak: float,
        steps: float,
        *,
        initial: float | None = None,
        final: float | None = None,
        rise: float = 0.3,
        anneal: str = "cosine",
        three_phase: bool = False,
    ):
        self.peak = number(self, peak=peak)
        self.steps = number(self, "(1, inf)", steps=steps)
        self.initial = self.peak / 25 if initial is None else number(self, initial=initial)
        self.final = self.initial / 1e4 if final is None else number(self, final=final)
        self.rise = number(self, "(0, 1)", rise=rise)
        self.anneal = check_choice(self, self.anneals, anneal=anneal)
        self.three_phase = check_choice(self, (True, False), three_phase=three_phase)
        up = self.rise * self.steps - 1
        turns = [up, 2 * up] if three_phase else [up]
        if not 0 < turns[0] <= turns[-1] < self.steps - 1:
            raise ValueError(
                f"{type(self).__name__}: rise must put {'both turns' if three_phase else 'the peak'} between the first "
                f"of {steps} steps and the last, got {rise}."
            )
        values = [self.initial, self.peak, *([self.initial] if three_phase else []), self.final]
        lengths = [end - start for start, end in pairwise([0, *turns, self.steps - 1])]
        way = self.anneals[anneal]
        self._whole = Join([way(a, n, b) for (a, b), n in zip(pairwise(values), lengths, strict=True)], turns)

    def at(self, step):
        return self._whole(step)
