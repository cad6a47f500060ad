"""Batch normalization of replicas, ghosts and small batches: against NumPy, and what every layer must do."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.layers import BatchRenormalization, GhostBatchNormalization, SyncBatchNormalization
from kopt.layers.batch_normalization import Ghosts
from kopt.testing import backends, check_layer

RNG = np.random.default_rng(0)
ROWS = RNG.normal(2, 3, (9, 4)).astype("float32")
IMAGES = RNG.normal(2, 3, (9, 3, 2, 4)).astype("float32")
SEQUENCES = RNG.normal(2, 3, (9, 5, 4)).astype("float32")
MASK = np.arange(5) < 1 + np.arange(9)[:, None] % 5
GAMMA, BETA = np.array([1, 2, -1, 0.5]), np.array([0, 1, 2, -1])
MEAN, VARIANCE = np.array([1, 2, 3, 2.5]), np.array([4, 9, 16, 8.0])
KINDS = {
    "sync": SyncBatchNormalization,
    "renormalized": BatchRenormalization,
    "ghost": functools.partial(GhostBatchNormalization, 3),
}
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def built(make, x, **arguments):
    """A layer in the middle of training."""
    layer = make(momentum=0.9, epsilon=0.1, **arguments)
    layer.build(x.shape)
    for variable, value in zip((layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance), STATE):
        variable.assign(value)
    return layer


STATE = GAMMA, BETA, MEAN, VARIANCE


def given(x):
    return np.array(ops.convert_to_numpy(x))  # a copy: assigning to a variable changes what it was read as


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "x",
    [pytest.param(ROWS, marks=pytest.mark.slow), pytest.param(IMAGES, marks=pytest.mark.slow), SEQUENCES],
    ids=["rows", "images", "sequences"],
)
def test_it_is_a_layer(name, x):
    smooth = name != "renormalized"  # a part of it has no gradient
    ran = check_layer(KINDS[name](), x, smooth=smooth, replicas=name != "renormalized")
    assert "check_data_format" in ran


def test_renormalization_over_replicas_is_a_layer():
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 3.0)
    check_layer(BatchRenormalization(r_max=schedule, d_max=0.5, synchronized=True), SEQUENCES, smooth=False)


def flat(x, mask=None):
    """Entries of each channel, in float64."""
    x = np.asarray(x, "float64")
    return x[mask] if mask is not None else x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize("name", KINDS)
def test_inference_uses_moving_statistics(name):
    layer = built(KINDS[name], IMAGES)
    close(given(layer(IMAGES)), GAMMA * (IMAGES - MEAN) / np.sqrt(VARIANCE + 0.1) + BETA)
    layer.trainable = False
    close(given(layer(IMAGES, training=True)), given(layer(IMAGES)))
    close(given(layer.moving_mean), MEAN)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_sync_in_training(mask):
    layer = built(SyncBatchNormalization, SEQUENCES)
    y = given(layer(SEQUENCES, training=True, mask=mask))
    mean, variance = flat(SEQUENCES, mask).mean(0), flat(SEQUENCES, mask).var(0)
    close(y, GAMMA * (SEQUENCES - mean) / np.sqrt(variance + 0.1) + BETA)
    close(given(layer.moving_mean), 0.9 * MEAN + 0.1 * mean)
    close(given(layer.moving_variance), 0.9 * VARIANCE + 0.1 * variance)


def test_what_is_masked_does_not_count_even_if_it_is_not_a_number():
    layer, x = SyncBatchNormalization(momentum=0), SEQUENCES.copy()
    x[~MASK] = np.nan
    assert np.isfinite(given(layer(x, training=True, mask=MASK))[MASK]).all()
    close(given(layer.moving_mean), flat(SEQUENCES, MASK).mean(0))


@pytest.mark.parametrize("rows", [3, 0])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_sync_is_exact_on_uneven_replicas(rows, mask):
    if not backends.two_devices():
        pytest.skip("replicas are TensorFlow's")
    x = SEQUENCES.astype("float64")
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        layer = built(SyncBatchNormalization, x, dtype="float64")
    masks = np.ones(x.shape[:2], bool) if mask is None else mask
    parts = [tuple(ops.convert_to_tensor(a[part]) for a in (x, masks)) for part in (slice(rows), slice(rows, None))]

    def call(part):
        return [layer(part[0], training=True, mask=None if mask is None else part[1])]

    ((first,), (second,)) = backends.on_replicas(strategy, call, parts)
    mean, variance = flat(x, mask).mean(0), flat(x, mask).var(0)
    expected = GAMMA * (x - mean) / np.sqrt(variance + 0.1) + BETA
    np.testing.assert_allclose(np.concatenate([first, second]), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(given(layer.moving_mean), 0.9 * MEAN + 0.1 * mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(given(layer.moving_variance), 0.9 * VARIANCE + 0.1 * variance, rtol=0, atol=1e-12)


def test_a_large_mean_does_not_cancel():
    x = (RNG.normal(size=(64, 3)) + 1000).astype("float32")
    layer = SyncBatchNormalization(momentum=0)
    y = given(layer(x, training=True))
    exact = x.astype("float64")
    np.testing.assert_allclose(given(layer.moving_variance), exact.var(0), rtol=1e-4)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-3), rtol=0, atol=1e-3)


def renormalized(x, mean, variance, r_max, d_max, epsilon=0.1):
    """The paper's algorithm 1 before γ and β, with its r and d."""
    x = flat(x)
    own = np.sqrt(x.var(0) + epsilon)
    r = np.clip(own / np.sqrt(variance + epsilon), 1 / r_max, r_max)
    d = np.clip((x.mean(0) - mean) / np.sqrt(variance + epsilon), -d_max, d_max)
    return (x - x.mean(0)) / own * r + d, r, d


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.1, 0.05), (3.0, 5.0)])
def test_renormalization_in_training(r_max, d_max):
    layer = built(BatchRenormalization, IMAGES, r_max=r_max, d_max=d_max)
    y = given(layer(IMAGES, training=True))
    close(flat(y), GAMMA * renormalized(IMAGES, MEAN, VARIANCE, r_max, d_max)[0] + BETA)
    x = flat(IMAGES)
    close(given(layer.moving_mean), 0.9 * MEAN + 0.1 * x.mean(0))
    deviation = 0.9 * np.sqrt(VARIANCE + 0.1) + 0.1 * np.sqrt(x.var(0) + 0.1)  # which the paper averages
    close(given(layer.moving_variance), deviation**2 - 0.1)


def test_unclipped_renormalization_computes_in_training_what_it_does_at_inference():
    layer = built(BatchRenormalization, IMAGES, r_max=float("inf"), d_max=float("inf"))
    before = given(layer(IMAGES))
    close(given(layer(IMAGES, training=True)), before)


def test_renormalization_bounds_follow_schedules():
    steps = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 3.0])
    shift = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.0, 5.0])
    layer = built(BatchRenormalization, ROWS, r_max=steps, d_max=shift)
    mean, variance = MEAN, VARIANCE
    for r_max, d_max in [(1, 0), (3, 5)]:
        y = given(layer(ROWS, training=True))
        close(y, GAMMA * renormalized(ROWS, mean, variance, r_max, d_max)[0] + BETA)
        mean, variance = given(layer.moving_mean), given(layer.moving_variance)
    assert given(layer.steps) == 2


def test_no_gradient_goes_through_the_correction():
    layer = built(BatchRenormalization, ROWS, r_max=1.1, d_max=0.05)
    direction = RNG.normal(size=ROWS.shape)

    def value(tensors):
        return ops.sum(layer(tensors[0], training=True) * ops.cast(direction, "float32"))

    _, r, _ = renormalized(ROWS, MEAN, VARIANCE, 1.1, 0.05)
    x = flat(ROWS)
    deviation = np.sqrt(x.var(0) + 0.1)
    slope = direction * GAMMA * r  # by the normalized x, r and d held still
    unit = (x - x.mean(0)) / deviation
    expected = (slope - slope.mean(0) - unit * (slope * unit).mean(0)) / deviation
    if backends.BACKEND == "jax":
        state = [ops.copy(v.value) for v in layer.non_trainable_variables]
        trainable = [ops.copy(v.value) for v in layer.trainable_variables]

        def value(tensors):
            y, _ = layer.stateless_call(trainable, state, tensors[0], training=True)
            return ops.sum(y * ops.cast(direction, "float32"))

    (found,) = backends.gradients(value, [ops.convert_to_tensor(ROWS)])
    close(given(found), expected)


def ghosts(rows, size):
    """Runs of rows, by hand."""
    return np.array_split(np.arange(rows), max(1, rows // size))


@pytest.mark.parametrize(("rows", "size"), [(9, 3), (9, 2), (9, 4), (8, 5), (2, 5), (1, 1), (7, 1), (11, 3)])
def test_ghosts_are_runs_of_rows(rows, size):
    expected = [len(part) for part in ghosts(rows, size)]
    of_row = np.repeat(np.arange(len(expected)), expected)
    x = RNG.normal(size=(rows, 2))
    sums = np.stack([x[of_row == ghost].sum(0) for ghost in range(len(expected))])
    for number in (rows,) if backends.BACKEND == "jax" else (rows, ops.convert_to_tensor(rows)):  # JAX's are known
        found = Ghosts(number, size)
        assert int(found.number) == len(expected)
        np.testing.assert_array_equal(given(found.of_row()), of_row)
        close(given(found.sums(ops.convert_to_tensor(x))), sums)
        close(given(found.to_rows(ops.convert_to_tensor(sums))), sums[of_row])
    assert rows < size or min(expected) >= size


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("size", [2, 3, 20])
def test_ghosts_in_training(size, mask):
    layer = built(GhostBatchNormalization, SEQUENCES, virtual_batch_size=size)
    y = given(layer(SEQUENCES, training=True, mask=mask))
    parts, means, variances = ghosts(9, size), [], []
    for part in parts:
        x = flat(SEQUENCES[part], None if mask is None else mask[part])
        close(y[part], GAMMA * (SEQUENCES[part] - x.mean(0)) / np.sqrt(x.var(0) + 0.1) + BETA)
        means, variances = [*means, x.mean(0)], [*variances, x.var(0)]
    weights = [len(part) if mask is None else mask[part].sum() for part in parts]
    close(given(layer.moving_mean), 0.9 * MEAN + 0.1 * np.average(means, 0, weights))
    close(given(layer.moving_variance), 0.9 * VARIANCE + 0.1 * np.average(variances, 0, weights))


@pytest.mark.parametrize("batch_size", [7, 6], ids=["unequal", "equal"])
def test_ghosts_of_a_batch_of_any_size_in_fit(batch_size):
    """Programs for any number of rows take the steps that are taken where the number is known."""
    layer = GhostBatchNormalization(3, momentum=0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), layer, keras.layers.Dense(1)])
    start, ends = model.get_weights(), []
    for how in (dict(run_eagerly=True), dict(jit_compile=False), dict(jit_compile=True)):
        if backends.BACKEND == "jax" and "run_eagerly" in how:
            continue
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), "mse", **how)
        model.fit(ROWS, ROWS[:, :1], batch_size=batch_size, epochs=2, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    assert np.abs(ends[0][0] - start[0]).max() > 0.01
    for end in ends[1:]:
        for found, expected in zip(end, ends[0], strict=True):
            close(found, expected)


@pytest.mark.parametrize("name", KINDS)
def test_statistics_are_in_float32(name):
    layer = built(KINDS[name], ROWS, dtype="mixed_bfloat16")
    x = np.float32([[256], [257], [258], [259]] * 3) * np.ones(4, "float32")  # bfloat16 has steps of 2 here
    y = layer(ops.cast(x, "bfloat16"), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert layer.moving_mean.dtype == "float32"
    rounded = given(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    np.testing.assert_allclose(given(layer.moving_mean), 0.9 * MEAN + 0.1 * rounded.mean(0), rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_recalibrate_takes_the_mean_over_batches(name):
    model = keras.Sequential([keras.Input((4,)), KINDS[name](), keras.layers.Dense(3, "relu"), KINDS[name]()])
    first, _, second = model.layers
    first.moving_mean.assign(50 * np.ones(4))  # of weights long gone
    batches = [ROWS[:6], ROWS[6:]]
    kopt.recalibrate(model, batches)
    assert first.momentum == 0.99
    assert getattr(first, "corrects", True)

    def parts(x):
        return np.split(x, len(x) // 3) if name == "ghost" else [x]

    def normalized(x):
        return np.concatenate([(p - p.mean(0)) / np.sqrt(p.var(0) + 1e-3) for p in parts(x.astype("float64"))])

    close(given(first.moving_mean), np.mean([x.mean(0) for x in batches], 0))
    kernel, bias = model.layers[1].get_weights()
    inside = [np.maximum(normalized(x) @ kernel + bias, 0) for x in batches]
    close(given(second.moving_mean), np.mean([x.mean(0) for x in inside], 0))
    if name == "sync":
        close(given(second.moving_variance), np.mean([x.var(0) for x in inside], 0))
    if name == "renormalized":
        deviation = np.mean([np.sqrt(x.var(0) + 1e-3) for x in inside], 0)
        close(given(second.moving_variance), deviation**2 - 1e-3)


def test_recalibrate_renews_all_that_renorm_of_keras_keeps_for_inference():
    try:
        layer = keras.layers.BatchNormalization(renorm=True)
    except (TypeError, ValueError):
        pytest.skip("this version of Keras has no renorm")
    model = keras.Sequential([keras.Input((4,)), layer])
    kopt.recalibrate(model, [ROWS])
    close(given(layer.moving_stddev), np.sqrt(given(layer.moving_variance) + 1e-3))


def test_the_config_does_without_what_only_new_versions_of_keras_know():
    config = SyncBatchNormalization(center=False).get_config()
    assert not [name for name in config if name.startswith("renorm")]
    assert SyncBatchNormalization.from_config(config).center is False


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SyncBatchNormalization(momentum=1), ValueError, r"momentum must be a number in \[0, 1\), got 1\."),
        (lambda: SyncBatchNormalization(epsilon=0), ValueError, r"epsilon must be a number in \(0, inf\), got 0\."),
        (lambda: SyncBatchNormalization(axis=1.5), TypeError, r"axis must be an integer in \(-inf, inf\), got 1\.5\."),
        (lambda: SyncBatchNormalization(synchronized=True), ValueError, r"synchronized must be False, got True\."),
        (lambda: GhostBatchNormalization(0), ValueError, r"virtual_batch_size must be an integer in .*, got 0\."),
        (lambda: GhostBatchNormalization(2.0), TypeError, r"virtual_batch_size must be an integer in .*, got 2\.0\."),
        (lambda: BatchRenormalization(r_max=0.5), ValueError, r"r_max must be a number in \[1, inf\], got 0\.5\."),
        (lambda: BatchRenormalization(d_max=-1), ValueError, r"d_max must be a number in \[0, inf\], got -1\."),
        (lambda: BatchRenormalization(synchronized=2), ValueError, r"synchronized must be one of False, True, got 2\."),
        (
            lambda: SyncBatchNormalization(axis=0).build((None, 2)),
            ValueError,
            r"axis must be one of inputs of shape \(None, 2\), and not the batch's, got 0\.",
        ),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=rf"^(Sync|Ghost)?Batch(ReN|N|Ren)ormalization: {message}$"):
        make()
