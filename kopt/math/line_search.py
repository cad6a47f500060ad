"""Line searches: how far to go along a direction, at few evaluations of the function.

Each is called as `search(phi, start, first, …)`. `phi(length)` is the function along the line: it returns the value,
the slope, and what else belongs to the point (the gradient, say), which comes back with the point that is chosen, so
that nothing is evaluated twice. `start` is what `phi(0)` returns, and `first` the length that is tried first.

A search evaluates `phi` in one place, inside of one loop. A length whose value or slope is not finite is too long.
Where `first` is not positive, or the start is not finite or no descent, nothing is evaluated. Where all that the slope
still promises is less than the rounding of the value, `backtracking` and `zoom` give up: at a minimum, at once.
"""

from typing import Any, NamedTuple

from keras import ops, tree


class Step(NamedTuple):
    """What a search has chosen: where its conditions fail to the end, the point with the least value that it has seen.

    Attributes:
        length: along the direction, 0 where nothing better than the start was found.
        value: of the function there.
        slope: of the function there, along the direction.
        rest: what else `phi` returned there.
        evaluations: how often `phi` was called.
        success: whether the conditions of the search hold.
    """

    length: Any
    value: Any
    slope: Any
    rest: Any
    evaluations: Any
    success: Any


class End(NamedTuple):
    """A length, with the value and the slope there."""

    length: Any
    value: Any
    slope: Any


def backtracking(phi, start, first, *, decrease=1e-4, most=30) -> Step:
    """The first of ever shorter lengths that satisfies Armijo's condition, φ(α) ≤ φ(0) + c₁ α φ'(0).

    The next length is where the parabola through φ(0), φ'(0) and φ(α) is least, between α / 10 and α / 2.

    Args:
        phi: returns value, slope and the rest at a length.
        start: what it returns at 0.
        first: the length to try first.
        decrease: c₁, in (0, 1).
        most: largest number of evaluations.
    """
    value, slope, _ = start

    def judge(origin, trial):
        parabola = _quadratic(origin, trial)
        shorter = ops.clip(parabola, 0.1 * trial.length, 0.5 * trial.length)
        shorter = ops.where(_finite(trial) & ops.isfinite(parabola), shorter, 0.1 * trial.length)
        shorter = ops.where(_hidden(origin, shorter), 0, shorter)
        return _finite(trial) & (trial.value <= value + decrease * trial.length * slope), shorter, origin

    return _search(phi, start, first, most, lambda origin: origin, judge)


class Zoom(NamedTuple):
    """Where a length that satisfies the strong Wolfe conditions lies.

    Attributes:
        low: the end with the least value so far.
        high: the other end, on either side of it; at infinity, as long as no length was too long.
        width: of the bracket, and that before: they have to shrink.
    """

    low: End
    high: End
    width: Any
    before: Any


def zoom(phi, start, first, *, decrease=1e-4, curvature=0.9, most=30) -> Step:
    """A length that satisfies the strong Wolfe conditions.

        φ(α) ≤ φ(0) + c₁ α φ'(0)    and    |φ'(α)| ≤ c₂ |φ'(0)|

    Nocedal and Wright's algorithms 3.5 and 3.6 in one loop: while no length was too long, the high end of the bracket
    is at infinity. Trial lengths are those of Moré and Thuente (1994, section 4): by cubic, quadratic and secant, and
    the middle where two of them have not shrunk the bracket by a third.

    Args:
        phi: returns value, slope and the rest at a length.
        start: what it returns at 0.
        first: the length to try first.
        decrease: c₁, in (0, c₂).
        curvature: c₂, in (c₁, 1): 0.9 for quasi-Newton methods, 0.1 for conjugate gradients.
        most: largest number of evaluations.
    """
    value, slope, _ = start

    def judge(state, trial):
        low, high, width, before = state
        enough = trial.value <= value + decrease * trial.length * slope
        too_long = ops.logical_not(_finite(trial) & enough & (trial.value < low.value))
        turned = ops.logical_not(too_long) & (trial.slope * (trial.length - low.length) >= 0)
        bracketed = ops.isfinite(high.length)
        next_high = _where(too_long, trial, _where(turned, low, high))
        next_low = _where(too_long, low, trial)
        length = ops.where(
            too_long,
            _between(low, trial),
            ops.where(turned, _across(low, trial), _onward(low, trial, high, bracketed)),
        )
        bracketed = ops.isfinite(next_high.length)
        now = ops.abs(next_high.length - next_low.length)  # the high end may be the left one
        middle = next_low.length + 0.5 * (next_high.length - next_low.length)
        near = next_low.length + 0.1 * (next_high.length - next_low.length)
        length = ops.where(bracketed & (now > 0.66 * before), middle, length)
        length = ops.where(bracketed & ops.logical_not(_inside(length, next_low, next_high)), middle, length)
        length = ops.where(_finite(next_high) | ops.logical_not(bracketed), length, near)
        done = bracketed & (_hidden(next_low, now) | ops.logical_not(_inside(length, next_low, next_high)))
        accepted = _finite(trial) & enough & (ops.abs(trial.slope) <= -curvature * slope)
        return accepted, ops.where(done, 0, length), Zoom(next_low, next_high, now, width)

    def begin(origin):
        infinite = 0 * origin.length + float("inf")
        return Zoom(origin, End(infinite, infinite, infinite), infinite, infinite)

    return _search(phi, start, first, most, begin, judge)


def _between(low, trial):
    """Where the function is least between an end and a trial that is higher: nearer to the end."""
    cubic, quadratic = _cubic(low, trial), _quadratic(low, trial)
    nearer = ops.abs(cubic - low.length) < ops.abs(quadratic - low.length)
    return ops.where(nearer, cubic, 0.5 * (cubic + quadratic))


def _across(low, trial):
    """Where the function is least between an end and a lower trial with a slope of the other sign."""
    cubic, secant = _cubic(low, trial), _secant(low, trial)
    return ops.where(ops.abs(cubic - trial.length) > ops.abs(secant - trial.length), cubic, secant)


def _onward(low, trial, high, bracketed):
    """Where the function is least beyond a lower trial with a slope of the same sign."""
    ahead = trial.length - low.length
    cubic, secant = _cubic(low, trial), _secant(low, trial)
    flatter = ops.abs(trial.slope) < ops.abs(low.slope)
    beyond = ops.isfinite(cubic) & ((cubic - trial.length) * ahead > 0)

    farthest = trial.length + 4.0 * ahead
    cubic_or_far = ops.where(beyond, cubic, farthest)
    farther = ops.maximum(cubic_or_far, secant)
    free = ops.where(flatter, ops.clip(farther, trial.length + 1.1 * ahead, farthest), farthest)

    limit = trial.length + 0.66 * (high.length - trial.length)
    nearer = beyond & (ops.abs(cubic - trial.length) < ops.abs(secant - trial.length))
    within = ops.where(nearer, cubic, secant)
    within = ops.where(ops.abs(within - trial.length) < ops.abs(limit - trial.length), within, limit)
    return ops.where(bracketed, ops.where(flatter, within, _cubic(trial, high)), free)


class Bracket(NamedTuple):
    """Where a length that satisfies the approximate Wolfe conditions lies.

    Attributes:
        low: the end that still falls, at about the start's value or below.
        high: the end where it rises; or falls, from above the start's value; or at infinity.
        old_low, old_high: the ends when this round began.
        stage: of the round: 0 for the first secant, 1 for the second, 2 for the middle.
    """

    low: End
    high: End
    old_low: End
    old_high: End
    stage: Any


def hager_zhang(phi, start, first, *, decrease=0.1, curvature=0.9, tolerance=1e-6, most=30) -> Step:
    """A length that satisfies the Wolfe conditions, or approximate ones that rounding does not hide.

        φ(α) ≤ φ(0) + δ α φ'(0)      and    φ'(α) ≥ σ φ'(0)
        φ(α) ≤ φ(0) + ε |φ(0)|    and    (2δ - 1) φ'(0) ≥ φ'(α) ≥ σ φ'(0)

    Near a minimum the value changes by less than its rounding long before the slope does. So brackets are updated by
    the sign of the slope; trial lengths are two secants, and the middle where those shrink the bracket too little.

    Args:
        phi: returns value, slope and the rest at a length.
        start: what it returns at 0.
        first: the length to try first.
        decrease: δ, in (0, 1/2).
        curvature: σ, in [δ, 1).
        tolerance: ε, by how much the value may rise.
        most: largest number of evaluations.

    References:
        Hager and Zhang, *A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search*, 2005.
    """
    value, slope, _ = start
    ceiling = value + tolerance * ops.abs(value)

    def judge(state, trial):
        low, high, old_low, old_high, stage = state
        falls = _finite(trial) & (trial.slope < 0)
        is_low = falls & (trial.value <= ceiling)
        next_low, next_high = _where(is_low, trial, low), _where(is_low, high, trial)
        rising = next_high.slope >= 0  # not so of an end that is too high, not finite, or at infinity
        unbounded = ops.logical_not(ops.isfinite(next_high.length))

        second = ops.where(is_low, _secant(old_low, next_low), _secant(old_high, next_high))
        second_helps = (stage == 0) & ops.isfinite(second) & _inside(second, next_low, next_high)
        slow = next_high.length - next_low.length > 0.66 * (old_high.length - old_low.length)
        halve = ops.logical_not(second_helps) & (stage < 2) & slow
        again = ops.logical_not(second_helps | halve)

        first_secant, middle = _secant(next_low, next_high), 0.5 * (next_low.length + next_high.length)
        length = ops.where(second_helps, second, ops.where(halve, middle, first_secant))
        length = ops.where(rising & _inside(length, next_low, next_high), length, middle)
        near = next_low.length + 0.1 * (next_high.length - next_low.length)
        length = ops.where(_finite(next_high), length, near)
        length = ops.where(unbounded, 5.0 * trial.length, length)
        done = ops.logical_not(unbounded | _inside(length, next_low, next_high))

        anew = again | ops.logical_not(rising)
        stage = ops.cast(ops.where(anew, 0, ops.where(second_helps, 1, 2)), "int32")
        state = Bracket(next_low, next_high, _where(anew, next_low, old_low), _where(anew, next_high, old_high), stage)
        steep = trial.slope >= curvature * slope
        wolfe = trial.value <= value + decrease * trial.length * slope
        approximate = (trial.value <= ceiling) & (trial.slope <= (2 * decrease - 1) * slope)
        return _finite(trial) & steep & (wolfe | approximate), ops.where(done, 0, length), state

    def begin(origin):
        infinite = 0 * origin.length + float("inf")
        high = End(infinite, infinite, -infinite)
        return Bracket(origin, high, origin, high, ops.zeros((), "int32"))

    return _search(phi, start, first, most, begin, judge)


def _search(phi, start, first, most, begin, judge):
    """Tries lengths until one is accepted.

    Args:
        phi: as the searches have it.
        start: as the searches have it.
        first: as the searches have it.
        most: as the searches have it.
        begin: makes the state of a search of its origin.
        judge: takes the state and a trial, and returns whether the trial is accepted, the next length to try, which is
            not positive if there is none, and the next state.
    """
    value, slope = map(ops.convert_to_tensor, start[:2])
    first = ops.cast(first, value.dtype)
    zero = ops.zeros((), value.dtype)
    able = ops.isfinite(value) & ops.isfinite(slope) & (slope < 0)
    none, no = ops.zeros((), "int32"), ops.zeros((), "bool")

    def going(length, best, state):
        return able & ops.isfinite(length) & (length > 0) & (best.evaluations < most) & ops.logical_not(best.success)

    def attempt(length, best, state):
        value, slope, rest = phi(length)
        trial = Step(length, value, slope, rest, best.evaluations + 1, best.success)
        accepted, following, state = judge(state, End(length, value, slope))
        better = accepted | (_finite(trial) & (trial.value < best.value))
        best = _where(better, trial, best)._replace(evaluations=trial.evaluations, success=accepted)
        return following, best, state

    best = Step(zero, value, slope, start[2], none, no)
    return ops.while_loop(going, attempt, (first, best, begin(End(zero, value, slope))))[1]


def _where(condition, a, b) -> Any:
    """Of two ends or steps, the first where the condition holds."""
    return tree.map_structure(lambda x, y: ops.where(condition, x, y), a, b)


def _finite(end):
    return ops.isfinite(end.value) & ops.isfinite(end.slope)


def _hidden(end, width):
    """Whether all that the slope promises over a width is less than the rounding of the value."""
    rounding = 2.0 ** (-53 if end.value.dtype == "float64" else -24)
    return width * ops.abs(end.slope) <= rounding * ops.abs(end.value)


def _inside(length, a, b):
    """Whether a length lies between two ends, and is neither."""
    return (length - a.length) * (length - b.length) < 0


def _secant(a, b):
    """Where the slope is zero, were it linear"""
    return b.length - b.slope * (b.length - a.length) / (b.slope - a.slope)


def _quadratic(a, b):
    """Where the parabola through the values and the slope at a is least"""
    width = b.length - a.length
    return a.length - 0.5 * a.slope * width**2 / (b.value - a.value - a.slope * width)


def _cubic(a, b):
    """Where the cubic through both values and slopes has its minimum (Nocedal and Wright, 3.59); NaN if nowhere"""
    width = b.length - a.length
    theta = a.slope + b.slope - 3 * (b.value - a.value) / width
    scale = ops.maximum(ops.abs(theta), ops.maximum(ops.abs(a.slope), ops.abs(b.slope)))  # against overflow
    root = scale * ops.sqrt((theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)) * ops.sign(width)
    return b.length - width * (b.slope + root - theta) / (b.slope - a.slope + 2 * root)
