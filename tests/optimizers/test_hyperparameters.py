"""Arguments of optimizers: checked at once, shown and set by name, fixed where the compiled step needs it."""

import inspect

import keras
import numpy as np
import pytest
from sklearn.base import clone

import kopt
from kopt import optimizers
from kopt._keras import OPTIMIZER_OPTIONS
from kopt.optimizers.base import Common
from kopt.optimizers.hyperparameters import OPTIONS
from kopt.testing import backends

CLASSES = [
    cls
    for cls in map(vars(optimizers).get, optimizers.__all__)
    if isinstance(cls, type) and issubclass(cls, optimizers.Optimizer) and cls.cites  # all but the bases
]


class Broken(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that returns what it is given."""

    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return self.value


def built(optimizer):
    optimizer.build([keras.Variable(np.ones((2, 2), "float32"), name="w")])
    return optimizer


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kopt.AdamW(beta_2=1.2), ValueError, "AdamW: beta_2 must be a number in [0, 1), got 1.2."),
        (lambda: kopt.Adam("0.1"), TypeError, "Adam: learning_rate must be a number in [0, inf), got '0.1'."),
        (lambda: kopt.Adam(-1), ValueError, "Adam: learning_rate must be a number in [0, inf), got -1."),
        (lambda: kopt.SGD(momentum=True), TypeError, "SGD: momentum must be a number in [0, 1], got True."),
        (lambda: kopt.SGD(nesterov=1), ValueError, "SGD: nesterov must be one of True, False, got 1."),
        (lambda: kopt.Lion(beta_1=None), TypeError, "Lion: beta_1 must be a number in [0, 1), got None."),
        (lambda: kopt.Ftrl(learning_rate_power=0.5), ValueError,
         "Ftrl: learning_rate_power must be a number in (-inf, 0], got 0.5."),
        (lambda: kopt.Adagrad(initial_accumulator_value=-1), ValueError,
         "Adagrad: initial_accumulator_value must be a number in [0, inf), got -1."),
        (lambda: kopt.Adagrad(initial_accumulator_value=keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)),
         TypeError, "Adagrad: initial_accumulator_value must be a number in [0, inf), got <"),
        (lambda: kopt.Adam(no_decay="("), ValueError, "Adam: no_decay must hold regular expressions, got '('"),
        (lambda: kopt.Adam(groups=["bias"]), TypeError, "Adam: groups must map patterns to factors, as in {'bias'"),
        (lambda: kopt.Adam(groups={"bias": {"rate": 1}}), ValueError,
         "Adam: groups: factor must be one of 'learning_rate', 'weight_decay', got 'rate'."),
        (lambda: kopt.Adam(groups={"bias": {"learning_rate": -1}}), ValueError,
         "Adam: groups: learning_rate must be a number in [0, inf), got -1."),
        (lambda: kopt.Adam(groups={"(": {}}), ValueError, "Adam: groups must hold regular expressions, got '('"),
        (lambda: kopt.Adam(skip_nonfinite="yes"), ValueError,
         "Adam: skip_nonfinite must be one of True, False, got 'yes'."),
        (lambda: kopt.Adam(Broken("no number")), TypeError,
         "Adam: learning_rate must be a schedule that returns a number at each step, got 'no number' at step 0."),
        (lambda: kopt.Adam(beta_1=Broken([0.5, 0.5])), TypeError, "Adam: beta_1 must be a schedule that returns"),
        (lambda: kopt.Adam(beta_1=Broken(1.5)), ValueError, "Adam: at step 0: beta_1 must be a number in [0, 1), got"),
        (lambda: kopt.Adam(beta1=0.9), TypeError, "Adam takes no argument 'beta1', but learning_rate, beta_1, "),
        (lambda: kopt.Adam().set_params(beta1=0.9), ValueError, "Adam takes no parameter 'beta1', but learning_rate, "),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("optimizer", "name", "value"),
    [
        (kopt.AdamW(), "weight_decay_mode", "typo"),
        (kopt.ScheduleFreeAdamW(), "warmup_steps", 1.5),
        (kopt.ScheduleFreeAdamW(), "warmup_steps", -1),
        (kopt.Prodigy(), "growth_rate", keras.optimizers.schedules.ExponentialDecay(2.0, 1, 0.5)),
        (kopt.Prodigy(), "growth_rate", 0.5),
        (kopt.Mechanic(kopt.SGD()), "number", 0),
        (kopt.SWA(kopt.SGD()), "every", 0),
        (kopt.Muon(), "auxiliary", "("),
    ],
)
def test_what_is_set_later_is_checked_as_what_is_given(optimizer, name, value):
    before = optimizer.get_params()
    with pytest.raises((TypeError, ValueError), match=rf"^{type(optimizer).__name__}: {name} must "):
        optimizer.set_params(**{name: value})
    assert optimizer.get_params() == before


def test_the_nearest_name_is_offered():
    with pytest.raises(TypeError, match=r"Did you mean 'beta_1'\?$"):
        kopt.Adam(beta1=0.9)


@pytest.mark.parametrize("options", [{"no_decay": "nrom"}, {"groups": {"nrom": {"learning_rate": 0.1}}}])
def test_a_pattern_that_matches_no_weight_is_refused(options):
    (option,) = options
    message = rf"^Adam: {option} must match a weight's path, and 'nrom' matches none of w\.$"
    with pytest.raises(ValueError, match=message):
        built(kopt.Adam(**options))


def test_what_shapes_the_step_is_fixed_inside_a_wrapper_too():
    wrapper = built(kopt.Cautious(kopt.EMA(kopt.SGD(0.1))))
    with pytest.raises(ValueError, match=r"^SGD: momentum was 0\.0 when the optimizer was built, "):
        wrapper.set_params(inner__inner__momentum=0.9)
    wrapper.set_params(inner__inner__learning_rate=0.5, inner__momentum=0.5)
    assert (float(wrapper.learning_rate.numpy()), wrapper.inner.momentum) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        (kopt.SGD(0.1), {"momentum": 0.9}),  # which needs a slot
        (kopt.SGD(0.1, momentum=0.9), {"momentum": 0.0}),
        (kopt.SGD(0.1, momentum=0.9), {"nesterov": True}),
        (kopt.SGD(0.1), {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)}),
        (kopt.SGD(0.1), {"weight_decay": 0.1}),  # for which nothing was compiled
        (kopt.Adam(), {"clipnorm": 1.0}),
        (kopt.Adagrad(), {"initial_accumulator_value": 1.0}),
    ],
)
def test_what_shapes_the_step_is_fixed_once_built(optimizer, changes):
    optimizer = built(clone(optimizer))
    before = optimizer.get_params()
    with pytest.raises(ValueError, match=r"was .* when the optimizer was built, .* Make a new one"):
        optimizer.set_params(**changes)
    assert optimizer.get_params() == before
    clone(optimizer).set_params(**changes)  # which is not built


def test_numbers_of_any_kind_are_taken_and_kept_exactly():
    optimizer = built(kopt.Adam(1, beta_1=np.float32(0.5), epsilon=0))
    assert optimizer.get_params()["learning_rate"] == 1.0
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 0.0)
    assert all(type(value) is float for value in (optimizer.beta_1, optimizer.epsilon))


def test_the_variables_value_counts_once_something_else_was_assigned():
    optimizer = built(kopt.Adam(0.25))
    optimizer.learning_rate.assign(0.5)  # what a callback may do
    assert optimizer.get_params()["learning_rate"] == 0.5
    optimizer.learning_rate = 0.125
    assert optimizer.get_config()["learning_rate"] == 0.125


@pytest.mark.parametrize("given", [lambda: 0.5, keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)])
def test_a_number_may_take_the_place_of_a_schedule_until_the_step_is_built(given):
    optimizer = kopt.SGD(given).set_params(learning_rate=0.25)
    built(optimizer).apply([np.ones((2, 2), "float32")])
    np.testing.assert_array_equal(optimizer._trainable_variables[0].numpy(), np.full((2, 2), 0.75))
    with pytest.raises(ValueError, match=r"learning_rate was .* when the optimizer was built"):
        built(kopt.SGD(given)).learning_rate = 0.25


def test_a_clone_shares_what_cannot_be_written_down():
    def rate():
        return 0.125

    assert clone(kopt.Adam(rate, name="named")).get_params()["learning_rate"] is rate
    assert clone(kopt.Adam(name="named")).name == "named"


def test_repr_shows_what_is_not_default():
    assert repr(kopt.AdamW()) == "AdamW()"
    changed = kopt.AdamW(0.1, no_decay="bias", beta_1=0.8)
    assert repr(changed) == "AdamW(learning_rate=0.1, beta_1=0.8, no_decay=('bias',))"


def test_keras_way_to_exclude_weights_from_decay_is_saved():
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias", "scale")]
    optimizer = kopt.AdamW()
    optimizer.exclude_from_weight_decay(var_list=variables[:1], var_names=["^scale"])
    assert clone(optimizer).no_decay == ("^kernel$", "^scale")
    optimizer.build(variables)
    assert [treatment.factors[:2] for treatment in optimizer.treatments(variables)] == [(1, 0), (1, 1), (1, 0)]
    with pytest.raises(ValueError, match="no_decay was"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


def test_a_rule_that_returns_other_slots_than_it_declared_is_refused():
    class Forgetful(kopt.Adam):
        def direction(self, g, w, t, h, *, m, v):
            return g, dict(m=m)

    optimizer = built(Forgetful())
    with pytest.raises(ValueError, match=r"^Forgetful: direction must return the slots \['m', 'v'\], got \['m'\]\.$"):
        optimizer.apply([np.ones((2, 2), "float32")])


def test_schedules_count_optimizer_steps_while_gradients_accumulate():
    stop = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.0])  # one step, then none
    optimizer = built(kopt.SGD(stop, gradient_accumulation_steps=2))
    (variable,) = optimizer._trainable_variables
    for _ in range(4):
        optimizer.apply([np.ones((2, 2), "float32")])
    np.testing.assert_array_equal(variable.numpy(), np.zeros((2, 2)))


@pytest.mark.parametrize("clip", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}])
def test_clipping_bounds_the_sum_of_a_sparse_gradients_rows(clip):
    variable = keras.Variable(np.zeros((3, 1), "float32"))
    optimizer = kopt.SGD(1.0, **clip)
    rows = backends.sparse_rows(np.ones((100, 1), "float32"), np.zeros(100, "int32"), (3, 1))
    optimizer.apply([rows], [variable])
    np.testing.assert_allclose(variable.numpy(), [[-1], [0], [0]], rtol=1e-6)


def test_slots_and_hyperparameters_are_named_after_their_weights():
    names = [v.path for v in built(kopt.Adam(name="opt")).variables]
    assert names[:2] == ["opt/iteration", "opt/learning_rate"]
    assert names[2:] == ["opt/beta_1", "opt/beta_2", "opt/epsilon", "opt/w_m", "opt/w_v"]


OTHERWISE = {"Adafactor", "Muon", "ScheduleFreeAdamW"}  # where Keras's own departs from its paper, as its page says


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_signature_has_keras_names_in_their_order(cls):
    name = {"LAMB": "Lamb", "AMSGrad": "Adam"}.get(cls.__name__, cls.__name__)
    if not hasattr(keras.optimizers, name) or name in OTHERWISE:
        return
    theirs = inspect.signature(getattr(keras.optimizers, name)).parameters
    own = [name for name in theirs if name not in {*OPTIMIZER_OPTIONS, "kwargs", "amsgrad"}]
    assert [name for name in cls._signature() if name in own] == own


def test_the_typed_options_are_those_that_are_taken():
    assert set(Common.__annotations__) == {*OPTIMIZER_OPTIONS, *OPTIONS}
