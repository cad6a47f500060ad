"""A pipeline trains as one device does."""

import functools
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt

layers = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(45, 6)).astype("float32"), RNG.normal(size=(45, 3)).astype("float32")
WEIGHTS = RNG.uniform(0, 2, size=45).astype("float32")
CODES = RNG.integers(1, 9, size=(45, 5)) * (np.arange(5) < RNG.integers(1, 6, size=(45, 1)))
TWO, THREE, FOUR = (["CPU:0", "CPU:1"] * 2)[:2], ["CPU:0", "CPU:1", "CPU:0"], ["CPU:0", "CPU:1"] * 2


def skipping():
    """A skip over two cuts, operations that are no layers, penalties of a weight and of an output."""
    inputs = keras.Input((6,))
    a = layers.Dense(8, "tanh", name="a")(inputs)
    b = layers.Dense(8, "tanh", name="b", activity_regularizer=keras.regularizers.L2(0.1))(a)
    c = layers.Dense(8, "tanh", name="c", kernel_regularizer=keras.regularizers.L2(0.05))(b)
    d = keras.ops.tanh(layers.Add(name="d")([c, a])) * 0.5 + a
    return inputs, layers.Dense(3, name="e")(d)


def chain(dtype=None):
    inputs = keras.Input((6,))
    a = layers.Dense(5, "tanh", name="a", dtype=dtype)(inputs)
    return inputs, layers.Dense(3, name="b", dtype=dtype)(a)


def of_words():
    """An embedding with a mask, which crosses a cut and reaches the loss, as the logits of a softmax do."""
    inputs = keras.Input((5,), dtype="int32")
    words = layers.Embedding(9, 4, mask_zero=True, name="words")(inputs)
    hidden = layers.SimpleRNN(4, return_sequences=True, name="hidden")(words)
    soft = layers.Dense(3, "softmax", name="soft")(hidden)
    return inputs, layers.Activation("linear", name="last")(soft)


def of_two_inputs():
    """Inputs that enter at different stages, an output that leaves early."""
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    a = layers.Dense(5, "tanh", name="a")(left)
    early = layers.Dense(2, "softmax", name="early")(a)
    b = layers.Dense(5, "tanh", name="b")(layers.Concatenate(name="join")([a, right]))
    return {"left": left, "right": right}, {"early": early, "late": layers.Dense(1, name="late")(b)}


def sharing():
    """A layer that two stages use."""
    inputs, shared = keras.Input((6,)), layers.Dense(6, "tanh", name="shared")
    a = layers.Dense(6, "tanh", name="a")(shared(inputs))
    return inputs, layers.Dense(3, name="out")(shared(a))


def make(network, cls=kopt.Model, optimizer=None, seed=0, **how):
    """A compiled model; `how` goes to a pipeline and to `compile`."""
    keras.utils.set_random_seed(seed)
    own = ("stages", "micro_batches", "schedule", "devices", "pipelines", "recompute")
    settings = {name: how.pop(name) for name in own if name in how}
    model = cls(*network(), **settings)
    model.compile(**{"loss": "mse", "optimizer": optimizer or keras.optimizers.SGD(0.3, momentum=0.9)} | how)
    return model


def both(network, pipeline, x, y, sample_weight=None, optimizer=lambda: None, batch_size=13, epochs=2, **how):
    """The same fit on one device and in a pipeline: the models and their histories."""
    models = [
        make(network, optimizer=optimizer(), **how),
        make(network, kopt.PipelineModel, optimizer(), **pipeline, **how),
    ]
    fit = dict(sample_weight=sample_weight, batch_size=batch_size, epochs=epochs, verbose=0)
    histories = []
    for model in models:
        keras.utils.set_random_seed(1)
        histories.append(model.fit(x, y, **fit).history)
    return *models, *histories


def assert_same(one, many, history, other, tolerance=1e-6):
    for a, b in zip(one.get_weights(), many.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert history.keys() == other.keys()
    for name in history:
        np.testing.assert_allclose(history[name], other[name], rtol=tolerance * 5, atol=tolerance)


PIPELINES = {
    "1f1b": dict(stages=["a", "b"], micro_batches=4, devices=THREE),
    "gpipe, recomputing": dict(stages=["a", "b"], micro_batches=3, devices=THREE, schedule="gpipe", recompute=True),
    "more than rows": dict(stages=["b"], micro_batches=8, devices=TWO, recompute=True),
    "one stage": dict(stages=1, micro_batches=3, devices=["CPU:1"]),
    "two pipelines": dict(stages=["c"], micro_batches=2, devices=FOUR, pipelines=2),
}


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_takes_the_steps_of_one_device(pipeline):
    """45 rows in batches of 13: the last one has 6, fewer than eight micro-batches."""
    found = both(skipping, pipeline, X, Y, WEIGHTS, metrics=["mae"], weighted_metrics=["mse"])
    assert_same(*found)
    one, many = found[:2]
    np.testing.assert_allclose(one.predict(X, verbose=0), many.predict(X, verbose=0), atol=1e-5)
    np.testing.assert_allclose(one.evaluate(X, Y, verbose=0), many.evaluate(X, Y, verbose=0), rtol=1e-5)


@pytest.fixture
def float64():
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


@pytest.mark.usefixtures("float64")
def test_in_float64_to_its_precision():
    pipeline = dict(stages=["a", "b"], micro_batches=5, devices=THREE)
    assert_same(*both(skipping, pipeline, X.astype("float64"), Y.astype("float64"), WEIGHTS), tolerance=1e-10)


OPTIMIZERS = {
    "Keras, accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2, epsilon=1e-3),
    "clipped, averaged": lambda: kopt.AdamW(
        0.01, global_clipnorm=0.05, use_ema=True, ema_overwrite_frequency=3, epsilon=1e-3
    ),
    "accumulating": lambda: kopt.Adam(0.01, gradient_accumulation_steps=2, epsilon=1e-3),
    "guarded, scaled": lambda: keras.optimizers.LossScaleOptimizer(kopt.Lion(0.01, skip_nonfinite=True)),
    "scalars of all weights": lambda: kopt.Prodigy(),
    "matrices": lambda: kopt.Muon(0.01),
    "averages": lambda: kopt.ScheduleFreeSGD(0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_step_once_on_the_sum(optimizer):
    pipeline = dict(stages=["a"], micro_batches=3, devices=TWO)
    found = both(chain, pipeline, X, Y, optimizer=optimizer)
    assert_same(*found, tolerance=2e-6)
    places = {v.value.device[-1] for v in found[1].optimizer.variables if len(v.shape)}
    assert places == {"0", "1"} or not places


@pytest.mark.slow
def test_masks_logits_and_sparse_gradients_cross_cuts():
    y = RNG.integers(3, size=(45, 5))
    how = dict(loss="sparse_categorical_crossentropy", optimizer=lambda: keras.optimizers.SGD(0.5))
    pipeline = dict(stages=["words", "soft"], micro_batches=4, devices=THREE)
    assert_same(*both(of_words, pipeline, CODES, y, **how, metrics=["accuracy"]))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_several_inputs_and_outputs(reduction):
    x = {"left": X[:, :4], "right": X[:, 4:]}
    y = {"early": RNG.integers(2, size=45), "late": Y[:, :1]}
    losses = {
        "early": keras.losses.SparseCategoricalCrossentropy(reduction=reduction),
        "late": keras.losses.MeanSquaredError(reduction=reduction),
    }
    how = dict(loss=losses, loss_weights={"early": 0.3, "late": 2.0}, metrics={"early": ["accuracy"], "late": ["mae"]})
    pipeline = dict(stages=["a", "join"], micro_batches=4, devices=THREE)
    optimizer = functools.partial(keras.optimizers.SGD, 0.01)
    found = both(of_two_inputs, pipeline, x, y, optimizer=optimizer, **how)
    assert {"early_loss", "late_loss", "early_accuracy"} <= found[2].keys()
    assert_same(*found)


def test_a_loss_of_ones_own_is_a_mean_over_rows():
    """It may look at the inputs, and adds what layers add."""

    def own(base):
        class Own(base):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                each = keras.ops.abs(x[:, :1]) * keras.ops.abs(y - y_pred) ** 1.5
                return keras.ops.mean(each) + sum(self.losses)

        return Own

    one = make(skipping, own(kopt.Model))
    many = make(skipping, own(kopt.PipelineModel), stages=["a", "b"], micro_batches=4, devices=THREE)
    for model in (one, many):
        model.fit(X, Y, batch_size=13, shuffle=False, verbose=0)
    assert_same(one, many, {}, {})


def test_means_by_sample_weight():
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    assert_same(*both(chain, dict(stages=["a"], micro_batches=4, devices=TWO), X, Y, WEIGHTS, loss=loss))


def test_a_layer_may_be_in_two_stages():
    pipeline = dict(stages=["a"], micro_batches=3, devices=TWO)
    keras.utils.set_random_seed(0)
    inputs, outputs = sharing()
    names = [node for node in kopt.PipelineModel(inputs, outputs, **pipeline).stages]
    assert "shared" in names[0]
    assert "shared" in names[1]
    assert_same(*both(sharing, pipeline, X, Y))


@pytest.mark.slow
def test_statistics_of_batches_are_those_of_micro_batches():
    def network():
        inputs = keras.Input((6,))
        a = layers.BatchNormalization(name="norm", momentum=0.5)(inputs)
        return inputs, layers.Dense(3, name="b")(a)

    one, many, *_ = both(network, dict(stages=["norm"], micro_batches=1, devices=TWO), X, Y)
    assert_same(one, many, {}, {})
    model = make(network, kopt.PipelineModel, stages=["norm"], micro_batches=3, devices=FOUR, pipelines=2)
    model.fit(X[:20], Y[:20], batch_size=20, verbose=0)
    norm = model.get_layer("norm")
    parts = [X[20 * i // 6 : 20 * (i + 1) // 6] for i in range(6)]
    np.testing.assert_allclose(norm.moving_mean, 0.5 * X[:20].mean(0), atol=1e-6)
    variance = sum(part.var(0) * len(part) for part in parts) / 20
    np.testing.assert_allclose(norm.moving_variance, 0.5 + 0.5 * variance, atol=1e-6)


class Noise(layers.Layer):
    """Adds what it draws to its input, and keeps the last of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(3)

    def call(self, x, training=None):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator) if training else x


def noisy():
    inputs = keras.Input((6,))
    a = Noise(name="noise")(inputs)
    return inputs, layers.Dense(3, name="b")(a)


def dropping():
    """Whose first stage has a weight that only goes back through the noise."""
    inputs = keras.Input((6,))
    a = layers.Dropout(0.5, seed=1, name="noise")(layers.Dense(6, name="a")(inputs))
    return inputs, layers.Dense(3, name="b")(a)


def test_noise_is_that_of_one_device_for_one_micro_batch():
    assert_same(*both(noisy, dict(stages=["noise"], micro_batches=1, devices=TWO), X, Y))


@pytest.mark.slow
def test_recomputation_repeats_the_noise():
    def weights(recompute):
        how = dict(stages=["noise"], micro_batches=3, devices=TWO, schedule="gpipe", recompute=recompute)
        model = make(dropping, kopt.PipelineModel, **how)
        model.fit(X, Y, shuffle=False, verbose=0)
        return model.get_weights()

    for a, b in zip(weights(True), weights(False), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_each_micro_batch_draws_its_own_noise_and_the_same_in_every_run():
    class Told(kopt.PipelineModel):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.told = y_pred
            return super().compute_metrics(x, y, y_pred, sample_weight)

    def network():
        inputs = keras.Input((6,))
        return inputs, layers.Activation("linear", name="end")(
            layers.Dense(6, "linear", name="b", trainable=False, kernel_initializer="identity")(
                Noise(name="noise")(inputs)
            )
        )

    def outputs(recompute):
        how = dict(stages=["noise", "b"], micro_batches=2, devices=FOUR + TWO, pipelines=2, recompute=recompute)
        model = make(network, Told, **how, run_eagerly=True)
        seen = []
        for _ in range(2):
            batch = np.zeros((8, 6), "float32")
            model.train_on_batch(batch, batch)
            seen.append(model.told.numpy())
        return np.stack(seen)

    first = outputs(False)
    np.testing.assert_array_equal(first, outputs(True))
    rows = first.reshape(8, 12)
    assert np.abs(np.corrcoef(rows) - np.eye(8)).max() < 0.999
    assert len(np.unique(first)) == first.size


def test_mixed_precision_with_its_loss_scale():
    network = functools.partial(chain, dtype="mixed_float16")
    pipeline = dict(stages=["a"], micro_batches=4, devices=TWO)
    found = both(
        network, pipeline, X, Y, optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    )
    assert_same(*found, tolerance=3e-3)
    assert np.abs(found[0].get_weights()[0] - make(network).get_weights()[0]).max() > 1e-2
    one, many = (model.optimizer for model in found[:2])
    assert float(one.dynamic_scale) == float(many.dynamic_scale)
    assert int(many.iterations) == 8


def test_a_dataset_and_single_batches():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(13)
    one, many = make(chain), make(chain, kopt.PipelineModel, stages=["a"], micro_batches=4, devices=TWO)
    for model in (one, many):
        model.fit(dataset, shuffle=False, verbose=0)
        gc.collect()  # what a trace made has to live on
        model.train_on_batch(X[:7], Y[:7])
    assert_same(one, many, {}, {})


def test_weights_and_slots_lie_with_their_stage():
    model = make(
        skipping,
        kopt.PipelineModel,
        keras.optimizers.Adam(),
        stages=["a", "b"],
        micro_batches=2,
        devices=["CPU:0", "CPU:1", "CPU:1"],
    )
    model.fit(X, Y, verbose=0)
    assert model.devices == [["/device:CPU:0", "/device:CPU:1", "/device:CPU:1"]]
    assert model(X[:2]).device.endswith("CPU:1")
    for name, place in dict(a="0", b="1", e="1").items():
        assert {v.value.device[-1] for v in model.get_layer(name).weights} == {place}
        slots = [v for v in model.optimizer.variables if f"/{name}_" in v.path]
        assert len(slots) == 4
        assert {v.value.device[-1] for v in slots} == {place}


@pytest.mark.parametrize("optimizer", [keras.optimizers.AdamW, kopt.AdamW])
def test_a_weight_is_updated_where_it_lies(optimizer):
    how = dict(stages=["a"], micro_batches=2, devices=TWO)
    model = make(chain, kopt.PipelineModel, optimizer(0.01, global_clipnorm=1.0), **how)
    model.optimizer.build(model.trainable_variables)
    batch = tf.TensorSpec([None, 6]), tf.TensorSpec([None, 3])
    graph = tf.function(lambda x, y: model.train_step((x, y))).get_concrete_function(*batch).graph
    assigned = [op.inputs for op in graph.get_operations() if op.type.startswith("Assign") and op.inputs[1].shape.rank]
    places = [(handle, value.op.device[-1]) for handle, value in assigned]
    known = {id(inside): outside.device[-1] for outside, inside in graph.captures}
    assert {known[id(handle)] for handle, _ in places} == {"0", "1"}
    assert all(known[id(handle)] == place for handle, place in places)


def test_models_that_share_moved_layers_compute_with_what_they_become():
    keras.utils.set_random_seed(0)
    plain = kopt.Model(*chain())
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    stock = keras.Model(plain.inputs, plain.outputs)
    before = [each.predict(X, verbose=0) for each in (plain, stock)]
    model = kopt.PipelineModel(plain.inputs, plain.outputs, stages=["a"], micro_batches=2, devices=["CPU:1", "CPU:0"])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(X, Y, verbose=0)
    after = [each.predict(X, verbose=0) for each in (plain, stock, model)]
    np.testing.assert_allclose(after[0], after[2], atol=1e-6)
    np.testing.assert_allclose(after[1], after[2], atol=1e-6)
    assert np.abs(after[0] - before[0]).max() > 1e-3


@pytest.mark.slow
def test_it_is_saved_with_its_stages(tmp_path):
    settings = dict(stages=["a"], micro_batches=4, devices=TWO, schedule="gpipe", recompute=True)
    model = make(chain, kopt.PipelineModel, kopt.AdamW(0.01), **settings)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is kopt.PipelineModel
    assert loaded.stages == model.stages
    assert {name: loaded.get_config()[name] for name in settings} == settings
    for each in (model, loaded):
        keras.utils.set_random_seed(1)
        each.fit(X, Y, verbose=0)
    assert_same(model, loaded, {}, {})


@pytest.mark.slow
def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    pipeline = dict(stages=["a"], micro_batches=3, devices=TWO)

    def fit(epochs):
        model = make(chain, kopt.PipelineModel, **pipeline)
        model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[kopt.Checkpoint(tmp_path / "run.ckpt")])
        return model

    fit(1)
    resumed = fit(3)
    (tmp_path / "run.ckpt").unlink()
    for a, b in zip(resumed.get_weights(), fit(3).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {v.value.device[-1] for v in resumed.optimizer.variables if "b_kernel" in v.path} == {"1"}


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            dict(stages="a"),
            "stages must be the number of stages, or a list of the names of layers that end one, got 'a'",
        ),
        (dict(stages=0), r"stages must be an integer in \[1, inf\), got 0"),
        (dict(micro_batches=0), r"micro_batches must be an integer in \[1, inf\), got 0"),
        (dict(pipelines=0), r"pipelines must be an integer in \[1, inf\), got 0"),
        (dict(schedule="2f2b"), "schedule must be one of '1f1b', 'gpipe', got '2f2b'"),
        (dict(recompute=2), "recompute must be one of True, False, got 2"),
        (dict(devices=["CPU:0"]), "devices must be 2, one for each stage of each pipeline, got 1"),
        (dict(devices="CPU:0"), "devices must be a list of names, got 'CPU:0'"),
    ],
)
def test_arguments_are_checked(wrong, message):
    how = dict(stages=["a"], micro_batches=2, devices=TWO) | wrong
    with pytest.raises((TypeError, ValueError), match=f"PipelineModel: {message}"):
        kopt.PipelineModel(*chain(), **how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(optimizer=kopt.SAM(kopt.SGD(0.1))), "optimizer must ask for gradients alone, and SAM asks more"),
        (dict(optimizer=kopt.LBFGS()), ".* and LBFGS asks more"),
        (dict(optimizer=kopt.KFAC()), ".* and KFAC asks more"),
        (dict(optimizer=keras.optimizers.LossScaleOptimizer(kopt.SophiaH())), ".* and SophiaH asks more"),
        (dict(jit_compile=True), "jit_compile must be False or 'auto', got True"),
        (dict(objective=kopt.objectives.MixUp()), "objective must be None, got MixUp"),
    ],
)
def test_what_needs_one_device_is_refused_by_name(how, message):
    with pytest.raises(ValueError, match=f"PipelineModel: {message}"):
        make(chain, kopt.PipelineModel, **dict(stages=["a"], micro_batches=2, devices=TWO), **how)


def test_an_optimizer_of_other_weights_is_refused():
    optimizer = kopt.SGD(0.1)
    plain = make(chain, optimizer=optimizer)
    plain.fit(X, Y, verbose=0)
    how = dict(stages=["a"], micro_batches=2, devices=TWO)
    model = kopt.PipelineModel(plain.inputs, plain.outputs, **how)
    with pytest.raises(ValueError, match="PipelineModel: optimizer must be new, and SGD was built for other weights"):
        model.compile(optimizer, "mse")


def test_residuals_and_strategies_are_refused():
    class Physics(kopt.PipelineModel):
        def compute_residuals(self, x, y, y_pred, sample_weight=None):
            return y_pred

    how = dict(stages=["a"], micro_batches=2, devices=TWO)
    with pytest.raises(ValueError, match="Physics: compute_residuals must not be defined"):
        Physics(*chain(), **how)
    with tf.distribute.OneDeviceStrategy("CPU:0").scope(), pytest.raises(ValueError, match="Set pipelines"):
        kopt.PipelineModel(*chain(), **how)


def test_losses_that_do_not_add_up_are_refused():
    y = {"early": RNG.integers(2, size=45), "late": Y[:, :1]}
    losses = {"early": keras.losses.SparseCategoricalCrossentropy(reduction="sum"), "late": "mse"}
    model = make(of_two_inputs, kopt.PipelineModel, loss=losses, stages=["a"], micro_batches=2, devices=TWO)
    with pytest.raises(ValueError, match="all losses must be reduced alike, to means or sums, got"):
        model.fit({"left": X[:, :4], "right": X[:, 4:]}, y, verbose=0)


def test_sparse_rows_are_refused():
    def network():
        inputs = keras.Input((6,), sparse=True)
        return inputs, layers.Dense(3, name="b")(layers.Dense(6, name="a")(inputs))

    model = make(network, kopt.PipelineModel, stages=["a"], micro_batches=2, devices=TWO)
    dataset = tf.data.Dataset.from_tensors((tf.sparse.from_dense(X), Y))
    with pytest.raises(ValueError, match="x must be dense tensors, one for each input, got SparseTensor"):
        model.fit(dataset, shuffle=False, verbose=0)


def test_a_state_in_two_stages_is_refused():
    def network():
        inputs, norm = keras.Input((6,)), layers.BatchNormalization(name="norm")
        a = layers.Dense(6, name="a")(norm(inputs))
        return inputs, layers.Dense(3, name="b")(norm(a))

    model = make(network, kopt.PipelineModel, stages=["a"], micro_batches=2, devices=TWO)
    with pytest.raises(ValueError, match=r"norm/moving_mean is changed in stages 0 and 1. Cut elsewhere"):
        model.fit(X, Y, verbose=0)
