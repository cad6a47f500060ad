"""Hyperparameters that change from step to step: for any float of any optimizer's signature."""

from kopt.schedules.anneals import REX, Anneal, Cosine, InverseSquareRoot, Linear, SquareRoot
from kopt.schedules.base import Schedule
from kopt.schedules.composed import Join, OneCycle, Warmup, WarmupStableDecay

__all__ = [
    "REX",
    "Anneal",
    "Cosine",
    "InverseSquareRoot",
    "Join",
    "Linear",
    "OneCycle",
    "Schedule",
    "SquareRoot",
    "Warmup",
    "WarmupStableDecay",
]
