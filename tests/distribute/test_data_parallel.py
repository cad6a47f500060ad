"""kopt.Model over two replicas: weights, logs and outputs are those of one device, whatever the batch and the step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, losses, optimizers

import kopt
from kopt.distribute import shares
from kopt.distribute.activity import sums_activity
from kopt.testing import backends

ROWS = 29  # in batches of 8: the last has five, of which the replicas get two and three


def data(rows=ROWS):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 4)).astype("float32")
    return x, (x @ rng.standard_normal((4, 2)) + rng.standard_normal((rows, 2))).astype("float32")


def weights(rows=ROWS):
    return np.random.default_rng(1).uniform(0.2, 3, rows).astype("float32")


def two_replicas():
    return backends.mirrored(backends.two_devices())


def dense(*between, regularizer=None):
    """A network of two dense layers, of which the first is penalized, with other layers between them."""
    inputs = keras.Input((4,))
    how = dict(kernel_regularizer=regularizer, activity_regularizer=None if sums_activity() else regularizer)
    x = layers.Dense(6, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(1), **how)(inputs)
    for layer in between:
        x = layer(x)
    outputs = layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(2))(x)
    return kopt.Model(inputs, outputs)


def trained(strategy, optimizer, network=dense, loss="mse", x=None, y=None, fit=None, **compiled):
    """A model that was fitted, and what `fit`, `evaluate` and `predict` return."""
    x, y = data() if x is None else (x, y)
    with strategy.scope():
        model = network()
        model.compile(optimizer(), loss, **{"metrics": ["mae"], **compiled})
    how = dict(batch_size=8) if isinstance(y, np.ndarray | list) else {}
    history = model.fit(x, y, epochs=2, shuffle=False, verbose=0, **how, **(fit or {})).history
    told = [*history.values(), model.evaluate(x, y, verbose=0, **how)]
    return model, told, model.predict(x, verbose=0, **how)


def assert_equal(*how, **options):
    """Two replicas give what one device gives, and replicas agree with each other to the bit."""
    one, told, outputs = trained(tf.distribute.get_strategy(), *how, **options)
    two, told_by_two, outputs_of_two = trained(strategy := two_replicas(), *how, **options)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
    for a, b in zip(told, told_by_two, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6, rtol=1e-6)
    for a, b in zip(*(x if isinstance(x, list) else [x] for x in (outputs, outputs_of_two)), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-6)
    for variable in (*two.weights, *two.optimizer.variables):
        first, second = (x.numpy() for x in strategy.experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second)
    return two


def test_uneven_batches_of_an_optimizer_of_kopt():
    model = assert_equal(lambda: kopt.AdamW(0.03, global_clipnorm=0.5, weight_decay=0.1))
    assert int(model.optimizer.iterations.numpy()) == 8


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: optimizers.Adam(0.03, clipnorm=0.1),
        lambda: optimizers.SGD(0.1, clipvalue=0.02, gradient_accumulation_steps=2),
        lambda: optimizers.AdamW(0.03, global_clipnorm=0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
        lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.03), initial_scale=4.0, dynamic_growth_steps=2),
        pytest.param(lambda: optimizers.Muon(0.03), marks=pytest.mark.slow),
    ],
    ids=["clipnorm", "accumulated", "averaged", "scaled", "Muon"],
)
def test_optimizers_of_keras_step_as_on_one_device(optimizer):
    assert_equal(optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: kopt.SAM(kopt.SGD(0.1)),
        lambda: optimizers.LossScaleOptimizer(kopt.SAM(kopt.SGD(0.1)), initial_scale=4.0, dynamic_growth_steps=2),
        lambda: kopt.LineSearch(kopt.SGD(0.1)),
        lambda: kopt.Switch([(kopt.Adam(0.03), 3), (kopt.LBFGS(stochastic=True), None)]),
        lambda: kopt.KFAC(0.1, fisher="empirical"),
        pytest.param(lambda: kopt.SophiaH(0.01), marks=pytest.mark.slow),
        pytest.param(lambda: kopt.MoMo(0.1), marks=pytest.mark.slow),
    ],
    ids=["SAM", "scaled_SAM", "LineSearch", "Adam_then_LBFGS", "KFAC", "SophiaH", "MoMo"],
)
def test_optimizers_that_look_again_see_the_whole_batch(optimizer):
    assert_equal(optimizer)


def test_least_squares_have_the_residuals_of_all_rows():
    def fitted(strategy):
        with strategy.scope():
            model = dense()
            model.compile(kopt.LevenbergMarquardt(), "mse")
        history = model.fit(*data(), epochs=3, verbose=0).history
        return [*model.get_weights(), history["loss"]]

    for a, b in zip(fitted(tf.distribute.get_strategy()), fitted(two_replicas()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("optimizer", [lambda: optimizers.SGD(0.1, 0.9, clipnorm=0.1), lambda: kopt.SAM(kopt.SGD(0.1))])
def test_xla_compiles_what_each_replica_computes(optimizer, monkeypatch):
    asked = []
    plain = tf.function
    monkeypatch.setattr(tf, "function", lambda *args, **how: asked.append(how) or plain(*args, **how))
    x, y = data(25)
    assert_equal(optimizer, lambda: dense(layers.LayerNormalization()), x=x, y=y, jit_compile=True)
    assert sum(how.get("jit_compile") is True and how.get("autograph") is False for how in asked) >= 2


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_sample_weights_under_each_reduction(reduction):
    loss = losses.MeanSquaredError(reduction=reduction)
    x, y = data(25)  # the last batch is one row, and one replica has none
    assert_equal(lambda: kopt.SGD(0.01), loss=loss, x=x, y=y, fit=dict(sample_weight=weights(25)))


def test_class_weights():
    x, y = data()
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    how = dict(x=x, y=(y[:, 0] > 0).astype("int32"), fit=dict(class_weight={0: 5.0, 1: 0.5}), metrics=["accuracy"])
    assert_equal(lambda: kopt.SGD(0.1), loss=loss, **how)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
def test_masks_that_leave_replicas_unequal_numbers_of_entries(reduction):
    def network():
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Embedding(7, 3, mask_zero=True, embeddings_initializer=keras.initializers.RandomUniform(seed=1))(
            inputs
        )
        return kopt.Model(inputs, layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(2))(x))

    rng = np.random.default_rng(0)
    x = rng.integers(1, 7, (ROWS, 5)) * (np.arange(5) < rng.integers(1, 6, (ROWS, 1)))
    loss = losses.MeanSquaredError(reduction=reduction)
    assert_equal(lambda: kopt.SGD(0.3), network, loss, x, rng.standard_normal((ROWS, 5, 2)).astype("float32"))


def test_penalties_and_losses_of_layers_count_once():
    class MeanOfSquares(layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x * x))
            return x

    assert_equal(lambda: kopt.SGD(0.1), lambda: dense(MeanOfSquares(), regularizer=keras.regularizers.L2(0.1)))


def test_several_outputs_and_their_losses():
    def network():
        inputs = keras.Input((4,))
        make = keras.initializers.GlorotUniform
        heads = [layers.Dense(1, kernel_initializer=make(i), name=f"head_{i}")(inputs) for i in range(2)]
        return kopt.Model(inputs, heads)

    x, y = data()
    loss, reductions = losses.MeanSquaredError, ("mean_with_sample_weight", "sum_over_batch_size")
    how = dict(loss=[loss(reduction=r) for r in reductions], x=x, y=[y[:, :1], y[:, 1:]], metrics=["mae", "mse"])
    assert_equal(lambda: kopt.SGD(0.1), network, fit=dict(sample_weight=weights()), **how)


@pytest.mark.parametrize("kind", [layers.BatchNormalization, kopt.layers.SyncBatchNormalization])
def test_synchronized_batch_normalization_has_statistics_of_the_batch(kind):
    how = {"synchronized": True} if kind is layers.BatchNormalization else {}
    x, y = data(25)
    assert_equal(lambda: kopt.SGD(0.1), lambda: dense(kind(**how)), x=x, y=y)


def test_batch_normalization_of_each_replica_keeps_the_mean_by_rows():
    x, y = data(25)
    strategy = two_replicas()
    model, _, outputs = trained(
        strategy, lambda: kopt.SGD(0.0), lambda: dense(layers.BatchNormalization(momentum=0.0)), x=x, y=y
    )
    assert np.isfinite(outputs).all()
    hidden = keras.Model(model.inputs, model.layers[1].output).predict(x[-1:], verbose=0)
    np.testing.assert_allclose(model.layers[2].moving_mean.numpy(), hidden[0], rtol=1e-5)  # of the last batch's one row
    np.testing.assert_allclose(model.layers[2].moving_variance.numpy(), 0, atol=1e-12)


def test_replicas_draw_noise_of_their_own_that_a_seed_repeats():
    seen = []

    class Noted(layers.Layer):
        def call(self, x, training=False):
            if training:
                tf.py_function(lambda *found: seen.append([a.numpy() for a in found]), [x], [])
            return x

    def run():
        keras.utils.set_random_seed(3)
        with two_replicas().scope():
            ones, inputs = layers.Dense(64, kernel_initializer="zeros", bias_initializer="ones"), keras.Input((4,))
            x = Noted()(layers.Dropout(0.5, seed=7)(ones(inputs)))
            model = kopt.Model(inputs, layers.Dense(2, kernel_initializer="zeros")(x))
            model.compile(kopt.SGD(0.0), "mse")
        model.fit(*data(8), batch_size=8, epochs=2, verbose=0, shuffle=False)
        found = [part[0].tobytes() for part in seen]
        seen.clear()
        return found

    first = run()
    assert len(set(first)) == 4  # two replicas, two steps
    assert sorted(run()) == sorted(first)


@pytest.mark.parametrize("row", [0, 7], ids=["first_replica", "second_replica"])
def test_an_infinity_on_any_replica_leaves_the_step_out_and_lowers_the_scale(row):
    x, y = data(8)
    x[row] = np.inf
    with two_replicas().scope():
        model = dense()
        model.compile(optimizers.LossScaleOptimizer(kopt.SGD(0.1), initial_scale=8.0), "mse")
    start = model.get_weights()
    model.fit(x, y, batch_size=8, verbose=0)
    for a, b in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(model.optimizer.dynamic_scale.numpy()) == 4.0


def test_a_growing_loss_scale_changes_nothing_on_one_device():
    plain, scaled = (
        trained(tf.distribute.get_strategy(), optimizer)[0].get_weights()
        for optimizer in (
            lambda: kopt.SGD(0.1),
            lambda: optimizers.LossScaleOptimizer(kopt.SGD(0.1), initial_scale=4.0, dynamic_growth_steps=2),
        )
    )
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Batches(keras.utils.PyDataset):
    """Rows in batches of five, of which none divides by the replicas."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return tuple(array[index * 5 : (index + 1) * 5] for array in data(23))


def generator():
    while True:
        yield from (Batches()[index] for index in range(5))


@pytest.mark.parametrize("kind", ["dataset", "PyDataset", "generator"])
def test_data_that_stream(kind):
    def source():
        if kind == "dataset":
            return tf.data.Dataset.from_tensor_slices(data(23)).batch(5)
        return Batches() if kind == "PyDataset" else generator()

    def fitted(strategy):
        with strategy.scope():
            model = dense()
            model.compile(kopt.Adam(0.03), "mse")
        history = model.fit(source(), epochs=2, steps_per_epoch=5, verbose=0, shuffle=False).history
        return [*model.get_weights(), history["loss"]]

    one, two = fitted(tf.distribute.get_strategy()), fitted(two_replicas())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_shuffled_rows_are_those_of_one_device():
    def fitted(strategy):
        with strategy.scope():
            model = dense()
            model.compile(kopt.Adam(0.03), "mse")
        keras.utils.set_random_seed(5)
        model.fit(*data(), batch_size=8, epochs=2, verbose=0)
        return model.get_weights()

    for a, b in zip(fitted(tf.distribute.get_strategy()), fitted(two_replicas()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_keras_own_loop_is_exact_too():
    assert_equal(lambda: optimizers.SGD(0.1, global_clipnorm=0.1), run_eagerly=True)


class Mine(kopt.Model):
    """A model with a step of its own."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(2))

    def call(self, x):
        return self.head(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"mine": tf.reduce_sum(self.head.bias)}


def test_a_step_of_ones_own_gets_its_share():
    assert_equal(lambda: kopt.SGD(0.1, global_clipnorm=0.1), Mine, metrics=None)


def test_default_collectives_take_one_step_at_a_time():
    x, y = data()
    strategy = tf.distribute.MirroredStrategy(backends.two_devices())
    two = trained(strategy, lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2), x=x, y=y)[0]
    one = trained(tf.distribute.get_strategy(), lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2), x=x, y=y)[0]
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", [tf.distribute.OneDeviceStrategy, lambda d: tf.distribute.MirroredStrategy([d])])
def test_a_strategy_of_one_device_computes_what_none_does(kind):
    device = backends.two_devices()[1]
    for jit in (True, False):
        one, two = (
            trained(strategy, lambda: optimizers.AdamW(0.03), jit_compile=jit)[0]
            for strategy in (tf.distribute.get_strategy(), kind(device))
        )
        for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        local = two.distribute_strategy.experimental_local_results(two.weights[0].value)
        assert [value.device[-5:] for value in local] == [device[-5:]]


def test_checkpoints_go_on_to_the_same_weights(tmp_path):
    def fitted(epochs, *callbacks):
        keras.utils.set_random_seed(0)
        with two_replicas().scope():
            model = dense(layers.Dropout(0.3, seed=3))
            model.compile(optimizers.Adam(0.03), "mse")
        model.fit(*data(), batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks))
        return model.get_weights()

    straight = fitted(4)
    fitted(2, kopt.Checkpoint(tmp_path / "fit.npz"))
    for a, b in zip(straight, fitted(4, kopt.Checkpoint(tmp_path / "fit.npz")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_threads_have_losses_of_keras(monkeypatch):
    monkeypatch.setattr(shares._here, "share", None, raising=False)
    with shares._shared_losses:
        assert float(losses.MeanSquaredError()(np.zeros((2, 1)), np.full((2, 1), 3.0))) == 9.0


def test_variables_that_layers_change_are_those_of_all_rows():
    class Counted(layers.Layer):
        def build(self, _):
            how = dict(shape=(), initializer="zeros", trainable=False)
            self.rows = self.add_weight(aggregation="sum", name="rows", **how)
            self.mean = self.add_weight(name="mean", **how)
            self.calls = self.add_weight(aggregation="only_first_replica", dtype="int32", name="calls", **how)

        def call(self, x, training=False):
            if training:
                self.rows.assign_add(keras.ops.cast(keras.ops.shape(x)[0], "float32"))
                self.mean.assign(keras.ops.mean(x))
                self.calls.assign_add(1)
            return x

    assert_equal(lambda: kopt.SGD(0.1), lambda: dense(Counted()))
