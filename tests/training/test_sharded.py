"""A model over a mesh of devices trains as one device does."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.experimental import dtensor
from tensorflow.python.eager import context

import kopt
from kopt.distribute.mesh.first_use import NEWER, SWITCH

layers, optimizers = keras.layers, keras.optimizers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 8)).astype("float32"), RNG.normal(size=(30, 4)).astype("float32")
WEIGHTS = RNG.uniform(0, 2, size=30).astype("float32")
WORDS, LABELS = RNG.integers(1, 8, size=(30, 5)) * (np.arange(5) < 4), RNG.integers(4, size=30)

pytestmark = pytest.mark.skipif(len(tf.config.list_logical_devices("CPU")) < 4, reason="four devices are needed")


def dense():
    """A pair of dense layers, statistics of batches, a penalty."""
    inputs = keras.Input((8,))
    a = layers.Dense(16, "tanh", name="a", kernel_regularizer=keras.regularizers.L2(0.02))(inputs)
    b = layers.Dense(8, name="b")(layers.Activation("tanh", name="between")(a))
    return inputs, layers.Dense(4, name="c")(layers.BatchNormalization(name="norm")(b))


def small():
    inputs = keras.Input((8,))
    return inputs, layers.Dense(4, name="b")(layers.Dense(16, "tanh", name="a")(inputs))


def attentive():
    """Words with a mask, attention, a norm, a skip."""
    inputs = keras.Input((5,), dtype="int32")
    words = layers.Embedding(8, 8, mask_zero=True, name="words")(inputs)
    seen = layers.MultiHeadAttention(4, 2, name="attention")(words, words)
    mean = layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="norm")(seen + words))
    return inputs, layers.Dense(4, "softmax", name="last")(mean)


def make(network, optimizer=None, loss="mse", metrics=None, weighted_metrics=None, **mesh):
    """A compiled model: over a mesh, or where there are no settings of one on one device."""
    keras.utils.set_random_seed(0)
    model = kopt.ShardedModel(*network(), **mesh) if mesh else kopt.Model(*network())
    model.compile(
        optimizer or optimizers.SGD(0.1, momentum=0.9), loss, metrics=metrics, weighted_metrics=weighted_metrics
    )
    return model


def fitted(model, x=X, y=Y, batch_size=16, epochs=2, **how):
    keras.utils.set_random_seed(1)
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0, **how).history


def assert_same(one, many, history=None, other=None, tolerance=1e-6):
    for a, b in zip(one.get_weights(), many.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    for name in history or ():
        np.testing.assert_allclose(history[name], other[name], rtol=tolerance * 5, atol=tolerance)


def part_of(variable):
    """The shape of what each device has of a variable."""
    (shape,) = {tuple(x.shape) for x in dtensor.unpack(variable.value.read_value())}
    return shape


SQUARE = dict(mesh={"batch": 2, "model": 2}, layout="tensor_parallel")
MESHES = {
    "2x2": SQUARE,
    "4x1, optimizer": dict(mesh={"batch": 4}, shard="optimizer"),
    "1x4": dict(
        mesh={"model": 4}, layout={"a/kernel": (None, "model"), "a/b.*": ("model",), "c/kernel": ("model", None)}
    ),
    "2x2, weights": SQUARE | dict(shard="weights"),
}


@pytest.fixture(scope="module")
def alone():
    """The model on one device."""
    model = make(
        dense, optimizers.AdamW(0.01, epsilon=1e-3, global_clipnorm=0.5), metrics=["mae"], weighted_metrics=["mse"]
    )
    return model, fitted(model, sample_weight=WEIGHTS)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_a_mesh_takes_the_steps_of_one_device(alone, mesh):
    """30 rows in batches of 16: the last one's 14 do not divide by four."""
    one, history = alone
    optimizer = optimizers.AdamW(0.01, epsilon=1e-3, global_clipnorm=0.5)
    many = make(dense, optimizer, metrics=["mae"], weighted_metrics=["mse"], **mesh)
    assert_same(one, many, history, fitted(many, sample_weight=WEIGHTS))
    for a, b in zip(one.optimizer.variables, many.optimizer.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    whole = {"a": (8, 16), "b": (16, 8), "c": (8, 4)}
    parts = {name: part_of(many.get_layer(name).kernel) for name in whole}
    slots = [v for v in many.optimizer.variables if v.path.endswith("a_kernel_momentum")]
    expected = {
        "2x2": ({"a": (8, 8), "b": (8, 8), "c": (8, 2)}, (8, 8)),
        "4x1, optimizer": (whole, (2, 16)),
        "1x4": ({"a": (8, 4), "b": (16, 8), "c": (2, 4)}, (8, 4)),
        "2x2, weights": ({"a": (4, 8), "b": (8, 4), "c": (4, 2)}, (4, 8)),
    }
    (name,) = (name for name, each in MESHES.items() if each is mesh)
    assert (parts, part_of(slots[0])) == expected[name]


@pytest.mark.parametrize("shard", [None, pytest.param("weights", marks=pytest.mark.slow)])
def test_words_and_attention(shard):
    how = dict(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    one = make(attentive, optimizers.AdamW(0.01, epsilon=1e-3, global_clipnorm=0.1), **how)
    many = make(attentive, optimizers.AdamW(0.01, epsilon=1e-3, global_clipnorm=0.1), **how, **SQUARE, shard=shard)
    found = [fitted(model, WORDS, LABELS, batch_size=30) for model in (one, many)]
    assert_same(one, many, *found)
    rows = 2 if shard else 1
    assert part_of(many.get_layer("words").embeddings) == (8 // rows, 4)
    attention = many.get_layer("attention")
    assert part_of(attention.query_dense.kernel) == (8 // rows, 2, 2)
    assert part_of(attention.output_dense.kernel) == (2, 2 // rows, 8)
    if shard is None:
        np.testing.assert_allclose(one.predict(WORDS, verbose=0), many.predict(WORDS, verbose=0), atol=1e-6)


def test_several_inputs_and_outputs():
    def network():
        left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
        a = layers.Dense(4, "tanh", name="a", activity_regularizer=keras.regularizers.L2(0.1))(left)
        outputs = {
            "early": layers.Dense(2, "softmax", name="early")(a),
            "late": layers.Dense(1, name="late")(a + right),
        }
        return {"left": left, "right": right}, outputs

    losses = {"early": "sparse_categorical_crossentropy", "late": "mse"}
    found = []
    for mesh in ({}, SQUARE):
        model = make(network, loss=losses, metrics={"early": ["accuracy"], "late": ["mae"]}, **mesh)
        x, y = {"left": X[:, :4], "right": X[:, 4:]}, {"early": LABELS % 2, "late": Y[:, :1]}
        found.append((model, fitted(model, x, y, epochs=1)))
    assert {"early_loss", "late_loss", "early_accuracy"} <= found[0][1].keys()
    assert_same(found[0][0], found[1][0], found[0][1], found[1][1])


OPTIMIZERS = {
    "accumulating": lambda: optimizers.Adam(0.01, epsilon=1e-3, gradient_accumulation_steps=2),
    "averaging, scaled": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2)
    ),
    "kopt's, guarded, averaging": lambda: optimizers.LossScaleOptimizer(
        kopt.AdamW(
            0.01, epsilon=1e-3, global_clipnorm=0.3, use_ema=True, ema_overwrite_frequency=2, skip_nonfinite=True
        )
    ),
    "matrices": lambda: kopt.Muon(0.01),
    "two looks": lambda: kopt.SAM(kopt.SGD(0.1)),
}
SLOW = "matrices", "accumulating"


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(each, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, each in OPTIMIZERS.items()],
)
def test_optimizers_step_as_on_one_device(optimizer):
    one, many = make(small, optimizer()), make(small, optimizer(), **SQUARE, shard="optimizer")
    found = [fitted(model, batch_size=15) for model in (one, many)]
    assert_same(one, many, *found)


@pytest.mark.slow
def test_mixed_precision_and_noise_of_one_shard():
    def network():
        inputs = keras.Input((8,))
        a = layers.Dense(16, "tanh", name="a", dtype="mixed_float16")(inputs)
        return inputs, layers.Dense(4, name="b", dtype="mixed_float16")(a)

    one, many = (make(network, optimizers.LossScaleOptimizer(optimizers.SGD(0.1)), **mesh) for mesh in ({}, SQUARE))
    assert_same(one, many, *[fitted(model) for model in (one, many)], tolerance=3e-3)
    assert float(one.optimizer.dynamic_scale.numpy()) == float(many.optimizer.dynamic_scale.numpy())


def test_datasets_single_batches_and_calls():
    """A layer that was adapted to data keeps constants; class weights become sample weights."""

    def network():
        inputs, norm = keras.Input((8,)), layers.Normalization(name="norm")
        norm.adapt(X)
        return inputs, layers.Dense(4, "softmax", name="a")(norm(inputs))

    dataset = tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(15)
    found = []
    for mesh in ({}, SQUARE):
        model = make(network, loss="sparse_categorical_crossentropy", **mesh)
        model.fit(dataset, shuffle=False, verbose=0, class_weight={0: 2.0, 1: 1.0, 2: 1.0, 3: 0.5})
        logs = model.train_on_batch(X[:15], LABELS[:15], return_dict=True)
        outputs = [model.predict(tf.data.Dataset.from_tensor_slices(X).batch(15), verbose=0), model(X[:15]).numpy()]
        found.append([logs["loss"], *outputs, model.predict_on_batch(X[:15]), *model.get_weights()])
        model.optimizer.learning_rate = 0.5
        assert float(model.optimizer.learning_rate.numpy()) == 0.5
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_load_under_any_layout(tmp_path):
    square = make(small, keras.optimizers.AdamW(0.01), **SQUARE, shard="optimizer")
    fitted(square, batch_size=30)
    square.save(tmp_path / "model.keras")
    square.save_weights(tmp_path / "all.weights.h5")
    row = kopt.ShardedModel(*small(), mesh={"model": 4}, layout="tensor_parallel")
    plain = kopt.Model(*small())
    for other in (row, plain):
        assert np.abs(other.get_weights()[0] - square.get_weights()[0]).max() > 1e-3
        other.load_weights(tmp_path / "all.weights.h5")
        assert_same(square, other, tolerance=0)
    assert part_of(row.get_layer("a").kernel) == (8, 4)
    plain.set_weights([x + 1 for x in plain.get_weights()])
    plain.save_weights(tmp_path / "plain.weights.h5")
    row.load_weights(tmp_path / "plain.weights.h5")
    assert_same(plain, row, tolerance=0)
    plain = kopt.Model(*small())
    plain.load_weights(tmp_path / "model.keras")
    assert_same(square, plain, tolerance=0)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is kopt.ShardedModel
    assert loaded.get_config()["mesh"] == {"batch": 2, "model": 2}
    assert_same(square, loaded, tolerance=0)


def test_a_checkpoint_goes_on_under_any_layout(tmp_path):
    """A run that begins on one mesh goes on over another and on one device, where kopt packs what it keeps."""
    ends, path = [], tmp_path / "run.ckpt"
    for mesh in ({}, dict(mesh={"model": 4}, layout="tensor_parallel")):
        path.unlink(missing_ok=True)
        for settings, epochs in ((SQUARE | dict(shard="optimizer"), 1), (mesh, 2)):
            model = make(small, optimizers.LossScaleOptimizer(kopt.AdamW(0.01, epsilon=1e-3)), **settings)
            fitted(model, batch_size=30, epochs=epochs, callbacks=[kopt.Checkpoint(path)])
            assert int(model.optimizer.iterations.numpy()) == epochs
        ends.append(model)
    assert_same(*ends)


@pytest.mark.slow
def test_tensorflows_checkpoints(tmp_path):
    square = make(small, optimizers.Adam(0.01), **SQUARE)
    fitted(square, batch_size=30)
    path = tf.train.Checkpoint(model=square).save(tmp_path / "c")
    row = make(small, optimizers.Adam(0.01), mesh={"model": 4}, layout="tensor_parallel")
    tf.train.Checkpoint(model=row).restore(path)
    assert_same(square, row, tolerance=0)


# ---- what is refused -------------------------------------------------------------------------------------------------

ONE = {"batch": 2, "model": 2}
WRONG = {
    "no dict": (dict(mesh=4), TypeError, "mesh must be a dict of sizes by names of axes"),
    "no size": (dict(mesh={"batch": 0}), ValueError, r"mesh\['batch'\] must be an integer in \[1, inf\), got 0"),
    "too few": (dict(mesh={"batch": 16}), ValueError, "devices must be 16 different ones for a mesh of .*, got 4"),
    "unknown device": (dict(mesh={"batch": 1}, devices=["CPU:9"]), ValueError, "devices must be among .*got 'CPU:9'"),
    "twice": (dict(mesh={"batch": 2}, devices=["CPU:0", "CPU:0"]), ValueError, "devices must be 2 different ones"),
    "no list": (dict(mesh={"batch": 1}, devices="CPU:0"), TypeError, "devices must be a list of names, got 'CPU:0'"),
    "shard": (dict(mesh=ONE, shard="all"), ValueError, "shard must be one of None, 'optimizer', 'weights', got 'all'"),
    "no batch": (dict(mesh={"model": 2}, shard="weights"), ValueError, "mesh must have the axis 'batch' for shard='w"),
    "no model": (dict(mesh={"batch": 2}, layout="tensor_parallel"), ValueError, "mesh must have the axis 'model'"),
    "no layout": (dict(mesh=ONE, layout="columns"), TypeError, "layout must be None, 'tensor_parallel', a dict"),
    "no match": (dict(mesh=ONE, layout={"kernel": ("model",)}), ValueError, "'kernel' matches none of a/kernel, a/b"),
    "two": (dict(mesh=ONE, layout={"a/k.*": ("model", None), "a/.*l": (None, None)}), ValueError, "one pattern .*'a/k"),
    "no tuple": (dict(mesh=ONE, layout={"a/bias": "model"}), TypeError, r"layout\['a/bias'\] must be a tuple"),
    "rank": (
        dict(mesh=ONE, layout={"a/kernel": ("model",)}),
        ValueError,
        r"layout of 'a/kernel'.* must have 2 entries",
    ),
    "axis": (
        dict(mesh=ONE, layout={"a/bias": ("rows",)}),
        ValueError,
        "'a/bias'.* must name axes of the mesh, batch, m",
    ),
    "again": (dict(mesh=ONE, layout={"a/kernel": ("model",) * 2}), ValueError, "'a/kernel'.* must name an axis once"),
    "odd": (
        dict(mesh={"model": 3}, layout={"b/bias": ("model",)}),
        ValueError,
        "'b/bias'.* 4 does not by 'model', of ",
    ),
}


@pytest.mark.parametrize(("settings", "error", "message"), WRONG.values(), ids=WRONG)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        kopt.ShardedModel(*small(), **settings)


def test_keras_layout_maps():
    devices = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices=[f"cpu:{i}" for i in range(4)])
    layout = keras.distribution.LayoutMap(devices)
    layout["a/kernel"] = (None, "model")
    model = kopt.ShardedModel(*small(), mesh=ONE, layout=layout)
    assert model.get_config()["layout"] == {"a/kernel": [None, "model"]}
    assert part_of(model.get_layer("a").kernel) == (8, 8)
    with pytest.raises(ValueError, match=r"the device mesh of a LayoutMap must be as mesh"):
        kopt.ShardedModel(*small(), mesh={"batch": 1, "model": 4}, layout=layout)


def test_layers_that_cannot_be_divided_are_named():
    words = keras.Input((5, 8))
    with pytest.raises(
        ValueError, match=r"layers must not loop over steps, .* and 'looping' does. Set its unroll=True"
    ):
        kopt.ShardedModel(words, layers.LSTM(4, name="looping")(words), mesh=ONE)
    image = keras.Input((4, 4, 2))
    outputs = layers.Conv2D(4, 2, name="conv")(image)
    with pytest.raises(ValueError, match=r"must leave convolutions whole, .* divides 'conv/kernel'"):
        kopt.ShardedModel(image, outputs, mesh=ONE, layout={"conv/kernel": (None, None, None, "model")})

    @keras.saving.register_keras_serializable("tests")
    class Inverse(layers.Layer):
        def call(self, x):
            return x @ tf.linalg.eigh(tf.matmul(x, x, transpose_a=True))[1]

    inputs = keras.Input((8,))
    model = kopt.ShardedModel(inputs, layers.Dense(4)(Inverse(name="eigen")(inputs)), mesh=ONE)
    model.compile("sgd", "mse")
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"DTensor cannot compute 'eigen', a Inverse: 'tf.SelfAdjointEigV2' op does not"
    ):
        model.fit(X, Y, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_compile_refuses(tmp_path):
    model = kopt.ShardedModel(*small(), mesh=ONE)
    for how, message in (
        (dict(jit_compile=True), "jit_compile must be False or 'auto', got True"),
        (dict(run_eagerly=True), "run_eagerly must be False, got True"),
        (dict(optimizer=kopt.KFAC()), "optimizer must ask for gradients alone, and KFAC asks more"),
        (dict(optimizer=kopt.LBFGS()), "optimizer must ask for gradients alone, and LBFGS asks more"),
    ):
        with pytest.raises(ValueError, match=message):
            model.compile(loss="mse", **how)
    model.compile(kopt.Shampoo(), "mse")
    with pytest.raises(
        ValueError, match=r"DTensor cannot compute a step of Shampoo, or the loss: 'tf.SelfAdjointEigV2'"
    ):
        model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="cannot be exported"):
        model.export(tmp_path)
    with pytest.raises(ValueError, match="outside of fit it must be called with inputs alone"):
        model(X, training=True)
    with (
        tf.distribute.OneDeviceStrategy("CPU:0").scope(),
        pytest.raises(ValueError, match=r"outside of any strategy's"),
    ):
        kopt.ShardedModel(*small(), mesh=ONE)


def test_conditions_that_would_end_the_process_are_refused():
    @keras.saving.register_keras_serializable("tests")
    class Switched(layers.Layer):
        def call(self, x):
            return tf.raw_ops.SelectV2(condition=tf.reduce_sum(x) > 0, t=x, e=2 * x)

    inputs = keras.Input((8,))
    model = kopt.ShardedModel(inputs, layers.Dense(4)(Switched(name="switched")(inputs)), mesh=ONE)
    with pytest.raises(ValueError, match=r"no condition of tf.where may be a scalar beside tensors, .*switched"):
        model.predict(X, verbose=0)


LATE = """
import sys
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tensorflow.experimental import dtensor
from tensorflow.python.eager import context
mesh = dtensor.create_mesh([("batch", 2)], devices=["CPU:0", "CPU:1"])
x = dtensor.copy_to_mesh(tf.ones(4), dtensor.Layout.replicated(mesh, 1))
tf.function(lambda x: tf.reduce_sum(x))(x)
import keras, kopt
from kopt.distribute.mesh import first_use
inputs = keras.Input((4,))
for _ in range(2):
    try:
        kopt.ShardedModel(inputs, keras.layers.Dense(2)(inputs), mesh={"batch": 2})
    except RuntimeError as error:
        print(error)
    first_use.os.environ[first_use.SWITCH] = "0"  # as somebody may who reads the error: it is too late
"""


def test_xla_compiles_afterwards_as_it_did_before():
    make(small, mesh={"batch": 2})
    assert context.context().enable_mlir_bridge != NEWER
    alone = tf.function(lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)), jit_compile=True, autograph=False)
    assert alone(tf.constant([-1.0, 2.0, 3.0])) == 5.0  # the newer bridge of TensorFlow 2.16 does not know how


def test_what_dtensor_computes_wrong_is_noticed():
    """In a process that has used DTensor as TensorFlow has it: by what is known of it, and by a step that is wrong."""
    env = {name: value for name, value in os.environ.items() if name != SWITCH}
    how = dict(capture_output=True, text=True, check=True, timeout=120, env=env)
    found = subprocess.run([sys.executable, "-c", LATE], **how)
    known, measured = found.stdout.strip().splitlines()
    assert "must be '0' before DTensor's first use in a process, which has been" in known
    assert "DTensor must compute what one device does, and a step on CPU:0, CPU:1 is off by" in measured
