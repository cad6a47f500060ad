"""`kopt.Model` is `keras.Model`, but for what its optimizer may look at."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.testing import backends

layers = keras.layers


def network(kind):
    """Two inputs, two outputs, a mask, batch normalization, dropout without effect, and a penalty."""
    keras.utils.set_random_seed(0)
    words, numbers = keras.Input((4,), dtype="int32", name="words"), keras.Input((3,), name="numbers")
    x = layers.LSTM(3)(layers.Embedding(5, 3, mask_zero=True)(words))
    x = layers.Concatenate()([x, layers.BatchNormalization()(layers.Dense(4, "relu")(numbers))])
    x = layers.Dense(4, "tanh", kernel_regularizer="l2", activity_regularizer="l2")(x)
    value, chance = layers.Dense(1, name="value")(x), layers.Dense(2, "softmax", name="chance")(x)
    return kind(dict(words=words, numbers=numbers), dict(value=value, chance=chance))


def data(rows=12):
    rng = np.random.default_rng(0)
    x = dict(words=rng.integers(0, 5, (rows, 4)), numbers=rng.standard_normal((rows, 3)).astype("float32"))
    y = dict(value=rng.standard_normal((rows, 1)).astype("float32"), chance=rng.integers(0, 2, rows))
    weights = {name: rng.uniform(0.5, 2, rows).astype("float32") for name in y}
    return dict(x=x, y=y, sample_weight=weights)


def trained(kind, optimizer, **how):
    model = network(kind)
    losses = dict(value="mse", chance="sparse_categorical_crossentropy")
    model.compile(optimizer, losses, metrics=dict(chance="accuracy"), weighted_metrics=dict(value="mae"), **how)
    history = model.fit(**data(), batch_size=5, epochs=2, shuffle=False, verbose=0)
    return model, history.history


@pytest.mark.parametrize(
    ("library", "how"),
    [
        (kopt, dict(run_eagerly=True)),
        (kopt, dict(jit_compile=False)),
        (keras.optimizers, dict(jit_compile=False)),
        pytest.param(keras.optimizers, dict(jit_compile=True), marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_fit_is_that_of_keras(library, how):
    (ours, history), (theirs, expected) = (
        trained(kind, library.Adam(0.01, clipnorm=1.0), **how) for kind in (kopt.Model, keras.Model)
    )
    assert isinstance(ours, kopt.Model)
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_class_weights_count():
    def fitted(kind):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        model = kind(inputs, layers.Dense(2, "softmax")(inputs))
        model.compile(kopt.SGD(0.1), "sparse_categorical_crossentropy")
        x, y = data()["x"]["numbers"], data()["y"]["chance"]
        model.fit(x, y, class_weight={0: 5.0, 1: 0.5}, verbose=0, shuffle=False)
        return model.get_weights()

    for a, b in zip(fitted(kopt.Model), fitted(keras.Model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


class Mine(kopt.Model):
    """A subclassed model, and one that is functional in its own constructor."""

    def __init__(self, **how):
        super().__init__(**how)
        self.head = layers.Dense(1)

    def call(self, x):
        return self.head(x)


class Functional(kopt.Model):
    def __init__(self):
        inputs = keras.Input((3,))
        super().__init__(inputs=inputs, outputs=layers.Dense(1)(inputs))


def of_tensors():
    inputs = keras.Input((3,))
    return kopt.Model(inputs, layers.Dense(1)(inputs))


@pytest.mark.parametrize("kind", [Functional, Mine, of_tensors])
def test_each_way_to_make_one_leaves_the_others_alone(kind):
    for make in (Functional, kind, Mine, kind):
        model = make()
        assert isinstance(model, kopt.Model)
    if kind is not Mine and kind is not Functional:
        return
    model = kind()
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    model.compile(kopt.SAM(kopt.SGD(0.1)), "mse")
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_sequential_model_lends_its_layers():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)])
    model = kopt.Model(inner.inputs, inner.outputs)
    model.compile(kopt.SAM(kopt.SGD(0.1)), "mse")
    before = inner.get_weights()
    model.fit(np.ones((4, 3)), np.zeros((4, 1)), verbose=0)
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(before, inner.get_weights(), strict=True))


def test_a_saved_model_comes_back(tmp_path):
    model, _ = trained(kopt.Model, kopt.LookSAM(kopt.Adam(0.01)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, kopt.Model)
    ours, theirs = (m.fit(**data(), batch_size=5, shuffle=False, verbose=0).history["loss"] for m in (model, loaded))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [kopt.SAM(kopt.SGD(0.1)), kopt.EMA(kopt.LookSAM(kopt.SGD(0.1)))], ids=repr)
def test_a_plain_model_is_refused(optimizer):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(optimizer, "mse")
    with pytest.raises(
        ValueError, match=r"SAM asks more of each batch .* Try kopt.Model\(model.inputs, model.outputs\)"
    ):
        model.fit(np.ones((4, 3)), np.zeros((4, 1)), verbose=0)


@pytest.mark.skipif(backends.two_devices() is None, reason="two logical devices are needed")
@pytest.mark.parametrize("synchronized", [True, False])
def test_replicas_climb_together_or_each_by_itself(synchronized):
    x, y = data(8)["x"]["numbers"], data(8)["y"]["value"]

    def fitted(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            inputs = keras.Input((3,))
            model = kopt.Model(inputs, layers.Dense(1)(layers.Dense(4, "tanh")(inputs)))
            model.compile(kopt.SAM(kopt.SGD(0.1), rho=0.5, synchronized=synchronized), "mse", jit_compile=False)
        history = model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0).history["loss"]
        return model.get_weights(), history

    (one, loss), (two, losses) = fitted(tf.distribute.get_strategy()), fitted(backends.mirrored(backends.two_devices()))
    apart = max(np.abs(a - b).max() for a, b in zip(one, two, strict=True))
    if synchronized:
        np.testing.assert_allclose(loss, losses, rtol=1e-5)
        assert apart < 1e-6
    else:
        assert apart > 1e-4


def test_sharpness_in_an_estimator():
    x, y = data()["x"]["numbers"], data()["y"]["chance"]
    fits = {
        name: kopt.KerasClassifier(optimizer=optimizer, epochs=5, random_state=0).fit(x, y).predict_proba(x)
        for name, optimizer in {
            "plain": kopt.Adam(0.05),
            "nowhere": kopt.SAM(kopt.Adam(0.05), rho=0.0),
            "climbing": kopt.SAM(kopt.Adam(0.05), rho=0.5),
        }.items()
    }
    np.testing.assert_allclose(fits["plain"], fits["nowhere"], atol=1e-6)
    assert np.abs(fits["plain"] - fits["climbing"]).max() > 1e-3
