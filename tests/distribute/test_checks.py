"""What TensorFlow meets with silence, riddles or an abort has one clear sentence before training starts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kopt
from kopt.distribute import checks
from kopt.testing import backends

X, Y = np.zeros((6, 3), "float32"), np.zeros((6, 1), "float32")


def mirrored(**how):
    return tf.distribute.MirroredStrategy(
        backends.two_devices(), **(how or dict(cross_device_ops=tf.distribute.ReductionToOneDevice()))
    )


def network(hidden=None):
    inputs = keras.Input((3,))
    return kopt.Model(inputs, layers.Dense(1)(inputs if hidden is None else hidden(inputs)))


def test_a_model_made_outside_of_the_scope_it_is_trained_in():
    model = network()
    model.compile("sgd", "mse")
    with (
        mirrored().scope(),
        pytest.raises(ValueError, match=r"all layers must be made within the scope"),
    ):
        model.fit(X, Y, verbose=0)


def test_a_model_used_in_the_scope_of_another_strategy():
    with mirrored().scope():
        model = network()
        model.compile("sgd", "mse")
    with mirrored().scope(), pytest.raises(ValueError, match=r"a model must be made within the scope that it is"):
        model.fit(X, Y, verbose=0)


def test_a_layer_made_outside():
    hidden = layers.Dense(2, name="outside")
    hidden.build((None, 3))
    with mirrored().scope():
        model = network(hidden)
        model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"within the scope of the model's strategy, and 'outside/kernel' was made outside"
    ):
        model.fit(X, Y, verbose=0)


def test_an_optimizer_made_outside():
    optimizer = kopt.Adam()
    with mirrored().scope():
        model = network()
        model.compile(optimizer, "mse")
    with pytest.raises(
        ValueError, match=r"the optimizer must be made within .* and Adam was made outside\. Call compile"
    ):
        model.fit(X, Y, verbose=0)


def test_compile_outside_of_the_scope_makes_the_optimizer_within():
    strategy = mirrored()
    with strategy.scope():
        model = network()
    model.compile("adam", "mse")
    model.fit(X, Y, batch_size=3, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 2
    assert model.optimizer._distribution_strategy is strategy


def test_strategies_that_kopt_does_not_run_on():
    with tf.distribute.experimental.CentralStorageStrategy().scope():
        model = network()
        model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=rf"the model's strategy must be {checks.RUNS_ON}, got CentralStorageStrategy\.$"
    ):
        model.fit(X, Y, verbose=0)
    strategy = tf.distribute.experimental.CentralStorageStrategy()
    with pytest.raises(ValueError, match=r"^KerasRegressor: strategy must be None, 'auto', .* got <tensorflow"):
        kopt.KerasRegressor(strategy=strategy).fit(X, Y[:, 0])


def test_keras_distribution_which_does_nothing_on_tensorflow(monkeypatch):
    model = network()
    model.compile("sgd", "mse")
    monkeypatch.setattr(keras.distribution, "distribution", lambda: object.__new__(keras.distribution.DataParallel))
    for fit in (model.fit, kopt.KerasRegressor().fit):
        with pytest.raises(ValueError, match=r"keras\.distribution must be unset, for .* nothing, got DataParallel\."):
            fit(X, Y[:, 0])


def test_a_second_strategy_of_collectives_would_abort_the_process(monkeypatch):
    monkeypatch.setattr(checks, "_collective", [])
    first, second = (tf.distribute.MirroredStrategy(backends.two_devices()) for _ in range(2))
    checks.check_collectives(first, "kopt.Model")
    checks.check_collectives(first, "kopt.Model")
    checks.check_collectives(mirrored(), "kopt.Model")
    with pytest.raises(
        ValueError, match=r"^kopt\.Model: a process can have one strategy that sums by TensorFlow's default"
    ):
        checks.check_collectives(second, "kopt.Model")


def test_xla_where_replicas_meet_within_the_loss():
    with mirrored().scope():
        model = network(layers.BatchNormalization(synchronized=True))
        model.compile("sgd", "mse", jit_compile=True)
    with pytest.raises(ValueError, match=r"jit_compile must be 'auto' or False where replicas have to meet within"):
        model.fit(X, Y, verbose=0)


def test_activity_regularizers_where_keras_sums_over_rows(monkeypatch):
    monkeypatch.setattr(checks, "sums_activity", lambda: True)
    with mirrored().scope():
        model = network(layers.Dense(2, activity_regularizer="l2", name="hidden"))
        model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"layers must have no activity_regularizer .* got one in 'hidden'\."):
        model.fit(X, Y, verbose=0)


def test_a_batch_smaller_than_the_replicas_is_put_right():
    def fitted(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = network()
            model.compile(kopt.SGD(0.1), "mse")
        model.fit(X[:1] + 1, Y[:1] + 1, epochs=2, batch_size=1, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_allclose(fitted(mirrored()), fitted(tf.distribute.get_strategy()), atol=1e-7)
