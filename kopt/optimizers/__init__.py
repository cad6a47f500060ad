"""The rules, by family, on one base class."""

from kopt.optimizers.adam import Adam, Adamax, AdamW, AMSGrad, Nadam
from kopt.optimizers.adaptive import Adadelta, Adagrad, RMSprop
from kopt.optimizers.base import Optimizer, Slot
from kopt.optimizers.ftrl import Ftrl
from kopt.optimizers.layerwise import LAMB
from kopt.optimizers.sgd import SGD
from kopt.optimizers.sign import Lion

__all__ = [
    "LAMB",
    "SGD",
    "AMSGrad",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lion",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "Slot",
]
