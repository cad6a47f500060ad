"""Running averages."""

from keras import ops


def ema(avg, x, beta):
    """beta * avg + (1 - beta) * x"""
    return avg + (1 - beta) * (x - avg)


def debias(avg, beta, t):
    """avg / (1 - beta**t)"""
    return avg / -ops.expm1(t * ops.log(beta))  # 1 - beta**t itself loses half its digits near beta = 1


def at_first(t, first, later):
    """`first` in step 1, `later` in all others"""
    return ops.where(t == 1, first, later)
