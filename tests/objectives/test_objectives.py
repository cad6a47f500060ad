"""What steps minimize, against NumPy on a linear model whose gradients are known, with the same draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import special, stats

import kopt
from kopt import objectives
from kopt.layers.base import Noise
from kopt.objectives.mixing import beta
from kopt.schedules import Linear
from kopt.testing import backends
from kopt.training.batch import Batch
from kopt.training.look import Look
from kopt.training.oracle import computing

RNG = np.random.default_rng(0)
ROWS, FEATURES, CLASSES = 6, 4, 3
SEED = 0  # of a rectangle that is neither empty nor all
X = RNG.standard_normal((ROWS, FEATURES)).astype("float32")
Y = np.array([0, 1, 2, 0, 1, 2])
W = RNG.uniform(0.5, 2, ROWS).astype("float32")
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def model_of(loss=CROSSENTROPY, units=CLASSES, dropout=0.0, objective=None, optimizer="sgd", dtype=None, **how):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,), dtype="float64" if dtype == "float64" else None)
    h = layers.Dropout(dropout, seed=3, dtype=dtype)(inputs) if dropout else inputs
    model = kopt.Model(inputs, layers.Dense(units, name="head", dtype=dtype)(h))
    model.compile(optimizer, loss, objective=objective, jit_compile=False, **how)
    model.get_layer("head").bias.assign(np.linspace(-0.5, 0.5, units))
    return model


def look_of(model, x=X, y=Y, w=W):
    tensors = [None if part is None else tf.constant(part) for part in (x, y, w)]
    return Look(model, *tensors)


def total(objective, model, **data):
    """The loss that an objective has, as a number."""
    return float(objective.total(look_of(model, **data))[1])


def weights_of(model):
    return [v.numpy().astype("float64") for v in model.get_layer("head").trainable_variables]


def logits(model, x=X):
    kernel, bias = weights_of(model)
    return x @ kernel + bias


def crossentropies(z, y=Y):
    return -special.log_softmax(z, axis=1)[np.arange(len(z)), y]


def kl(a, b):
    p, q = special.log_softmax(a, axis=1), special.log_softmax(b, axis=1)
    return (np.exp(p) * (p - q)).sum(axis=1)


def slopes(model, z, targets):
    """The gradient by the row of a crossentropy with these probabilities for targets, for each row."""
    return (special.softmax(z, axis=1) - targets) @ weights_of(model)[0].T


def numbers(x):
    return np.asarray(keras.ops.convert_to_numpy(x), "float64")


def mixing_draws(alpha, seed):
    seed = keras.random.SeedGenerator(seed)
    share = numbers(beta((), tf.constant(alpha), seed))
    return share, np.argsort(numbers(keras.random.uniform((ROWS,), seed=seed))), seed


def mixed_loss(z, share, order, y=Y):
    return np.mean(share * W * crossentropies(z, y) + (1 - share) * W[order] * crossentropies(z, y[order]))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha):
    draws = numbers(beta((4000,), tf.constant(alpha, "float64"), keras.random.SeedGenerator(0)))
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixup():
    model = model_of()
    share, order, _ = mixing_draws(2.0, 5)
    z = logits(model, share * X + (1 - share) * X[order])
    assert 0.05 < share < 0.95
    np.testing.assert_allclose(total(objectives.MixUp(2.0, seed=5), model), mixed_loss(z, share, order), rtol=1e-5)


def test_mixup_of_a_regression_and_of_several_labels():
    share, order, _ = mixing_draws(1.0, 5)
    y = RNG.standard_normal((ROWS, CLASSES)).astype("float32")
    model = model_of("mse")
    z = logits(model, share * X + (1 - share) * X[order])
    errors = [np.square(z - targets).mean(axis=1) for targets in (y, y[order])]
    expected = np.mean(share * errors[0] + (1 - share) * errors[1])
    np.testing.assert_allclose(total(objectives.MixUp(1.0, seed=5), model, y=y, w=None), expected, rtol=1e-5)
    labels = (y > 0).astype("float32")
    model = model_of(keras.losses.BinaryCrossentropy(from_logits=True))
    mixed = share * labels + (1 - share) * labels[order]
    expected = np.mean(np.logaddexp(0, z) - mixed * z)
    np.testing.assert_allclose(total(objectives.MixUp(1.0, seed=5), model, y=labels, w=None), expected, rtol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_cutmix(data_format):
    height, width = 6, 5
    images = RNG.standard_normal((ROWS, height, width, 2)).astype("float32")
    share, order, seed = mixing_draws(1.0, SEED)
    within = np.ones((height, width), bool)
    for axis, side in enumerate((height, width)):
        centre = np.floor(side * numbers(keras.random.uniform((), seed=seed)))
        half = np.floor(np.floor(side * np.sqrt(1 - share)) / 2)
        places = np.arange(side)
        line = (places >= max(centre - half, 0)) & (places < min(centre + half, side))
        within &= line[:, None] if axis == 0 else line
    left = 1 - within.mean()
    assert 0.2 < left < 1
    expected = np.where(within[None, :, :, None], images[order], images)
    seen = []

    class Recorded(Look):
        def outputs(self, x=None):
            seen.append(numbers(x))
            return super().outputs(x)

    first = data_format == "channels_first"
    given = np.moveaxis(images, -1, 1) if first else images
    inputs = keras.Input(given.shape[1:])
    model = kopt.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(inputs)))
    model.compile("sgd", CROSSENTROPY)
    objective = objectives.CutMix(1.0, data_format, seed=SEED)
    outputs, loss = objective.total(Recorded(model, *map(tf.constant, (given, Y, W))))
    np.testing.assert_allclose(seen[0], np.moveaxis(expected, -1, 1) if first else expected, rtol=1e-6)
    np.testing.assert_allclose(float(loss), mixed_loss(numbers(outputs), left, order), rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_manifold_mixup(seed):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,))
    hidden, head = layers.Dense(5, "tanh", name="hidden"), layers.Dense(CLASSES)
    model = kopt.Model(inputs, head(hidden(inputs)))
    model.compile("sgd", CROSSENTROPY)
    share, order, draws = mixing_draws(2.0, seed)
    behind = numbers(keras.random.uniform((), seed=draws)) < 0.5

    def mixed(h):
        return share * h + (1 - share) * h[order]

    (a, b), (c, d) = ([v.numpy().astype("float64") for v in layer.trainable_variables] for layer in (hidden, head))
    h = np.tanh((X if behind else mixed(X)) @ a + b)
    expected = mixed_loss((mixed(h) if behind else h) @ c + d, share, order)
    objective = objectives.ManifoldMixup("hidden", 2.0, seed=seed)
    np.testing.assert_allclose(total(objective, model), expected, rtol=1e-5)
    np.testing.assert_allclose(numbers(model(X)), np.tanh(X @ a + b) @ c + d, rtol=1e-4, atol=1e-5)


def test_fgsm():
    model, epsilon = model_of(), 0.3
    z = logits(model)
    moved = X + epsilon * np.sign(slopes(model, z, np.eye(CLASSES)[Y]))
    expected = np.mean(W * (0.75 * crossentropies(z) + 0.25 * crossentropies(logits(model, moved))))
    np.testing.assert_allclose(total(objectives.FGSM(epsilon, 0.25), model), expected, rtol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2])
def test_vat(iterations):
    model = model_of()
    z = logits(model)
    d = numbers(keras.random.normal(X.shape, seed=keras.random.SeedGenerator(4)))

    def unit(d):
        return d / np.linalg.norm(d, axis=1, keepdims=True)

    for _ in range(iterations):
        d = slopes(model, logits(model, X + 0.01 * unit(d)), special.softmax(z, axis=1))
    expected = np.mean(W * crossentropies(z) + 0.5 * W * kl(z, logits(model, X + 2.0 * unit(d))))
    found = total(objectives.VAT(2.0, 0.5, iterations=iterations, seed=4), model)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    kernel = model.get_layer("head").kernel
    with tf.GradientTape() as tape:
        loss = objectives.VAT(2.0, 0.5, iterations=iterations, seed=4).total(look_of(model))[1]
    moved = X + 2.0 * unit(d)
    hard = X.T @ (W[:, None] * (special.softmax(z, axis=1) - np.eye(CLASSES)[Y]))
    soft = moved.T @ (W[:, None] * (special.softmax(logits(model, moved), axis=1) - special.softmax(z, axis=1)))
    slope = numbers(tape.gradient(loss, kernel.value))  # the direction and the first prediction are held still
    np.testing.assert_allclose(slope, (hard + 0.5 * soft) / ROWS, rtol=1e-3, atol=1e-5)


def test_a_row_that_nothing_moves_has_no_virtual_adversary():
    model = model_of()
    model.get_layer("head").kernel.assign(np.zeros((FEATURES, CLASSES)))
    expected = np.mean(W * crossentropies(logits(model)))
    np.testing.assert_allclose(total(objectives.VAT(1.0, seed=4), model), expected, rtol=1e-5)


def test_trades():
    model = model_of()
    z = logits(model)
    r = 1e-3 * numbers(keras.random.normal(X.shape, seed=keras.random.SeedGenerator(4)))
    for _ in range(3):
        ahead = r + 0.08 * np.sign(slopes(model, logits(model, X + r), special.softmax(z, axis=1)))
        r = np.clip(ahead, -0.2, 0.2)
    assert np.abs(r).max() == 0.2
    expected = np.mean(W * crossentropies(z) + 2 * W * kl(z, logits(model, X + r)))
    found = total(objectives.TRADES(0.2, 2.0, step_size=0.08, iterations=3, seed=4), model)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_r_drop():
    model, seed = model_of(dropout=0.5), keras.random.SeedGenerator(3)
    one, two = (logits(model, numbers(keras.random.dropout(X, 0.5, seed=seed))) for _ in range(2))
    halves = W * (crossentropies(one) + crossentropies(two)) / 2
    expected = np.mean(halves + 3 * W * (kl(one, two) + kl(two, one)) / 2)
    assert np.abs(one - two).max() > 0.1
    np.testing.assert_allclose(total(objectives.RDrop(3.0), model), expected, rtol=1e-5)


def test_flooding_turns_around_at_its_level():
    model = model_of()
    loss = np.mean(W * crossentropies(logits(model)))
    for level in (loss - 0.2, loss + 0.2):
        objective = objectives.Flooding(level)
        np.testing.assert_allclose(total(objective, model), abs(loss - level) + level, rtol=1e-5)
        kernel = model.get_layer("head").kernel
        signs = []
        for function in (lambda o=objective: o.total(look_of(model))[1], lambda: look_of(model).loss(model(X))):
            with tf.GradientTape() as tape:
                value = function()
            signs.append(numbers(tape.gradient(value, kernel.value)))
        np.testing.assert_allclose(signs[0], signs[1] * (1 if loss > level else -1), rtol=1e-4, atol=1e-6)


def test_gradient_penalty():
    model = model_of()
    z = logits(model)
    each = W[:, None] * slopes(model, z, np.eye(CLASSES)[Y])
    expected = np.mean(W * crossentropies(z) + 0.3 * np.square(each).sum(axis=1))
    np.testing.assert_allclose(total(objectives.GradientPenalty(0.3), model), expected, rtol=1e-5)


def test_jacobian_penalty():
    """Of a linear model J is the kernel, whatever the row; the estimate is unbiased."""
    model = model_of()
    kernel, z = weights_of(model)[0], logits(model)
    plain = np.mean(W * crossentropies(z))
    v = numbers(keras.random.normal(z.shape, seed=keras.random.SeedGenerator(6)))
    v *= np.sqrt(CLASSES) / np.linalg.norm(v, axis=1, keepdims=True)
    expected = plain + 0.2 / 2 * np.square(v @ kernel.T).sum(axis=1).mean()
    np.testing.assert_allclose(total(objectives.JacobianPenalty(0.2, seed=6), model), expected, rtol=1e-5)
    many = total(objectives.JacobianPenalty(0.2, projections=300, seed=6), model)
    np.testing.assert_allclose(many, plain + 0.2 / 2 * np.square(kernel).sum(), rtol=0.02)


def test_label_smoothing_is_that_of_keras_for_indicators():
    model = model_of()
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    expected = float(smooth(np.eye(CLASSES)[Y], numbers(model(X)), sample_weight=W))
    np.testing.assert_allclose(total(objectives.LabelSmoothing(0.2), model), expected, rtol=1e-5)
    labels = np.eye(CLASSES, dtype="float32")[Y]
    binary = keras.losses.BinaryCrossentropy(from_logits=True)
    smooth = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    expected = float(smooth(labels, numbers(model(X)), sample_weight=W))
    np.testing.assert_allclose(total(objectives.LabelSmoothing(0.2), model_of(binary), y=labels), expected, rtol=1e-5)


def test_several_outputs_with_weights_of_their_own_one_without_a_loss():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    a, b, c = (layers.Dense(units, name=name)(inputs) for units, name in [(3, "a"), (1, "b"), (2, "c")])
    model = kopt.Model(inputs, [a, b, c])
    binary = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("sgd", [CROSSENTROPY, None, binary])
    labels = RNG.integers(0, 2, (ROWS, 2)).astype("float32")
    weights = [RNG.uniform(0.5, 2, ROWS).astype("float32") for _ in range(3)]
    targets = [tf.constant(Y), None, tf.constant(labels)]
    look = Look(model, tf.constant(X), targets, [tf.constant(w) for w in weights])
    z, _, u = (numbers(part) for part in model(X))
    hard = np.mean(weights[0] * crossentropies(z)) + np.mean(
        weights[2] * (np.logaddexp(0, u) - labels * u).mean(axis=1)
    )
    soft = np.mean(weights[0] * -special.log_softmax(z, axis=1).mean(axis=1))
    soft += np.mean(weights[2] * (np.logaddexp(0, u) - u / 2).mean(axis=1))
    found = float(objectives.LabelSmoothing(0.2).total(look)[1])
    np.testing.assert_allclose(found, 0.8 * hard + 0.2 * soft, rtol=1e-5)


def test_penalties_of_layers_are_not_smoothed_away():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    model = kopt.Model(inputs, layers.Dense(CLASSES, kernel_regularizer="l2")(inputs))
    model.compile("sgd", CROSSENTROPY)
    penalty = 0.01 * np.square(model.layers[-1].kernel.numpy()).sum()
    for objective in (objectives.LabelSmoothing(0.5), objectives.OnlineLabelSmoothing(CLASSES, 9, weight=0.0)):
        z = numbers(model(X))
        uniform = -special.log_softmax(z, axis=1).mean(axis=1)
        hard = 0.5 if isinstance(objective, objectives.LabelSmoothing) else 0.0
        expected = np.mean(W * (hard * crossentropies(z) + (1 - hard) * uniform)) + penalty
        np.testing.assert_allclose(total(objective, model), expected, rtol=1e-5)


def test_online_label_smoothing_learns_from_what_it_predicted_rightly():
    model = model_of()
    z = logits(model)
    p, right = special.softmax(z, axis=1), z.argmax(axis=1) == Y
    assert 0 < right.sum() < ROWS
    table = np.full((CLASSES, CLASSES), 1 / CLASSES)
    objective = objectives.OnlineLabelSmoothing(CLASSES, period=2, weight=0.3)
    for step in range(4):
        soft = -(table[Y] * np.log(p)).sum(axis=1)
        expected = np.mean(W * (0.3 * crossentropies(z) + 0.7 * soft))
        np.testing.assert_allclose(total(objective, model), expected, rtol=1e-4)
        if step % 2:
            for c in range(CLASSES):
                if (own := right & (c == Y)).any():
                    table[c] = p[own].mean(axis=0)
    np.testing.assert_allclose(objective.soft.numpy(), table, rtol=1e-4)
    assert table.max() > 0.4


EACH = {
    "mixup": objectives.MixUp(1.0, seed=1),
    "manifold": objectives.ManifoldMixup(["head"], seed=1),
    "fgsm": objectives.FGSM(Linear(0.1, 10, 0.2)),
    "vat": objectives.VAT(1.0, seed=1),
    "trades": objectives.TRADES(0.1, iterations=2, seed=1),
    "r_drop": objectives.RDrop(),
    "flooding": objectives.Flooding(0.1),
    "gradient": objectives.GradientPenalty(0.1),
    "jacobian": objectives.JacobianPenalty(0.1, seed=1),
    "smoothing": objectives.LabelSmoothing(),
    "online": objectives.OnlineLabelSmoothing(CLASSES, 2),
}


def copied(objective, **changes):
    return type(objective).from_config(objective.get_config() | changes)


@pytest.fixture
def in_float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", sorted(EACH.keys() - {"vat"}))
def test_gradients_are_those_of_finite_differences(name):
    """In float64, with the noise held still; VAT, which holds more still, has its own."""
    objective = copied(EACH[name], dtype="float64")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)  # anew, for its dtype
    model = model_of(loss, dropout=0.3, objective=objective, dtype="float64")
    batch = Batch(model, computing(model, (tf.constant(X, "float64"), tf.constant(Y))))
    weights = [tf.convert_to_tensor(v.value) for v in batch.variables]
    _, found = batch.differentiate(weights)
    away = [tf.constant(RNG.standard_normal(w.shape)) for w in weights]
    h = 1e-6
    ahead, behind = (batch.look([w + sign * h * a for w, a in zip(weights, away, strict=True)]) for sign in (1, -1))
    difference = float(ahead - behind) / (2 * h)
    slope = sum(float(tf.reduce_sum(g * a)) for g, a in zip(found, away, strict=True))
    np.testing.assert_allclose(slope, difference, rtol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_fit_is_the_same_run_eagerly_and_saved(name, tmp_path):
    """Programs, single steps and a loaded model go on alike, random state included."""
    ends = []
    for eager in (False, True):
        model = model_of(dropout=0.3, objective=copied(EACH[name]), run_eagerly=eager, metrics=["accuracy"])
        history = model.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    assert np.isfinite(history.history["loss"]).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.objective.get_config() == model.objective.get_config()
    for a, b in zip(model.objective.variables, loaded.objective.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for a, b in zip(*(drawing(each) for each in (model, loaded)), strict=True):
        a.assign(b)  # of layers, whose random state Keras keeps in no file
    for each in (model, loaded):
        each.fit(X, Y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def drawing(model):
    """The random states of a model's layers."""
    return [v for layer in model.layers for v in layer.non_trainable_variables if v.path.endswith("generator_state")]


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_fit_under_xla_and_in_mixed_precision(name):
    """The dropout that XLA draws is another, so that without it the two are compared."""
    ends = []
    for jit in (False, True):
        objective = copied(EACH[name])
        model = model_of(objective=objective, optimizer=kopt.SGD(0.1))
        model.compile(kopt.SGD(0.1), CROSSENTROPY, objective=objective, jit_compile=jit)
        model.fit(X, Y, batch_size=3, epochs=2, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    draws = isinstance(objective, Noise)
    for a, b in zip(*ends, strict=True):
        assert np.isfinite(b).all()
        if not draws:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    scaled = keras.optimizers.LossScaleOptimizer(kopt.SGD(0.01), initial_scale=8.0)
    model = model_of(dropout=0.3, objective=copied(EACH[name]), optimizer=scaled, dtype="mixed_float16")
    history = model.fit(X, Y, batch_size=3, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert model.optimizer.inner_optimizer.iterations == 6


@pytest.mark.skipif(not backends.two_devices(), reason="there are no two logical devices")
@pytest.mark.parametrize("name", ["fgsm", "flooding", "gradient", "smoothing", "online"])
def test_two_replicas_are_one_device(name):
    ends = []
    strategy = backends.mirrored(backends.two_devices())
    for scope in (tf.distribute.get_strategy(), strategy):
        with scope.scope():
            model = model_of(objective=copied(EACH[name]), optimizer=kopt.SGD(0.1))
        model.fit(X, Y, sample_weight=W, batch_size=ROWS, epochs=3, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_statistics_move_once_and_layers_losses_count_once():
    """However often an objective looks: those of the batch itself are kept, of what it adds none."""
    ends = []
    for objective in (None, objectives.TRADES(0.0, strength=0.0, iterations=2)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((FEATURES,))
        h = layers.ActivityRegularization(l2=0.1)(layers.BatchNormalization()(inputs))
        model = kopt.Model(inputs, layers.Dense(CLASSES)(h))
        model.compile(kopt.SGD(0.1), CROSSENTROPY, objective=objective, jit_compile=False)
        model.fit(X, Y, batch_size=ROWS, epochs=2, verbose=0)
        ends.append([v.numpy() for v in model.variables if "seed" not in v.path])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_fit_that_is_resumed_draws_on(tmp_path):
    def trained(epochs, path):
        model = model_of(dropout=0.3, objective=objectives.MixUp(1.0, seed=1), optimizer=kopt.SGD(0.1))
        model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, callbacks=[kopt.Checkpoint(path)])
        return model.get_weights()

    straight = trained(4, tmp_path / "one.ckpt")
    trained(2, tmp_path / "two.ckpt")
    for a, b in zip(straight, trained(4, tmp_path / "two.ckpt"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: objectives.MixUp(0.0), ValueError, "MixUp: alpha must be a number in (0, inf), got 0.0."),
        (lambda: objectives.FGSM(-1.0), ValueError, "FGSM: epsilon must be a number in [0, inf), got -1.0."),
        (lambda: objectives.FGSM(0.1, 2), ValueError, "FGSM: share must be a number in [0, 1], got 2."),
        (lambda: objectives.ManifoldMixup([]), TypeError, "ManifoldMixup: layers must be names of layers, got []."),
        (lambda: objectives.LabelSmoothing(1), ValueError, "LabelSmoothing: smoothing must be a number in [0, 1), got"),
        (
            lambda: model_of(objective="mixup"),
            TypeError,
            "Model.compile: objective must be one of kopt.objectives, got 'mixup'.",
        ),
        (
            lambda: total(objectives.ManifoldMixup("heda"), model_of()),
            ValueError,
            "ManifoldMixup: functional",
        ),
        (
            lambda: total(objectives.MixUp(), model_of(), x=X.astype("int32")),
            ValueError,
            "MixUp: rows must be floats to be mixed, got",
        ),
        (
            lambda: total(objectives.VAT(1.0), model_of(), x=X.astype("int32")),
            ValueError,
            "VAT: rows must be floats to be moved, got",
        ),
        (lambda: total(objectives.CutMix(), model_of()), ValueError, "CutMix: rows must be images, one tensor of"),
        (
            lambda: total(objectives.LabelSmoothing(), model_of("mse"), y=X[:, :3]),
            ValueError,
            "LabelSmoothing: the loss must be a crossentropy, got the mean squared error.",
        ),
        (
            lambda: model_of("mae", objective=objectives.VAT(1.0)).fit(X, X[:, :3], verbose=0),
            ValueError,
            "VAT: to compare predictions, the loss must be a crossentropy of logits, or of the outputs of a softmax or "
            "sigmoid, or the mean squared error, got 'mean_absolute_error'.",
        ),
        (
            lambda: total(objectives.OnlineLabelSmoothing(5, 9), model_of()),
            ValueError,
            "OnlineLabelSmoothing: the model must have one softmax of 5 classes, got outputs of shapes [(6, 3)].",
        ),
        (
            lambda: kopt.KerasRegressor(lambda: model_of(objective=objectives.MixUp()), epochs=1).fit(X, X[:, :3]),
            ValueError,
            "KerasRegressor: model must have no objective of its own, got MixUp. Give it to the estimator as",
        ),
    ],
)
def test_wrong_uses_are_refused(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value).startswith(message)


def test_a_built_model_may_get_an_objective_and_lose_it():
    class Mine(kopt.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Mine()
    model(X)
    for objective, states in ((objectives.MixUp(), 1), (None, 0)):
        model.compile("sgd", "mse", objective=objective)
        model.fit(X, X[:, :1], verbose=0)
        assert len(model.non_trainable_variables) == states
    assert [layer.name for layer in model.layers] == [model.dense.name]


@pytest.mark.parametrize("optimizer", [kopt.SophiaG(0.1), kopt.LevenbergMarquardt()])
def test_methods_that_want_a_function_of_outputs_are_refused(optimizer):
    model = model_of("mse", objective=objectives.MixUp(), optimizer=optimizer)
    with pytest.raises(ValueError, match="MixUp looks at more than the outputs of a batch"):
        model.fit(X, X[:, :3], verbose=0)
