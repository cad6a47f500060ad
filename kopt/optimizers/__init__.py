"""The rules, by family, on one base class."""

from kopt.optimizers.adam import Adam, Adamax, AdamW, AMSGrad, Nadam, NadamW
from kopt.optimizers.adaptive import MADGRAD, Adadelta, Adagrad, RMSprop
from kopt.optimizers.adaptive_kfac import AdaptiveKFAC
from kopt.optimizers.armijo import LineSearch
from kopt.optimizers.averaging import EMA, SWA, Lookahead, PolynomialAverage
from kopt.optimizers.base import Optimizer
from kopt.optimizers.blockwise import SM3, AdamMini
from kopt.optimizers.broyden import BFGS, SSBFGS, SSBroyden
from kopt.optimizers.citations import cite
from kopt.optimizers.conjugate import NonlinearCG
from kopt.optimizers.denominators import AdaBelief, AdaBound, NovoGrad, RAdam, StableAdamW, Yogi
from kopt.optimizers.dog import DoG, DoWG, LDoG
from kopt.optimizers.factored import CAME, Adafactor
from kopt.optimizers.ftrl import Ftrl
from kopt.optimizers.graft import Graft
from kopt.optimizers.groups import layerwise_decay
from kopt.optimizers.hessian import AdaHessian, SophiaG, SophiaH
from kopt.optimizers.hessian_free import HessianFree
from kopt.optimizers.kfac import KFAC
from kopt.optimizers.kron import Kron
from kopt.optimizers.layerwise import LAMB, LARS
from kopt.optimizers.least_squares import GaussNewton, LevenbergMarquardt
from kopt.optimizers.low_rank import APOLLO, APOLLOMini, GaLore
from kopt.optimizers.mars import MARS, ExactMARS
from kopt.optimizers.mechanic import Mechanic
from kopt.optimizers.muon import Muon
from kopt.optimizers.newton import Newton, NewtonCG, TrustRegion
from kopt.optimizers.numerators import ADOPT, Adan, AdEMAMix, LaProp, QHAdam
from kopt.optimizers.nystrom import NysNewtonCG
from kopt.optimizers.packs import Slot
from kopt.optimizers.parameter_free import DAdaptAdam, DAdaptSGD, Prodigy
from kopt.optimizers.polyak import SPS, MoMo, MoMoAdam
from kopt.optimizers.proximal import Proximal
from kopt.optimizers.quantized import Quantized
from kopt.optimizers.quasi_newton import LBFGS
from kopt.optimizers.router import Matrices, Route
from kopt.optimizers.schedule_free import ScheduleFree, ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD
from kopt.optimizers.sgd import QHM, SGD, AggMo
from kopt.optimizers.shampoo import Shampoo
from kopt.optimizers.sharpness import ASAM, GSAM, SAM, LookSAM
from kopt.optimizers.sign import Lion, Rprop, Signum
from kopt.optimizers.soap import SOAP
from kopt.optimizers.switch import Switch
from kopt.optimizers.wrapper import Wrapper
from kopt.optimizers.wrappers import AdaptiveGradientClipping, Cautious, GradientCentralization, GradientNoise

__all__ = [
    "ADOPT",
    "APOLLO",
    "ASAM",
    "BFGS",
    "CAME",
    "EMA",
    "GSAM",
    "KFAC",
    "LAMB",
    "LARS",
    "LBFGS",
    "MADGRAD",
    "MARS",
    "QHM",
    "SAM",
    "SGD",
    "SM3",
    "SOAP",
    "SPS",
    "SSBFGS",
    "SWA",
    "AMSGrad",
    "APOLLOMini",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaHessian",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamMini",
    "AdamW",
    "Adamax",
    "Adan",
    "AdaptiveGradientClipping",
    "AdaptiveKFAC",
    "AggMo",
    "Cautious",
    "DAdaptAdam",
    "DAdaptSGD",
    "DoG",
    "DoWG",
    "ExactMARS",
    "Ftrl",
    "GaLore",
    "GaussNewton",
    "GradientCentralization",
    "GradientNoise",
    "Graft",
    "HessianFree",
    "Kron",
    "LDoG",
    "LaProp",
    "LevenbergMarquardt",
    "LineSearch",
    "Lion",
    "LookSAM",
    "Lookahead",
    "Matrices",
    "Mechanic",
    "MoMo",
    "MoMoAdam",
    "Muon",
    "Nadam",
    "NadamW",
    "Newton",
    "NewtonCG",
    "NonlinearCG",
    "NovoGrad",
    "NysNewtonCG",
    "Optimizer",
    "PolynomialAverage",
    "Prodigy",
    "Proximal",
    "QHAdam",
    "Quantized",
    "RAdam",
    "RMSprop",
    "Route",
    "Rprop",
    "SSBroyden",
    "ScheduleFree",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Shampoo",
    "Signum",
    "Slot",
    "SophiaG",
    "SophiaH",
    "StableAdamW",
    "Switch",
    "TrustRegion",
    "Wrapper",
    "Yogi",
    "cite",
    "layerwise_decay",
]
