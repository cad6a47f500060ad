"""What lies beside what changes neither a weight's path nor a checkpoint."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.testing import backends, runs

SHAPES = [(3, 2), (4,), (3, 2), (), (4,), (), (7, 5)]
RULES = {
    "flat": lambda: kopt.Adam(0.1),
    "stacked": lambda: kopt.LAMB(0.1),
    "a slot for each weight": lambda: kopt.NovoGrad(0.1),
    "a wrapper": lambda: kopt.EMA(kopt.Cautious(kopt.AdamW(0.1))),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def apart(optimizer):
    """The same optimizer, which updates each weight by itself."""
    together = optimizer.treatments
    optimizer.__dict__["treatments"] = lambda variables: [
        treatment._replace(layout=number) for number, treatment in enumerate(together(variables))
    ]
    return optimizer


def variables(dtype="float32"):
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=s), dtype=dtype, name=f"w{i}") for i, s in enumerate(SHAPES)]


def steps(optimizer, weights, numbers, missing=(), compiled=False):
    """The weights after steps of these numbers, in which some weights have no gradient."""
    optimizer.build(weights)
    step = optimizer.apply
    if compiled:
        step = backends.compiled_step(optimizer.apply, optimizer, weights, lambda: None, False)
    for number in numbers:
        rng = np.random.default_rng(number + 1)
        grads = [ops.convert_to_tensor(rng.normal(size=s), weights[0].dtype) for s in SHAPES]
        step([None if i in missing else g for i, g in enumerate(grads)])
    return [np.asarray(w.numpy(), "float32") for w in weights]


def assert_equal(ours, theirs, atol=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


@every_rule
def test_weights_of_one_shape_lie_together(rule):
    optimizer = rule()
    optimizer.build(variables())
    assert len(optimizer._kept.packs) < len(SHAPES)


@every_rule
def test_a_path_is_that_of_a_weight_by_itself(rule):
    assert_equal(steps(rule(), variables(), range(4)), steps(apart(rule()), variables(), range(4)))


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, ()),
        ({}, (0, 4)),
        (dict(use_ema=True, ema_overwrite_frequency=2), ()),
        (dict(skip_nonfinite=True), ()),
        (dict(gradient_accumulation_steps=2), ()),
    ],
    ids=lambda x: ",".join(map(str, x)) or "none",
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("rule", [kopt.AdamW, pytest.param(kopt.Prodigy, marks=pytest.mark.slow)])
def test_large_weights_and_classes_are_updated_where_they_lie(rule, options, missing, dtype, monkeypatch):
    eager = steps(rule(0.1, **options), variables(dtype), range(4), missing)
    monkeypatch.setattr("kopt.optimizers.state.LARGE", 8)
    optimizer, weights = rule(0.1, **options), variables(dtype)
    compiled = steps(optimizer, weights, range(4), missing, compiled=True)
    layouts = {treatment.layout for treatment in optimizer.treatments(weights)}
    assert layouts == {(3, 2), (4,), "flat", 6}, "two classes stacked, the scalars flat, and the last one by itself"
    assert_equal(compiled, eager, atol=1e-6 if dtype == "float32" else 2**-6)


@pytest.mark.slow
def test_loss_scaling_takes_the_same_steps_where_weights_lie(monkeypatch):
    monkeypatch.setattr("kopt.optimizers.state.LARGE", 8)
    ends = []
    for how in (dict(run_eagerly=True), {}, dict(jit_compile=True)):
        model = runs.small_model(kopt.Adam(0.05))
        scaled = keras.optimizers.LossScaleOptimizer(kopt.Adam(0.05))
        model.compile(scaled, "mse", **dict(jit_compile=False) | how)
        ends.append(runs.fitted(model).get_weights())
    assert_equal(ends[1], ends[0])
    assert_equal(ends[2], ends[0])


@every_rule
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_weight_without_a_gradient_stays_while_its_neighbours_move(rule):
    ends = []
    for optimizer in (rule(), apart(rule())):
        weights = variables()
        before = steps(optimizer, weights, range(2))
        between = steps(optimizer, weights, range(2, 4), missing=(0, 4))
        moved = [not np.array_equal(a, b) for a, b in zip(before, between, strict=True)]
        assert moved == [i not in (0, 4) for i in range(len(SHAPES))]
        ends.append(steps(optimizer, weights, range(4, 6)))
    assert_equal(*ends)


@every_rule
@pytest.mark.parametrize("saved", [apart, lambda optimizer: optimizer], ids=["apart", "together"])
def test_a_checkpoint_does_not_depend_on_what_lies_beside_what(rule, saved):
    first, weights, store = saved(rule()), variables(), {}
    steps(first, weights, range(3))
    first.save_own_variables(store)
    straight = steps(first, weights, range(3, 5))
    for layout in (apart, lambda optimizer: optimizer):
        resumed, again = layout(rule()), variables()
        resumed.build(again)
        resumed.load_own_variables(store)
        steps(saved(rule()), again, range(3))  # the weights as they were when the state was saved
        assert_equal(steps(resumed, again, range(3, 5)), straight)


def test_the_state_of_other_weights_is_left_out_with_a_warning():
    optimizer, store = kopt.Adam(0.1), {}
    optimizer.build(variables())
    optimizer.save_own_variables(store)
    other = kopt.Lion(0.1)
    other.build(variables())
    with pytest.warns(UserWarning, match=r"^Lion: the saved state is left out, for it is that of another optimizer"):
        other.load_own_variables(store)
