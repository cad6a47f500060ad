import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from kopt import KerasClassifier, KerasRegressor
from kopt.distribute import strategy as distributed


def data(n_rows, n_features=5):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_features))
    return X, np.sin(X[:, :2]), rng.uniform(0.2, 3, n_rows)


def test_resolve_knows_its_choices(monkeypatch):
    monkeypatch.setattr(distributed, "_kept", {})  # as in a process that has used none yet
    mirrored = distributed.resolve("mirrored")
    assert distributed.replicas(mirrored) == 4
    assert distributed.resolve("auto") is mirrored
    assert distributed.resolve(None) is None
    assert distributed.resolve(tf.distribute.get_strategy()) is None
    one = tf.distribute.OneDeviceStrategy("CPU:1")
    assert distributed.resolve(one) is one
    assert distributed.replicas(one) == 1


def test_like_strategies_are_one():
    like = distributed._of_devices(tf.distribute.MirroredStrategy, [f"CPU:{i}" for i in range(4)])
    assert distributed.resolve(like) is distributed.resolve("mirrored")


def test_auto_says_what_it_picks(monkeypatch, caplog):
    with caplog.at_level("INFO", "kopt"):
        assert distributed.replicas(distributed.resolve("auto", "Net")) == 4
        listed = tf.config.list_logical_devices
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: listed(kind)[:1])
        assert distributed.resolve("auto", "Net") is None
    assert caplog.messages == [f"Net: strategy='auto' trains on CPU:0{more}." for more in (", CPU:1, CPU:2, CPU:3", "")]


@pytest.mark.parametrize("strategy", ["mirored", 3, tf.distribute.MultiWorkerMirroredStrategy])
def test_resolve_refuses(strategy):
    with pytest.raises(ValueError, match=re.escape(f"Net: strategy must be {distributed.CHOICES}, got {strategy!r}.")):
        distributed.resolve(strategy, "Net")


def test_tpus_are_refused_with_what_there_is_today():
    with pytest.raises(ValueError, match=r"got 'tpu'\. kopt does not train on TPUs yet.* tensorflow-tpu 2\.20\.0"):
        KerasRegressor(strategy="tpu").fit(*data(8)[:2])


def test_fit_inside_a_scope_is_refused():
    X, y, _ = data(8)
    with distributed.resolve("mirrored").scope(), pytest.raises(ValueError, match="outside of any strategy's scope"):
        KerasRegressor(epochs=1).fit(X, y)


def penalized(n_features_in_, n_outputs_):
    dense = keras.layers.Dense(4, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.1))
    return keras.Sequential([keras.Input((n_features_in_,), dtype="float64"), dense, keras.layers.Dense(n_outputs_)])


@pytest.mark.parametrize(
    ("n_rows", "batch_size"), [(64, 16), (61, 16), (49, 16), (5, 1)], ids=["even", "uneven", "last_of_one", "ones"]
)
@pytest.mark.parametrize("optimizer", ["kopt", "keras"])
def test_two_replicas_equal_one(n_rows, batch_size, optimizer):
    import kopt

    X, y, w = data(n_rows)
    kind = {"kopt": kopt.AdamW, "keras": keras.optimizers.Adam}[optimizer]
    one, two = (
        KerasRegressor(
            penalized, optimizer=kind, optimizer__learning_rate=0.03, epochs=3, batch_size=batch_size, random_state=0,
            strategy=strategy,
        ).fit(X, y, w)
        for strategy in (None, "mirrored")
    )  # fmt: skip
    np.testing.assert_allclose(two.predict(X), one.predict(X), atol=1e-6)
    np.testing.assert_allclose(two.loss_curve_, one.loss_curve_, rtol=1e-6)
    assert np.ptp(one.loss_curve_) > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.01},
        {"clipvalue": 1e-3},
        {"global_clipnorm": 0.01},
        {"gradient_accumulation_steps": 3},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_optimizers_of_keras_see_the_whole_gradient(options):
    X, y, w = data(61)
    one, two = (
        KerasRegressor(optimizer=keras.optimizers.SGD(1.0, **options), epochs=2, batch_size=16, random_state=0,
                       strategy=strategy).fit(X, y, w)
        for strategy in (None, "mirrored")
    )  # fmt: skip
    np.testing.assert_allclose(two.predict(X), one.predict(X), atol=1e-6)


def test_batch_normalization_survives_a_replica_without_rows():
    def build(n_features_in_, n_outputs_):
        norm = keras.layers.BatchNormalization()
        return keras.Sequential([keras.Input((n_features_in_,)), norm, keras.layers.Dense(n_outputs_)])

    X, y, _ = data(17)
    net = KerasRegressor(build, epochs=2, batch_size=16, random_state=0, strategy="mirrored").fit(X, y)
    assert np.isfinite(net.predict(X)).all()


def test_one_device_strategy_places_the_weights():
    X, y, _ = data(20)
    place = tf.distribute.OneDeviceStrategy("CPU:1")
    plain, placed = (
        KerasRegressor(epochs=2, random_state=0, strategy=strategy).fit(X, y) for strategy in (None, place)
    )
    np.testing.assert_allclose(plain.predict(X), placed.predict(X), rtol=1e-12)
    assert {v.value.device[-5:] for v in placed._network.program().weights} == {"CPU:1"}


def test_early_stopping_over_two_replicas():
    X, y, _ = data(60)
    net = KerasClassifier(epochs=30, early_stopping=True, n_iter_no_change=2, random_state=0, strategy="mirrored",
                          optimizer__learning_rate=0.3)  # fmt: skip
    net.fit(X, y[:, 0] > 0)
    assert net.n_iter_ < 30
    assert net.score(X, y[:, 0] > 0) > 0.8
