"""Running averages."""

from keras import ops


def ema(avg, x, beta):
    """beta * avg + (1 - beta) * x"""
    return avg + (1 - beta) * (x - avg)


def debias(avg, beta, t):
    """avg / (1 - beta**t)"""
    scale = -1 / ops.expm1(t * ops.log(beta))  # 1 - beta**t itself loses half its digits near beta = 1
    return scale * avg  # a product, for a division of every entry would take longer


def at_first(t, first, later):
    """`first` in step 1, `later` in all others"""
    return ops.where(t == 1, first, later)


def rectified(beta_2, t):
    """ρ = 2 / (1 - β₂) - 1 - 2 t β₂ᵗ / (1 - β₂ᵗ), and RAdam's √((ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ))"""
    last = 2 / (1 - beta_2) - 1
    rho = last - 2 * t / ops.expm1(-t * ops.log(beta_2))
    return rho, ops.sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))
