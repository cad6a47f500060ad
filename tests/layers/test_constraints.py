"""Stiefel against SciPy's factors; constraints after steps, on devices and compiled; Keras's own on each kernel."""

import keras
import numpy as np
import pytest
import scipy.linalg
from keras import ops

import kopt
from kopt.constraints import Stiefel
from kopt.testing import backends

RNG = np.random.default_rng(0)
SHAPES = [(5, 3), (3, 5), (4, 4), (2, 2, 3, 4), (1, 1, 2, 5)]


def array(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def matrix(w):
    w = w.reshape(-1, w.shape[-1])
    return w if w.shape[0] >= w.shape[1] else w.T


def polar(w):
    return scipy.linalg.polar(matrix(w))[0]


def qr(w):
    q, r = np.linalg.qr(matrix(w))
    return q * np.sign(np.diag(r))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "factor"), [("polar", polar), ("qr", qr)])
def test_it_gives_the_factor(method, factor, shape):
    for scale in (1e-3, 1.0, 1e3):
        w = scale * RNG.standard_normal(shape)
        found = array(Stiefel(method)(ops.cast(w, "float32")))
        np.testing.assert_allclose(matrix(found), factor(w.astype("float32").astype("float64")), atol=2e-5)
    if backends.has_float64():
        w = RNG.standard_normal(shape)
        np.testing.assert_allclose(matrix(array(Stiefel(method)(ops.convert_to_tensor(w)))), factor(w), atol=1e-11)


@pytest.mark.parametrize("method", ["polar", "qr"])
def test_what_is_orthonormal_stays_and_few_bits_are_kept(method):
    w = ops.cast(np.eye(4, 3), "float32")
    np.testing.assert_allclose(array(Stiefel(method)(w)), np.eye(4, 3), atol=1e-7)
    w = Stiefel(method)(ops.cast(RNG.standard_normal((4, 3)), "bfloat16"))
    assert keras.backend.standardize_dtype(w.dtype) == "bfloat16"
    np.testing.assert_allclose(array(w).T @ array(w), np.eye(3), atol=0.02)


def test_an_ill_conditioned_kernel_and_zeros():
    u, v = np.linalg.qr(RNG.standard_normal((6, 4)))[0], np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    w = ops.cast(u @ np.diag([1, 1e-1, 1e-2, 1e-3]) @ v.T, "float32")
    np.testing.assert_allclose(array(Stiefel()(w)), u @ v.T, atol=1e-3)
    assert not array(Stiefel()(ops.zeros((3, 2)))).any()


def network(optimizer, constraint, **how):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    convolution = layers.Conv2D(4, 2, kernel_constraint=constraint)
    model = keras.Sequential([keras.Input((3, 3, 2)), convolution, layers.Flatten(), layers.Dense(2)])
    model.compile(optimizer, "mse", **{"jit_compile": False} | how)
    return model


X, Y = RNG.standard_normal((16, 3, 3, 2)).astype("float32"), RNG.standard_normal((16, 2)).astype("float32")


@pytest.mark.parametrize("make", [keras.optimizers.SGD, kopt.SGD, kopt.AdamW])
@pytest.mark.parametrize("method", ["polar", "qr"])
def test_weights_are_brought_back_after_each_step(make, method, tmp_path):
    ends = []
    for how in (dict(run_eagerly=True), dict(), dict(jit_compile=True)):
        model = network(make(0.1), Stiefel(method), **how)
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        ends.append(model.get_weights())
        w = matrix(ends[-1][0].astype("float64"))
        np.testing.assert_allclose(w.T @ w, np.eye(4), atol=1e-5)
    for end in ends[1:]:
        np.testing.assert_allclose(end[0], ends[0][0], atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kernel_constraint.method == method


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a strategy is TensorFlow's")
@pytest.mark.parametrize("make", [keras.optimizers.SGD, kopt.SGD, kopt.AdamW])
def test_two_replicas_bring_weights_back_as_one_device_does(make):
    ends = []
    for strategy in (None, backends.mirrored(backends.two_devices())):
        if strategy is None:
            model = network(make(0.1), Stiefel())
        else:
            with strategy.scope():
                model = network(make(0.1), Stiefel())
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-5)
    w = matrix(ends[1][0].astype("float64"))
    np.testing.assert_allclose(w.T @ w, np.eye(4), atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 0), ((2, 2, 3, 4), [0, 1, 2])])
def test_keras_norms_of_units_and_filters(shape, axis):
    """Keras's default axis, 0, is right for dense kernels alone: the docs say which to give for convolutions."""
    w = ops.cast(3 * RNG.standard_normal(shape), "float32")
    unit, largest = keras.constraints.UnitNorm(axis), keras.constraints.MaxNorm(1.5, axis)
    norms = [np.linalg.norm(array(found).reshape(-1, shape[-1]), axis=0) for found in (unit(w), largest(w))]
    before = np.linalg.norm(array(w).reshape(-1, shape[-1]), axis=0)
    np.testing.assert_allclose(norms[0], 1, atol=1e-5)
    np.testing.assert_allclose(norms[1], np.minimum(before, 1.5), atol=1e-5)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^Stiefel: method must be one of 'polar', 'qr', got 'svd'\.$"):
        Stiefel("svd")
    with pytest.raises(ValueError, match=r"^Stiefel: a weight must have two axes or more, .*, got the shape \(3,\)\.$"):
        Stiefel()(np.ones(3, "float32"))
