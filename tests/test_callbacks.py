"""Validation, checkpoints and batch normalization at averaged weights."""

import keras
import numpy as np
import pytest

import kopt

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((48, 3)).astype("float32"), RNG.standard_normal((48, 1)).astype("float32")
TRAIN, TEST = (X[:32], Y[:32]), (X[32:], Y[32:])
BATCHES = [(TRAIN[0][i : i + 8], TRAIN[1][i : i + 8]) for i in range(0, 32, 8)]


def compiled(optimizer):
    """A network with batch normalization and dropout."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, use_bias=False),
            layers.BatchNormalization(momentum=0.8, name="normalization"),
            layers.Dropout(0.3, seed=1),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def fitted(model, *callbacks, epochs=3, **options):
    history = model.fit(
        *TRAIN, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **options
    )
    return history.history


def statistics(model):
    layer = model.get_layer("normalization")
    return [layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def rate():
    return kopt.ScheduleFreeAdamW(0.1)


def test_validation_is_where_evaluation_is():
    model = compiled(rate())
    losses = fitted(model, kopt.SwapWeights(BATCHES), validation_data=TEST)["val_loss"]
    assert model.optimizer.evaluating
    assert losses[-1] == pytest.approx(model.evaluate(*TEST, verbose=0), rel=1e-5)
    plain = compiled(rate())
    unswapped = fitted(plain, validation_data=TEST)["val_loss"]
    assert abs(unswapped[-1] - losses[-1]) > 1e-4
    assert plain.optimizer.evaluating  # `fit` itself leaves the averages there


@pytest.mark.parametrize("make", [rate, lambda: kopt.EMA(kopt.AdamW(0.1), momentum=0.8)])
def test_training_goes_on_as_if_there_were_no_swap(make):
    """Dropout's random state and the statistics of batch normalization included."""
    plain, swapped = compiled(make()), compiled(make())
    expected = fitted(plain)["loss"]
    found = fitted(swapped, kopt.SwapWeights(BATCHES), validation_data=TEST)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for model in plain, swapped:
        model.optimizer.swap("training")
    for a, b in zip(plain.trainable_variables, swapped.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-5)


def test_a_second_fit_starts_from_the_weights_that_are_trained():
    straight, again = compiled(rate()), compiled(rate())
    fitted(straight, epochs=2)
    swap = kopt.SwapWeights()
    fitted(again, swap, epochs=1)
    fitted(again, swap, epochs=1)
    for a, b in zip(straight.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-5)
    swap.set_model(again)
    assert again.optimizer.evaluating
    swap.on_train_begin()
    assert not again.optimizer.evaluating


@pytest.mark.slow
def test_a_checkpoint_holds_the_averages(tmp_path):
    model, files = compiled(rate()), tmp_path / "{epoch}.keras"
    losses = fitted(
        model, kopt.SwapWeights(BATCHES), keras.callbacks.ModelCheckpoint(files), validation_data=TEST
    )["val_loss"]  # fmt: skip
    for epoch, loss in enumerate(losses, start=1):
        loaded = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        assert loaded.optimizer.evaluating
        assert loaded.evaluate(*TEST, verbose=0) == pytest.approx(loss, rel=1e-5)
    loaded.layers[2].seed_generator.state.assign(model.layers[2].seed_generator.state)  # which Keras does not save
    fitted(loaded, epochs=1)  # from the weights that are trained, which are in the file, too
    fitted(model, epochs=1)
    for a, b in zip(loaded.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6)


def test_evaluation_outside_fit_leaves_the_model_as_it_was():
    model, swap = compiled(rate()), kopt.SwapWeights(BATCHES)
    fitted(model)
    model.optimizer.swap("training")
    before = model.get_weights()
    at_average = model.evaluate(*TEST, verbose=0, callbacks=[swap])
    prediction = model.predict(TEST[0], verbose=0, callbacks=[swap])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert at_average == pytest.approx(np.mean((prediction - TEST[1]) ** 2), rel=1e-5)
    assert at_average != pytest.approx(model.evaluate(*TEST, verbose=0), rel=1e-4)


def test_an_optimizer_without_averages_is_refused():
    with pytest.raises(ValueError, match=r"^SwapWeights: the optimizer must keep averages of the weights, got AdamW"):
        fitted(compiled(kopt.AdamW()), kopt.SwapWeights())


def test_averages_are_found_inside_loss_scaling():
    model = compiled(keras.optimizers.LossScaleOptimizer(rate()))
    fitted(model, kopt.SwapWeights(), validation_data=TEST)
    assert model.optimizer.inner_optimizer.evaluating


def test_statistics_are_the_mean_over_batches():
    model = compiled(kopt.SGD())
    fitted(model)
    others = [
        v for layer in (*model.layers[:1], *model.layers[2:]) for v in layer.variables
    ]  # the random state of dropout is among them
    before = [v.numpy() for v in others]
    kopt.recalibrate(model, BATCHES, batches=3)
    inside = [keras.ops.convert_to_numpy(model.layers[0](x)) for x, _ in BATCHES[:3]]
    mean, variance = statistics(model)
    np.testing.assert_allclose(mean, np.mean([x.mean(0) for x in inside], 0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(variance, np.mean([x.var(0) for x in inside], 0), rtol=0, atol=1e-6)
    assert model.get_layer("normalization").momentum == 0.8
    assert any("seed" in v.path for v in others)
    for value, variable in zip(before, others, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_statistics_that_are_not_trained_stay():
    model = compiled(kopt.SGD())
    model.get_layer("normalization").trainable = False
    before = statistics(model)
    kopt.recalibrate(model, BATCHES)
    np.testing.assert_array_equal(before, statistics(model))


def test_data_may_be_a_dataset_of_keras():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(BATCHES)

        def __getitem__(self, index):
            return BATCHES[index]

    model, other = compiled(kopt.SGD()), compiled(kopt.SGD())
    kopt.recalibrate(model, Batches())
    kopt.recalibrate(other, BATCHES)
    np.testing.assert_array_equal(statistics(model), statistics(other))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"^recalibrate: data must yield batches, got an array of shape \(48, 3\)\. Try "),
        ([], r"^recalibrate: data must yield at least one batch, got none from \[\]\.$"),
    ],
)
def test_data_that_is_none_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        kopt.recalibrate(compiled(kopt.SGD()), data)


@pytest.mark.parametrize("make", [lambda: kopt.SwapWeights(batches=0), lambda: kopt.recalibrate(None, [], batches=0)])
def test_no_batches_are_refused(make):
    with pytest.raises(ValueError, match=r": batches must be an integer in \[1, inf\), got 0\.$"):
        make()
