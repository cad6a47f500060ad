"""Steps that see the loss: where models meet their bound, and lengths that lower the loss enough."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.testing import backends, runs


def flat(arrays):
    return np.concatenate([np.ravel(ops.convert_to_numpy(a)) for a in arrays]).astype("float64")


@pytest.mark.parametrize("kind", ["MoMo", "MoMoAdam"])
def test_a_step_ends_where_the_model_meets_its_bound(kind):
    options = dict(groups={"matrix": {"learning_rate": 0.3}, "vector": {"weight_decay": 4.0}}, no_decay="convolution")
    optimizer = getattr(kopt, kind)(5.0, lower_bound=-15.0, weight_decay=0.2, **options)
    run, met = runs.Run(optimizer, dtype="float64"), 0
    for t, gradients in enumerate(run.gradients, 1):
        run.step(gradients)
        shared = {name: float(x) for name, x in optimizer._kept.shared[""].items()}
        m = flat([run.optimizer._held("m")[i] for i in range(3)])
        share = 1 - 0.9**t if kind == "MoMoAdam" else 1
        if 0 < shared["size"] < 1 / share:
            model = shared["mean_loss"] - shared["mean_dot"] + m @ flat(run.variables)
            np.testing.assert_allclose(model, share * -15.0, rtol=1e-9)
            met += 1
    assert met > 3


def test_the_loss_is_that_of_the_batch():
    model = runs.small_model(kopt.SPS(1e3)) if backends.BACKEND == "tensorflow" else None
    if model is None:
        pytest.skip("kopt.Model is TensorFlow's")
    x, y = np.zeros((4, 2), "int32"), np.ones((4, 1), "float32")
    before = flat(model.get_weights())
    outputs = model.predict(x, verbose=0)
    loss = float(np.mean((outputs - y) ** 2))
    model.fit(x, y, batch_size=4, verbose=0)
    step = flat(model.get_weights()) - before
    gradient_norm = 2 * loss / np.linalg.norm(step)  # size = (f - 0) / (½ ‖g‖²), and so the step's length 2 f / ‖g‖
    size = float(next(iter(model.optimizer._kept.shared.values()))["size"]) * 1e3
    np.testing.assert_allclose(size, loss / (0.5 * gradient_norm**2), rtol=1e-4)


class Cliff(runs.Bowl):
    """A bowl whose loss is no number, or infinite, far from the start."""

    def __init__(self, start, radius, beyond, *how):
        super().__init__(*how)
        self.start, self.radius, self.beyond = start, radius, beyond

    def at(self, weights):
        inside = self.start, self.radius, self.beyond, self.variables, self.slopes, self.share, self.steps, weights
        return Cliff(*inside)

    def loss(self):
        far = sum(ops.sum(ops.square(w - s)) for w, s in zip(self.weights, self.start, strict=True)) > self.radius**2
        return ops.where(far, self.beyond, super().loss())


def searching(optimizer, oracle=None, steps=runs.STEPS, seed=None):
    """Yields (loss before, loss after, slope · step, step, length) for each step of a line search."""
    run = runs.Run(optimizer)
    rng = np.random.default_rng(seed)
    for gradients in run.gradients[:steps]:
        if seed is not None:
            gradients = [ops.convert_to_tensor(10 ** rng.uniform(-2, 2) * ops.convert_to_numpy(g)) for g in gradients]
        bowl = (oracle or runs.Bowl)(run.variables, gradients, None, run.optimizer._taken())
        before, slope, start = float(bowl.loss()), flat(bowl.gradients()), flat(run.variables)
        run.optimizer.step(bowl, run.variables)
        after = float(bowl.at([v.value for v in run.variables]).loss())
        step = flat(run.variables) - start
        yield before, after, slope @ step, step, float(run.optimizer._kept.flags["length"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("inner", [kopt.SGD(30.0), kopt.AdamW(200.0, weight_decay=None, beta_1=0.0)], ids=repr)
def test_every_accepted_step_lowers_the_loss_enough(inner, seed):
    shortened = 0
    for before, after, fall, _, length in searching(kopt.LineSearch(runs.copy(inner), decrease=0.3), seed=seed):
        assert fall < 0
        assert after <= before + 0.3 * fall + 1e-4 * abs(before)
        shortened += length < 1
    assert shortened > 3


@pytest.mark.parametrize("beyond", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_shortens_the_step(beyond):
    start = [ops.convert_to_tensor(w) for w in runs.Run(kopt.SGD()).start]
    ((_, after, _, step, length),) = searching(
        kopt.LineSearch(kopt.SGD(30.0)), lambda *how: Cliff(start, 0.1, beyond, *how), steps=1
    )
    assert np.isfinite(after)
    assert 0 < np.linalg.norm(step) <= 0.1
    assert length < 1
    ((_, after, _, step, length),) = searching(
        kopt.LineSearch(kopt.SGD(30.0), trials=2), lambda *how: Cliff(start, 0.1, beyond, *how), steps=1
    )
    assert np.isfinite(after)
    assert not step.any()
    assert length == 1  # of the next search


def test_a_step_uphill_is_taken_at_the_present_length():
    lengths = []
    for _, _, fall, step, length in searching(kopt.LineSearch(kopt.SGD(1.0, momentum=0.99), growth=1.0)):
        if fall > 0:
            assert step.any()
            assert length == lengths[-1]
        lengths.append(length)
    assert len(lengths) > len(set(lengths)) > 1


def test_averages_are_of_what_the_search_has_found():
    optimizer = kopt.LineSearch(kopt.SGD(30.0, use_ema=True, ema_momentum=0.0))
    run = runs.Run(optimizer)
    for gradients in run.gradients[:3]:
        run.step(gradients)
    averages = [v.numpy() for v in optimizer._model_variables_moving_average]
    np.testing.assert_array_equal(flat(averages), flat(run.variables))


def test_a_search_has_to_be_outermost():
    with pytest.raises(ValueError, match=r"Cautious: inner must .* Try LineSearch around the Cautious"):
        kopt.Cautious(kopt.LineSearch(kopt.SGD()))
    kopt.Switch([(kopt.LineSearch(kopt.SGD()), 3), (kopt.SGD(), None)])  # whose phases step by themselves
    with pytest.raises(ValueError, match="LineSearch: inner must not average weights, got EMA"):
        kopt.LineSearch(kopt.EMA(kopt.SGD())).build([keras.Variable(1.0)])


@pytest.mark.skipif(backends.two_devices() is None, reason="two logical devices are needed")
def test_replicas_search_without_a_guard_of_their_own():
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        run = runs.Run(kopt.LineSearch(kopt.SGD(skip_nonfinite=True)))
    with pytest.raises(ValueError, match="LineSearch: skip_nonfinite must be False on several replicas"):
        backends.replicated_step(strategy, run.step)(run.gradients[0])


@pytest.mark.skipif(backends.BACKEND != "tensorflow", reason="kopt.Model is TensorFlow's")
@pytest.mark.parametrize("xla", [False, True])
def test_a_search_in_fit_tames_any_learning_rate(xla):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Dropout(0.2)(layers.BatchNormalization()(layers.Dense(8, "tanh")(inputs)))
    model = kopt.Model(inputs, layers.Dense(1)(x))
    model.compile(kopt.LineSearch(kopt.SGD(1e3)), "mse", jit_compile=xla)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 4)).astype("float32")
    losses = model.fit(x, x.sum(1), batch_size=64, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    moving = next(v for v in model.non_trainable_variables if "moving_variance" in v.path)
    assert np.all(moving.numpy() > 0.99**15)  # moved once a step: the batch's variance is not zero
