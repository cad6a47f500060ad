"""Every optimizer, in its default form and with everything switched on, keeps the contract."""

import inspect

import pytest

import kopt
from kopt.testing import check_optimizer, optimizer_checks

CASES = {
    "SGD": kopt.SGD(0.1),
    "SGD momentum": kopt.SGD(0.1, momentum=0.9),
    "SGD Nesterov": kopt.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adagrad": kopt.Adagrad(0.1),
    "Adadelta": kopt.Adadelta(1.0, epsilon=1e-4),
    "RMSprop": kopt.RMSprop(0.05),
    "RMSprop centered": kopt.RMSprop(0.05, momentum=0.5, centered=True, epsilon=1e-3),
    "Adam": kopt.Adam(0.05),
    "AMSGrad": kopt.AMSGrad(0.05),
    "AdamW": kopt.AdamW(0.05),
    "AdamW corrected": kopt.AdamW(0.05, weight_decay_mode="corrected"),
    "NadamW": kopt.NadamW(0.05),
    "Adamax": kopt.Adamax(0.05),
    "Nadam": kopt.Nadam(0.05),
    "AdEMAMix": kopt.AdEMAMix(0.05, warmup_steps=20),
    "Adan": kopt.Adan(0.05, weight_decay=0.02),
    "LaProp": kopt.LaProp(0.05, epsilon=1e-4),
    "ADOPT": kopt.ADOPT(0.05, epsilon=0.1),
    "MARS": kopt.MARS(0.05),
    "QHAdam": kopt.QHAdam(0.05),
    "RAdam": kopt.RAdam(0.05),
    "AdaBelief": kopt.AdaBelief(0.05, epsilon=1e-4),
    "Yogi": kopt.Yogi(0.05),
    "StableAdamW": kopt.StableAdamW(0.05, epsilon=0.1),
    "NovoGrad": kopt.NovoGrad(0.05),
    "AdaBound": kopt.AdaBound(0.05, final_ratio=2.0, gamma=0.1),
    "MADGRAD": kopt.MADGRAD(0.05),
    "QHM": kopt.QHM(0.1, momentum=0.9),
    "AggMo": kopt.AggMo(0.1),
    "Ftrl": kopt.Ftrl(0.1),
    "Ftrl penalized": kopt.Ftrl(
        0.1,
        l1_regularization_strength=0.1,
        l2_regularization_strength=0.1,
        l2_shrinkage_regularization_strength=0.1,
        beta=0.5,
    ),
    "Lion": kopt.Lion(0.01),
    "Signum": kopt.Signum(0.01),
    "Rprop": kopt.Rprop(0.01, min_step=0.5, max_step=1.5),
    "KFAC": kopt.KFAC(0.05, damping=0.1, kl_clip=0.02, weight_decay=0.02),
    "AdaptiveKFAC": kopt.AdaptiveKFAC(0.5, damping=0.1),
    "LAMB": kopt.LAMB(0.05),
    "LAMB clipped": kopt.LAMB(0.05, clip_ratio=True, no_adaptation="vector|bias"),
    "LARS": kopt.LARS(0.5, trust_coefficient=0.05),
    "LARS clipped": kopt.LARS(0.05, trust_coefficient=0.05, clip_ratio=True, no_adaptation="vector|bias"),
    "Cautious": kopt.Cautious(kopt.AdamW(0.05)),
    "AdaptiveGradientClipping": kopt.AdaptiveGradientClipping(kopt.SGD(0.1, momentum=0.9), clipping=0.1, epsilon=0.5),
    "AdaptiveGradientClipping excluded": kopt.AdaptiveGradientClipping(
        kopt.Nadam(0.05), clipping=0.1, epsilon=0.5, exclude="matrix|head"
    ),
    "GradientCentralization": kopt.GradientCentralization(kopt.Adam(0.05)),
    "GradientNoise": kopt.GradientNoise(kopt.SGD(0.05, momentum=0.9)),
    "Prodigy": kopt.Prodigy(initial_distance=0.05),
    "Prodigy strided": kopt.Prodigy(
        2.0, initial_distance=0.05, growth_rate=2.0, bias_correction=True, safeguard_warmup=True, stride=3
    ),
    "DAdaptAdam": kopt.DAdaptAdam(initial_distance=0.02),
    "DAdaptSGD": kopt.DAdaptSGD(initial_distance=0.2),
    "DAdaptSGD momentum": kopt.DAdaptSGD(initial_distance=0.2, momentum=0.9),
    "DoG": kopt.DoG(initial_distance=0.05),
    "LDoG": kopt.LDoG(initial_distance=0.05),
    "DoWG": kopt.DoWG(initial_distance=0.02),
    "Mechanic": kopt.Mechanic(kopt.SGD(1.0, momentum=0.9), initial_scale=0.01),
    "ScheduleFree": kopt.ScheduleFree(kopt.DoG(initial_distance=0.05)),
    "ScheduleFreeAdamW": kopt.ScheduleFreeAdamW(0.05, warmup_steps=5),
    "ScheduleFreeSGD": kopt.ScheduleFreeSGD(0.1, warmup_steps=5),
    "ScheduleFreeRAdam": kopt.ScheduleFreeRAdam(0.05, beta_2=0.95),
    "EMA": kopt.EMA(kopt.AdamW(0.05), momentum=0.9),
    "EMA biased": kopt.EMA(kopt.LAMB(0.05), momentum=0.5, debias=False),
    "SWA": kopt.SWA(kopt.SGD(0.1, momentum=0.5), start=1, every=2),
    "PolynomialAverage": kopt.PolynomialAverage(kopt.DoG(initial_distance=0.05)),
    "Lookahead": kopt.Lookahead(kopt.AdamW(0.05), every=3),
    "SAM": kopt.SAM(kopt.SGD(0.1, momentum=0.9)),
    "ASAM": kopt.ASAM(kopt.AdamW(0.05), synchronized=False),
    "GSAM": kopt.GSAM(kopt.SGD(0.1), rho=0.2),
    "LookSAM": kopt.LookSAM(kopt.SGD(0.1), rho=1.0, alpha=0.3, every=3),
    "AdaHessian": kopt.AdaHessian(0.05, power=0.5),
    "AdaHessian elementwise": kopt.AdaHessian(0.05, spatial_average=False, every=3),
    "SophiaH": kopt.SophiaH(0.05, beta_2=0.8, gamma=1.0, epsilon=0.1, every=3),
    "SophiaG": kopt.EMA(kopt.SophiaG(0.05, beta_2=0.8, gamma=1.0, epsilon=0.1, every=3), momentum=0.5),
    "ExactMARS": kopt.ExactMARS(0.05, gamma=0.5),
    "SPS": kopt.SPS(0.4, lower_bound=-4.0),
    "MoMo": kopt.MoMo(0.5, lower_bound=-10.0, bias_correction=True),
    "MoMo estimating": kopt.MoMo(0.5, lower_bound=-20.0, estimate_bound=True, weight_decay=0.1),
    "MoMoAdam": kopt.EMA(kopt.MoMoAdam(1.5, lower_bound=-5.0, weight_decay=0.1), momentum=0.5),
    "LineSearch": kopt.LineSearch(kopt.SGD(2.0, momentum=0.5), decrease=0.6, trials=5),
    "LineSearch of SAM": kopt.LineSearch(kopt.SAM(kopt.AdamW(2.0, epsilon=0.1)), decrease=0.4, trials=3),
    "EMA of SAM": kopt.EMA(kopt.SAM(kopt.Muon(0.05)), momentum=0.9),
    "Adafactor": kopt.Adafactor(0.5, epsilon_2=0.5, min_dim_size_to_factor=2),
    "Adafactor warmup": kopt.Adafactor(5.0, epsilon_2=0.5, warmup_init=True),
    "Adafactor external": kopt.Adafactor(
        0.05, beta_2_cap=0.5, momentum=0.5, epsilon_2=0.5, relative_step=False, min_dim_size_to_factor=2
    ),
    "CAME": kopt.CAME(0.01, beta_2=1 - 2**-10, beta_3=1 - 2**-13),  # which float32 holds exactly
    "AdamMini": kopt.AdamMini(0.05),
    "SM3": kopt.SM3(0.1),
    "GaLore": kopt.GaLore(kopt.AdamW(0.1), rank=1, gap=3),
    "APOLLO": kopt.APOLLO(0.01, rank=2, gap=3),
    "APOLLO of singular vectors": kopt.APOLLO(0.05, rank=1, gap=3, projection="svd"),
    "APOLLOMini": kopt.APOLLOMini(0.01),
    "Quantized": kopt.Quantized(kopt.Adam(0.05), block=4, min_size=1),
    "Quantized to 4 bits": kopt.Quantized(kopt.AdamW(0.05), bits=4, block=4, min_size=1),
    "Muon": kopt.Muon(0.05),
    "SOAP": kopt.SOAP(0.05, frequency=3, max_size=3),  # axes whose every direction the first gradients see
    "Shampoo": kopt.Shampoo(0.05, frequency=3, start=2, epsilon=0.01),
    "Kron": kopt.Kron(0.05, flat_steps=1.0, decay_rate=0.3, min_probability=0.3),
    "Matrices": kopt.Matrices(kopt.SGD(0.1, momentum=0.9), kopt.Adam(0.02)),
    "Proximal lasso": kopt.Proximal(kopt.AdamW(0.05), {"": kopt.penalties.Lasso(0.5)}),
    "Proximal groups": kopt.Proximal(
        kopt.SGD(0.1, momentum=0.9),
        {"^matrix|hidden/kernel": kopt.penalties.GroupLasso(0.2), "c|e": kopt.penalties.SparseGroupLasso(0.2, 0.5)},
    ),
    "Route": kopt.Route({"vector|bias": kopt.SGD(0.1)}, kopt.Adam(0.02)),
}


CORE = {"SGD Nesterov", "Adam", "LAMB", "Prodigy", "ScheduleFreeAdamW", "Muon", "Cautious", "Proximal groups"}
"""What the oldest versions run too: each kind of rule once."""


VARIANTS = {
    "SGD",
    "SGD momentum",
    "RMSprop centered",
    "AdamW corrected",
    "Ftrl penalized",
    "LAMB clipped",
    "LARS clipped",
    "AdaptiveGradientClipping excluded",
    "Prodigy strided",
    "DAdaptSGD",
    "EMA biased",
    "AdaHessian elementwise",
    "MoMo",
    "Adafactor warmup",
    "Adafactor external",
    "APOLLO",
    "Quantized",
    "Proximal lasso",
}
"""Other options of a class that is here already: what it meets outside of its rule is the same."""

OUTSIDE = {"check_fit", "check_continues", "check_options", "check_no_decay", "check_replicas"}


assert CASES.keys() >= CORE | VARIANTS
assert not CORE & VARIANTS


@pytest.mark.parametrize("case", [n if n in CORE else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_contract(case):
    if case not in VARIANTS:
        assert len(check_optimizer(CASES[case])) >= 12
        return
    rule = [check for check in optimizer_checks() if check.__name__ not in OUTSIDE]
    assert len(rule) == 8
    for check in rule:
        check(CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_steps_are_kopts(case):
    """A method of a rule that happens to be called `step` would be taken for a step by `kopt.Model`."""
    assert [*inspect.signature(type(CASES[case]).step).parameters] == ["self", "oracle", "variables", "apply"]
