"""Every optimizer, in its default form and with everything switched on, keeps the contract."""

import pytest

import kopt
from kopt.testing import optimizer_checks

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
    "Adamax": kopt.Adamax(0.05),
    "Nadam": kopt.Nadam(0.05),
    "Ftrl": kopt.Ftrl(0.1),
    "Ftrl penalized": kopt.Ftrl(
        0.1,
        l1_regularization_strength=0.1,
        l2_regularization_strength=0.1,
        l2_shrinkage_regularization_strength=0.1,
        beta=0.5,
    ),
    "Lion": kopt.Lion(0.01),
    "LAMB": kopt.LAMB(0.05),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", optimizer_checks(), ids=lambda check: check.__name__)
def test_contract(case, check):
    check(CASES[case])
