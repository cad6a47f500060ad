"""The diagonal of the Hessian: signs that are signs, estimates without bias, and none where none is due."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.optimizers.hessian import signs
from kopt.testing import backends, runs

tf = pytest.importorskip("tensorflow")
if backends.BACKEND != "tensorflow":
    pytest.skip("kopt.Model is TensorFlow's", allow_module_level=True)

layers = keras.layers


def fitted(kind, optimizer, *, policy="float32", strategy=None, normalized=False, **how):
    """The weights of a small model after a few steps of an optimizer, made by a function."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(0)
        optimizer = optimizer()
        words = keras.Input((3,), dtype="int32")
        x = layers.Flatten()(layers.Embedding(5, 3, dtype=policy)(words))
        x = layers.Dense(4, "tanh", dtype=policy)(x)
        if normalized:
            x = layers.BatchNormalization()(x)
        model = kind(words, layers.Dense(2, dtype="float32")(x))
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, **{"jit_compile": False} | how)
    rng = np.random.default_rng(0)
    model.fit(rng.integers(0, 5, (32, 3)), rng.integers(0, 2, 32), batch_size=8, verbose=0, shuffle=False)
    return model.get_weights()


def test_signs_are_signs_of_their_own():
    drawn = np.stack([signs((1000,), seed, t, "float32") for seed, t in ((0, 1), (0, 2), (1, 1))])
    assert set(drawn.ravel()) == {-1.0, 1.0}
    assert np.abs(drawn.mean(1)).max() < 0.1
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.1
    half = ops.convert_to_numpy(ops.cast(signs((1000,), 0, 1, "bfloat16"), "float32"))
    np.testing.assert_array_equal(half, drawn[0])


def test_estimates_have_the_diagonal_for_their_mean():
    matrix = np.array([[2.0, 1.0, -0.5], [1.0, 0.5, 0.3], [-0.5, 0.3, -1.0]], "float32")  # whose rows add up to others
    optimizer = kopt.SophiaH()
    weights = [ops.zeros(3)]
    found = [optimizer.estimate(lambda z: [ops.matmul(matrix, z[0])], weights, t)[0] for t in range(1, 300)]
    np.testing.assert_allclose(np.mean(found, 0), np.diag(matrix), atol=0.2)


class Counting(runs.Bowl):
    """A bowl that counts what it is asked for."""

    def __init__(self, counter, *how):
        super().__init__(*how)
        self.counter = counter

    def hvp(self, vectors):
        self.counter.assign_add(1)
        return super().hvp(vectors)

    def sampled_gradients(self, seed, t):
        self.counter.assign_add(1)
        return super().sampled_gradients(seed, t)


@pytest.mark.parametrize("kind", [kopt.AdaHessian, kopt.SophiaH, kopt.SophiaG])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_product_is_computed_only_where_it_is_due(kind, compiled):
    counter, run = tf.Variable(0), runs.Run(kind(every=3))

    def step(gradients):
        run.optimizer.step(Counting(counter, run.variables, gradients), run.variables)

    step = tf.function(step) if compiled else step
    counts = []
    for gradients in run.gradients[:7]:
        step(gradients)
        counts.append(int(counter))
    assert counts == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "how"),
    [
        (lambda: kopt.AdaHessian(0.05), dict(jit_compile=True)),
        (lambda: kopt.AdaHessian(0.05, every=3), dict(policy="mixed_float16", steps_per_execution=2)),
        (lambda: kopt.EMA(kopt.SophiaH(0.01)), dict()),
        (lambda: kopt.SophiaH(0.01, every=3), dict(jit_compile=True)),
    ],
    ids=["AdaHessian, XLA", "AdaHessian, mixed", "SophiaH, averaged", "SophiaH, XLA"],
)
def test_a_plain_model_does_the_same(optimizer, how):
    plain, ours = (fitted(kind, optimizer, **how) for kind in (keras.Model, kopt.Model))
    assert runs.distance(plain, ours) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(backends.two_devices() is None, reason="two logical devices are needed")
def test_a_plain_model_does_the_same_on_two_replicas():
    def optimizer():
        return kopt.AdaHessian(0.05, every=2)

    one = fitted(kopt.Model, optimizer)
    two = fitted(keras.Model, optimizer, strategy=backends.mirrored(backends.two_devices()))
    assert runs.distance(one, two) < 1e-5


@pytest.mark.parametrize(
    ("optimizer", "how", "message"),
    [
        (kopt.AdaHessian, dict(run_eagerly=True), "AdaHessian .* run eagerly. Try run_eagerly=False, or kopt.Model"),
        (kopt.SophiaH, dict(normalized=True), "SophiaH .* layers that normalize .* Try kopt.Model"),
        (
            lambda: kopt.EMA(kopt.SophiaG()),
            dict(),
            "SophiaG asks more of each batch than its gradient, .* Try kopt.Model",
        ),
        (kopt.MoMo, dict(), "MoMo asks more of each batch than its gradient, .* Try kopt.Model"),
        (
            lambda: kopt.LineSearch(kopt.SGD()),
            dict(),
            "LineSearch asks more of each batch .* Try kopt.Model",
        ),
    ],
    ids=["eagerly", "normalized", "labels", "loss", "search"],
)
def test_what_a_plain_model_cannot_do_it_says(optimizer, how, message):
    with pytest.raises(ValueError, match=message) as error:
        fitted(keras.Model, optimizer, **how)
    assert "Cond.call" not in str(error.value)


def test_sophia_learns_from_labels_that_it_draws():
    model = runs.small_model(kopt.SophiaG(1e-2, every=2))
    losses = []
    for _ in range(3):
        runs.fitted(model)
        losses.append(model.history.history["loss"][-1])
    assert losses[-1] < losses[0]
    assert all(np.abs(slot.numpy()).max() > 0 for slot in model.optimizer.variables if "d" in slot.path.split("/")[-1])


def test_labels_are_not_drawn_for_micro_batches():
    inputs = keras.Input((2,))
    model = kopt.Model(inputs, layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    x = np.ones((6, 2), "float32")
    with pytest.raises(
        ValueError, match="micro_batch_size must be None, or the optimizer one that draws none"
    ) as error:
        kopt.minimize(model, x, x[:, :1], method=kopt.SophiaG(), micro_batch_size=3, maxiter=2)
    assert "Cond.call" not in str(error.value)


def test_sophia_in_an_estimator():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3)).astype("float32")
    y = x.sum(1) > 0
    fit = kopt.KerasClassifier(optimizer=kopt.SophiaG(3e-2, every=2), epochs=30, random_state=0).fit(x, y)
    assert fit.score(x, y) > 0.9
