"""What a step of `kopt.Model` minimizes in the place of the batch's loss: mixed rows, adversaries, penalties."""

from kopt.objectives.adversarial import FGSM, TRADES, VAT
from kopt.objectives.base import Objective
from kopt.objectives.mixing import CutMix, ManifoldMixup, MixUp
from kopt.objectives.smoothness import (
    Flooding,
    GradientPenalty,
    JacobianPenalty,
    LabelSmoothing,
    OnlineLabelSmoothing,
    RDrop,
)

__all__ = [
    "FGSM",
    "TRADES",
    "VAT",
    "CutMix",
    "Flooding",
    "GradientPenalty",
    "JacobianPenalty",
    "LabelSmoothing",
    "ManifoldMixup",
    "MixUp",
    "Objective",
    "OnlineLabelSmoothing",
    "RDrop",
]
