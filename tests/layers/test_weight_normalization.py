"""Standardized and normalized kernels: against NumPy, around every kind of layer with a kernel."""

import keras
import numpy as np
import pytest
from keras import ops

from kopt.layers import WeightNormalization, WeightStandardization
from kopt.testing import backends, check_layer

L = keras.layers
RNG = np.random.default_rng(0)
CASES = {  # layer, shape of an input, axes of the fan-in
    "dense": (lambda: L.Dense(3, "tanh"), (4,), (0,)),
    "sequence": (lambda: L.Dense(3), (5, 4), (0,)),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), (5, 4), (0,)),
    "einsum_heads": (lambda: L.EinsumDense("abcd,cde->abe", (None, 3)), (5, 2, 4), (0, 1)),
    "conv1d": (lambda: L.Conv1D(3, 2), (5, 4), (0, 1)),
    "conv2d": (lambda: L.Conv2D(3, 2, activation="tanh"), (4, 3, 2), (0, 1, 2)),
    "grouped": (lambda: L.Conv2D(4, 2, groups=2), (4, 3, 2), (0, 1, 2)),
    "conv3d": (lambda: L.Conv3D(2, 2), (3, 3, 2, 2), (0, 1, 2, 3)),
    "depthwise": (lambda: L.DepthwiseConv2D(2, depth_multiplier=3), (4, 3, 2), (0, 1)),
    "depthwise1d": (lambda: L.DepthwiseConv1D(2), (4, 3), (0,)),
    "transposed": (lambda: L.Conv2DTranspose(3, 2), (3, 3, 2), (0, 1, 3)),
}


def given(x):
    return np.array(ops.convert_to_numpy(x))


def built(wrapper, shape):
    if not wrapper.built:
        wrapper.build((None, *shape))
    for variable in wrapper.trainable_variables:
        variable.assign(RNG.normal(1, 0.5, variable.shape))
    return wrapper


def alike(wrapper, kernel, x):
    """What the layer inside gives with this kernel in the place of its own."""
    layer = type(wrapper.layer).from_config(wrapper.layer.get_config())
    layer.build(x.shape)
    layer.set_weights([kernel, *wrapper.layer.get_weights()[1:]])
    return given(layer(x))


def x_of(shape, rows=6):
    return RNG.normal(size=(rows, *shape)).astype("float32")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sequence", "conv1d", "depthwise")]


@pytest.mark.parametrize("name", ["dense", "transposed", *SLOW])
def test_they_are_layers(name):
    make, shape, _ = CASES[name]
    check_layer(WeightStandardization(make(), scaled=True, gain=1.0), x_of(shape))
    check_layer(WeightNormalization(make()), x_of(shape))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("scaled", "gain"), [(False, None), (True, None), (True, 1.7)])
@pytest.mark.parametrize("name", CASES)
def test_standardized(name, scaled, gain, training):
    make, shape, axes = CASES[name]
    wrapper, x = built(WeightStandardization(make(), scaled=scaled, gain=gain, epsilon=0.01), shape), x_of(shape)
    kernel = given(wrapper.layer.kernel).astype("float64")
    fan_in = np.prod([kernel.shape[axis] for axis in axes]) if scaled else 1
    away = kernel - kernel.mean(axes, keepdims=True)
    expected = away / np.sqrt(fan_in * kernel.var(axes, keepdims=True) + 0.01)
    expected = expected if gain is None else given(wrapper.g) * expected
    found = given(keras.Sequential([wrapper])(x, training=training))
    np.testing.assert_allclose(found, alike(wrapper, expected, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(given(wrapper.layer.kernel), kernel.astype("float32"))  # stays what is trained


@pytest.mark.parametrize("name", CASES)
def test_normalized(name):
    make, shape, axes = CASES[name]
    wrapper, x = WeightNormalization(make()), x_of(shape)
    wrapper.build(x.shape)
    np.testing.assert_allclose(given(wrapper(x)), alike(wrapper, given(wrapper.layer.kernel), x), rtol=1e-4, atol=1e-6)
    built(wrapper, shape)
    v, g = given(wrapper.layer.kernel), given(wrapper.g)
    expected = g * v / np.sqrt(np.square(v).sum(axes, keepdims=True))
    np.testing.assert_allclose(given(wrapper(x)), alike(wrapper, expected, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["dense", "sequence", "conv2d", "depthwise", "transposed", "grouped"])
def test_initialize_gives_outputs_mean_zero_and_variance_one(name, bias):
    make, shape, _ = CASES[name]
    layer = make()
    layer.use_bias = bias
    wrapper, x = WeightNormalization(layer), x_of(shape, 20) + 1
    activation = layer.activation
    y = given(wrapper.initialize(x))
    assert layer.activation is activation
    np.testing.assert_allclose(y, given(wrapper(x)), rtol=1e-6, atol=1e-6)
    y = np.arctanh(y.astype("float64")) if name in ("dense", "conv2d") else y
    y = y.reshape(-1, y.shape[-1])
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)
    if bias:
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)


def test_an_output_that_does_not_vary_keeps_its_length():
    wrapper = WeightNormalization(L.Dense(2))
    x = np.ones((4, 3), "float32")
    wrapper.build(x.shape)
    before = given(wrapper.g)
    assert np.isfinite(given(wrapper.initialize(x))).all()
    np.testing.assert_array_equal(given(wrapper.g), before)


@pytest.mark.parametrize("wrap", [WeightStandardization, WeightNormalization])
def test_losses_and_state_of_the_layer_inside_are_kept(wrap):
    class Counting(L.Dense):
        def build(self, input_shape):
            super().build(input_shape)
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

        def call(self, inputs):
            self.calls.assign(self.calls + 1)
            return super().call(inputs)

    layer = Counting(3, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(1.0))
    model = keras.Sequential([keras.Input((4,)), wrap(layer)])
    x = x_of((4,))
    before = given(layer.calls)
    y = given(model(x))
    assert given(layer.calls) == before + 1
    losses = sorted(float(loss) for loss in model.losses)
    plain = keras.layers.ActivityRegularization(l2=1.0)  # Keras divides by the batch, or does not, by its version
    plain(y)
    expected = sorted([0.01 * np.square(given(layer.kernel)).sum(), *map(float, plain.losses)])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("wrap", [WeightStandardization, WeightNormalization])
def test_an_optimizer_steps_and_decays_the_kernel_inside(wrap, jit_compile):
    wrapper = wrap(L.Dense(1))
    model = keras.Sequential([keras.Input((4,)), wrapper])
    kernel, x = given(wrapper.layer.kernel), x_of((4,))
    assert any(v is wrapper.layer.kernel for v in model.trainable_variables)
    model.compile(keras.optimizers.SGD(1e-6, weight_decay=1e5), "mse", jit_compile=jit_compile)
    model.fit(x, x[:, :1], epochs=3, verbose=0)
    np.testing.assert_allclose(given(wrapper.layer.kernel), 0.9**3 * kernel, rtol=0.01, atol=1e-4)


def test_the_gradient_of_v_is_orthogonal_to_v():
    if backends.BACKEND != "tensorflow":
        pytest.skip("a tape is TensorFlow's")
    import tensorflow as tf

    wrapper, x = built(WeightNormalization(L.Dense(3)), (4,)), x_of((4,))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(x) ** 2)
    gradient, v = tape.gradient(loss, wrapper.layer.kernel.value), given(wrapper.layer.kernel)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose((gradient * v).numpy().sum(0), 0, atol=1e-4)


def test_kernels_are_normalized_in_float32():
    wrapper, x = built(WeightStandardization(L.Dense(3, dtype="mixed_bfloat16")), (4,)), x_of((4,))
    kernel = given(wrapper.layer.kernel) + 100  # whose spread bfloat16 does not show
    wrapper.layer.kernel.assign(kernel)
    y = given(ops.cast(wrapper(x), "float32"))
    expected = (kernel - kernel.mean(0)) / np.sqrt(kernel.var(0) + 1e-5)
    assert wrapper.compute_dtype == "bfloat16"
    np.testing.assert_allclose(y, x @ expected + given(wrapper.layer.bias), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WeightStandardization("dense"), TypeError, r"layer must be a keras\.layers\.Layer, got 'dense'\."),
        (lambda: WeightStandardization(L.Dense(1), gain=0), ValueError, r"gain must be a number in .*, got 0\."),
        (lambda: WeightStandardization(L.Dense(1), epsilon=0), ValueError, r"epsilon must be a number in .*, got 0\."),
        (lambda: WeightStandardization(L.Dense(1), scaled=2), ValueError, r"scaled must be one of .*, got 2\."),
        (
            lambda: WeightStandardization(L.Dense(1)).build((None, 1)),
            ValueError,
            r"layer must sum over several inputs, got Dense with one\.",
        ),
        (
            lambda: WeightNormalization(L.ReLU()).build((None, 2)),
            ValueError,
            r"layer must have a kernel, got ReLU, which has none\.",
        ),
        (
            lambda: WeightNormalization(L.EinsumDense("ab,bc->ac", 2)).initialize(np.ones((2, 2), "float32")),
            ValueError,
            r"initialize needs a Dense layer or a convolution, got EinsumDense\.",
        ),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=rf"^Weight(Standard|Normal)ization: {message}$"):
        make()
