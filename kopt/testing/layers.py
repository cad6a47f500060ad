"""What every layer must do, whatever it computes: one function for each property."""

import json
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops, tree

from kopt._backend import sum_over_replicas
from kopt._checks import check_choice
from kopt._keras import give_mask, is_seed, mask_of
from kopt.testing import backends
from kopt.testing.runs import expect_error


def check_layer(layer, inputs, *, smooth=True, replicas=None, added_loss=None):
    """Checks that a layer keeps the contract that Keras's and kopt's do; works for any `keras.layers.Layer`.

    What it computes is compared with nothing: whether that is the paper's only a computation of your own can tell. What
    is checked: the config, and errors for arguments that it does not have; the round trip through a `.keras` file;
    shapes, for any batch size, with and without values; that inference is no matter of chance and leaves no trace; that
    eager, graph and XLA agree; that gradients are those of finite differences, for the inputs and each weight, the
    noise held still; float64, bfloat16 and mixed precision; masks; seeds; `fit`; `data_format`, or `axis`; that two
    replicas give what one device gives (where TensorFlow has two logical devices); that losses which it adds are finite
    scalars, in 32 bits under mixed precision, of the gradients that they ought to have, and once in a model's loss.

    Args:
        layer: an instance, whose arguments are in its config; it is only copied.
        inputs: an array of shape `(batch, ...)` and float32 that it can be called with, or a list of several; at least
            four rows.
        smooth: whether it can be differentiated in training and at inference, up to a set of points with no volume.
        replicas: whether in training two replicas must give what one device gives: outputs, gradients and state. None
            for yes, unless it draws random numbers.
        added_loss: when the layer adds to the loss, by its documentation: `"always"`, `"training"` (at inference it is
            zero or absent), or `"never"`; None not to ask.

    Returns:
        The names of the checks that ran.

    Raises:
        AssertionError: a property does not hold; the message says which, and by how much.
        TypeError: `layer` is no `keras.layers.Layer`.
        ValueError: `added_loss` is another word.

    Example:
        >>> kopt.testing.check_layer(kopt.layers.DropPath(0.5), np.ones((8, 3), "float32"))  # doctest: +SKIP
    """
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"check_layer: layer must be an instance of keras.layers.Layer, got {layer!r}.")
    check_choice("check_layer", (None, "always", "training", "never"), added_loss=added_loss)
    case = Case(layer, inputs)
    checks = [check_config, check_inference, check_shapes, check_saved, check_compiled, check_mask]
    checks += [check_layer_dtypes, check_layer_fit] if case.continuous else []
    exact = backends.BACKEND != "jax"  # where Keras computes some functions in float32, whatever they are given
    checks += [check_slopes] if smooth and case.continuous and exact else []
    checks += [check_seeds] if case.noisy else []
    checks += [check_data_format] if case.channels_first else []
    if backends.two_devices() and (not case.noisy if replicas is None else replicas):
        checks.append(check_layer_replicas)
    for check in checks:
        check(case)
    check_added_loss(case, added_loss)
    return [*(check.__name__ for check in checks), "check_added_loss"]


class Case:
    """A layer as a pure function of its weights, its state and its inputs.

    Attributes:
        layer: a copy, built.
        inputs: a list of arrays.
        continuous: whether these are floats, all of them.
        noisy: whether it draws random numbers in training.
        channels_first: the argument with which channels are the second axis; empty where there is none.
    """

    def __init__(self, layer, inputs):
        self.config, self.kind = layer.get_config(), type(layer)
        self.several = isinstance(inputs, list | tuple)
        self.inputs = [np.asarray(x) for x in (inputs if self.several else [inputs])]
        self.channels_first = dict(data_format="channels_first") if "data_format" in self.config else {}
        if self.config.get("axis") == -1:
            self.channels_first = dict(axis=1)
        self.continuous = all(x.dtype.kind == "f" for x in self.inputs)
        self.layer = self.copy()
        trainable, others, inputs = self.state()
        _, after = self.pure()(trainable, others, inputs)
        seeds = map(is_seed, self.layer.non_trainable_variables)
        self.noisy = any(seed and not _same([a], [b]) for seed, a, b in zip(seeds, others, after, strict=True))

    def copy(self, **changes):
        """Another instance with the same arguments, but for these; built, with the weights of the first."""
        layer = self.kind.from_config(_with_dtype(self.config, changes.pop("dtype", None)) | changes)
        layer.build(self.packed([x.shape for x in self.inputs]))
        if hasattr(self, "layer"):
            for variable, value in zip(layer.variables, self.layer.variables, strict=True):
                if not is_seed(variable):
                    variable.assign(ops.cast(value.value, variable.dtype))
        return layer

    def packed(self, parts):
        """One for each input, as the layer takes them."""
        return list(parts) if self.several else parts[0]

    def outputs(self, layer, training, inputs=None):
        """What the layer gives for the inputs, as a list."""
        how = dict(training=training) if layer._call_has_training_arg else {}
        return tree.flatten(layer(self.packed([*map(ops.convert_to_tensor, inputs or self.inputs)]), **how))

    def pure(self, layer=None, training=True, losses=False):
        """A function of (trainable values, other values, inputs), lists all; returns outputs and other values.

        Losses that the layer adds are behind the outputs where `losses` says so.
        """
        layer = self.layer if layer is None else layer

        def call(trainable, others, inputs):
            how = dict(training=training) if layer._call_has_training_arg else {}
            found = layer.stateless_call(trainable, others, self.packed(inputs), return_losses=True, **how)
            outputs, others, added = found
            return [*tree.flatten(outputs), *(added if losses else ())], others

        return call

    def state(self, layer=None, inputs=None, dtype=None):
        """The arguments of the function that `pure` returns."""
        layer, inputs = self.layer if layer is None else layer, self.inputs if inputs is None else inputs
        inputs = [ops.cast(x, dtype or layer.compute_dtype) if x.dtype.kind == "f" else x for x in inputs]
        values = [[ops.copy(v.value) for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)]
        return *values, [ops.convert_to_tensor(x) for x in inputs]


def check_config(case):
    """The config is JSON and rebuilds the layer; an argument that there is none of is an error."""
    copy = case.kind.from_config(json.loads(json.dumps(case.config)))
    assert json.loads(json.dumps(copy.get_config())) == json.loads(json.dumps(case.config)), "the config changes"
    expect_error((TypeError, ValueError), lambda: case.kind.from_config(case.config | dict(no_such=1)))


def check_saved(case):
    """A saved and loaded model has the layer's weights, and computes the same."""
    with tempfile.TemporaryDirectory() as folder:
        (model := _model(case, case.copy())).save(file := Path(folder) / "model.keras")
        loaded = keras.saving.load_model(file)
    _agree(model.get_weights(), loaded.get_weights(), 0, "a loaded model has other weights")
    first, second = (m(tree.pack_sequence_as(m.input, case.inputs)) for m in (model, loaded))  # Keras 3.10 loads a list
    _agree([first], [second], 1e-6, "a loaded model computes something else")


def check_shapes(case):
    """What comes out has the shape and type that was announced, for any batch size."""
    symbolic = case.copy()(case.packed([keras.KerasTensor((None, *x.shape[1:]), x.dtype) for x in case.inputs]))
    for rows in (1, 3, len(case.inputs[0])):
        for training in (False, True):
            call = backends.at_once(case.pure(training=training))
            outputs, _ = call(*case.state(inputs=[x[:rows] for x in case.inputs]))
            for output, announced in zip(outputs, tree.flatten(symbolic), strict=True):
                expected = (rows, *announced.shape[1:])
                fits = all(a in (None, b) for a, b in zip(expected, output.shape, strict=True))
                assert fits, f"announced the shape {expected}, gave {tuple(output.shape)}"
                assert keras.backend.standardize_dtype(output.dtype) == announced.dtype


def check_inference(case):
    """At inference two calls give the same, and nothing is kept of them."""
    call, (trainable, others, inputs) = case.pure(training=False), case.state()
    _, after = call(trainable, others, inputs)
    _agree(others, after, 0, "inference changes the state")
    first, second = (case.outputs(case.layer, training=False) for _ in range(2))
    _agree(first, second, 0, "inference is a matter of chance")


def check_compiled(case):
    """Eager, graph and XLA agree; in training with noise XLA may draw other numbers."""
    for training in (False, True):
        call, arguments = case.pure(training=training, losses=True), case.state()
        outputs, state = call(*arguments)
        for xla in backends.graphs():
            function = backends.compiled(call, xla)
            found, after = function(*arguments)
            if xla and (foreign := backends.not_for_tpus(function, *arguments)):
                raise AssertionError(f"has {', '.join(foreign)}, which a TPU has not, with training={training}")
            if training and xla and case.noisy and backends.BACKEND != "jax":
                assert all(np.isfinite(_array(x)).all() for x in found), "not finite under XLA"
            else:
                _agree([*outputs, *state], [*found, *after], 1e-4, f"differs in a graph, with jit_compile={xla}")


def check_slopes(case):
    """Gradients are those of finite differences in float64, the noise held still."""
    layer = case.copy(dtype="float64")
    for training in (False, True):
        call, (trainable, others, inputs) = case.pure(layer, training, losses=True), case.state(layer, dtype="float64")
        rng = np.random.default_rng(1)
        weights = [ops.convert_to_tensor(rng.standard_normal(x.shape)) for x in call(trainable, others, inputs)[0]]
        at = [*trainable, *inputs]

        split = len(trainable)

        def value(tensors, call=call, split=split, others=others, weights=weights):
            outputs, _ = call(tensors[:split], others, tensors[split:])
            return sum(ops.sum(x * w) for x, w in zip(outputs, weights, strict=True))

        slopes = backends.gradients(value, at)
        for i, slope in enumerate(slopes):
            away, h = ops.convert_to_tensor(rng.standard_normal(slope.shape)), 1e-6
            ahead, behind = (value([*at[:i], at[i] + sign * h * away, *at[i + 1 :]]) for sign in (1, -1))
            difference, expected = float(ahead - behind) / (2 * h), float(ops.sum(slope * away))
            error = abs(difference - expected) / (1 + abs(difference))
            name = [*(v.name for v in layer.trainable_variables), *("inputs" for _ in inputs)][i]
            assert error < 1e-5, f"the gradient of {name}, training={training}, is off by {error:.1e}"


def check_layer_dtypes(case):
    """Outputs have the policy's type and are finite, and those in few bits follow those in many."""
    exact = case.outputs(case.layer, training=False)
    for policy, close in {"float64": 1e-4, "bfloat16": 0.1, "mixed_bfloat16": 0.1, "mixed_float16": 0.02}.items():
        if policy == "float64" and backends.BACKEND == "jax":
            continue
        layer = case.copy(dtype=policy)
        for training in (True, False):
            outputs = case.outputs(layer, training)
            found = {keras.backend.standardize_dtype(x.dtype) for x in outputs}
            assert found == {layer.compute_dtype}, f"{policy} gives {found}"
            assert all(np.isfinite(_array(x)).all() for x in outputs), f"not finite in {policy}"
        layer.set_weights(case.layer.get_weights())  # which training changed
        size = 1 + max(np.abs(_array(x)).max() for x in exact)
        _agree(exact, case.outputs(layer, training=False), close * size, f"{policy} departs from float32")


def check_added_loss(case, when=None):
    """Losses that a layer adds are finite scalars in 32 bits, there when they are to be, and counted once."""
    found = {}
    for policy in ("float32", "mixed_bfloat16") if case.continuous else ("float32",):
        layer = case.copy(dtype=policy)
        for training in (True, True, False):
            case.outputs(layer, training)
            found[training] = losses = [ops.convert_to_tensor(loss) for loss in layer.losses]
            types = {keras.backend.standardize_dtype(loss.dtype) for loss in losses}
            assert types <= {"float32", "float64"}, f"{policy} adds a loss of {', '.join(sorted(types))}"
            assert all(loss.shape == () for loss in losses), f"adds a loss of shape {[tuple(x.shape) for x in losses]}"
            assert all(np.isfinite(_array(loss)) for loss in losses), f"{policy} adds a loss that is not finite"
    in_training, at_inference = (any(_array(loss) for loss in found[training]) for training in (True, False))
    if when is not None:
        now = "always" if in_training and at_inference else "training" if in_training else "inference"
        now = now if in_training or at_inference else "never"
        assert now == when, f"adds to the loss: {now}, not {when}"
    if not (in_training or at_inference):
        return
    layer = case.copy()
    model = _model(case, layer)
    x = case.packed([*map(ops.convert_to_tensor, case.inputs)])
    y = _array(model(x)).astype("float32")
    expected = sum(float(_array(loss)) for loss in layer.losses)
    model.compile("sgd", "mse", jit_compile=False)  # whose own loss is zero at these targets
    total = model.evaluate(case.packed(case.inputs), y, batch_size=len(y), verbose=0)
    assert abs(total - expected) <= 1e-5 * (1 + abs(expected)), f"adds {expected:.6g}, a model's loss has {total:.6g}"


def check_mask(case):
    """A mask passes through a layer that says so, as its `compute_mask` has it."""
    if not case.layer.supports_masking or case.inputs[0].ndim < 3:
        return
    masked = [ops.convert_to_tensor(x) for x in case.inputs]
    mask = np.arange(case.inputs[0].shape[1]) < 1 + np.arange(len(case.inputs[0]))[:, None]
    for x in masked:
        give_mask(x, ops.convert_to_tensor(mask))
    layer, masks = case.copy(), case.packed([mask for _ in masked])
    expected = tree.flatten(layer.compute_mask(case.packed(masked), masks))[0]
    if expected is None:  # a recurrent layer consumes it
        return
    passed = mask_of(tree.flatten(layer(case.packed(masked)))[0])
    assert passed is not None, "the mask is lost"
    assert np.array_equal(_array(passed), expected), "the mask is changed"


def check_seeds(case):
    """A seed fixes the draws, another one changes them, and each call draws anew."""

    def calls(**changes):
        layer = case.copy(**changes)
        return [[_array(x) for x in case.outputs(layer, training=True)] for _ in range(8)]

    assert "seed" in case.config, "a layer that draws random numbers must take a seed"
    first, again, other = calls(seed=1), calls(seed=1), calls(seed=2)
    assert all(_same(a, b) for a, b in zip(first, again, strict=True)), "the same seed draws other numbers"
    assert not all(_same(a, b) for a, b in zip(first, other, strict=True)), "another seed draws the same numbers"
    assert not all(_same(first[0], later) for later in first[1:]), "each call draws the same numbers"
    fresh = calls(seed=None), calls(seed=None)
    assert not all(_same(a, b) for a, b in zip(*fresh, strict=True)), "without a seed the draws are the same"


def check_layer_fit(case):
    """In `fit` the loss is finite, and each trainable weight moves."""
    layer = case.copy()
    before = [v.numpy() for v in layer.trainable_variables]
    model = _model(case, layer)
    output = model.output
    model = keras.Model(model.input, ops.mean(output, axis=tuple(range(1, len(output.shape) - 1))))
    target = np.asarray(np.random.default_rng(2).standard_normal(model.output.shape[1:]), "float32")
    rows = len(case.inputs[0])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model does not have any trainable weights")
        history = model.fit(
            case.packed(case.inputs), np.stack([target] * rows), batch_size=rows // 2, epochs=2, verbose=0
        )
    assert np.isfinite(history.history["loss"]).all(), "fit gives a loss that is not finite"
    for variable, value in zip(layer.trainable_variables, before, strict=True):
        assert not np.array_equal(variable.numpy(), value), f"fit does not move {variable.name}"


def check_data_format(case):
    """Channels first is channels last, transposed."""
    if case.config.get("data_format") == "channels_first":
        return
    turned = [np.moveaxis(x, -1, 1) if x.ndim > 2 else x for x in case.inputs]
    first = case.kind.from_config(case.config | case.channels_first)
    first.build(case.packed([x.shape for x in turned]))
    for variable, value in zip(first.variables, case.layer.variables, strict=True):
        variable.assign(value)
    for training in (False,) if case.noisy else (False, True):
        last, _ = backends.at_once(case.pure(training=training))(*case.state())
        found, _ = backends.at_once(case.pure(first, training))(*case.state(first, turned))
        _agree(last, [np.moveaxis(_array(x), 1, -1) for x in found], 1e-5, "channels_first computes something else")


def check_layer_replicas(case):
    """Two replicas with three rows and the rest give what one device gives: outputs, gradients and state."""
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        two = case.copy(dtype="float64")
    one = case.copy(dtype="float64")
    inputs = [ops.cast(x, "float64") for x in case.inputs]
    directions = [np.random.default_rng(3).standard_normal(x.shape) for x in case.outputs(one, False, inputs)]
    parts = [([x[rows] for x in inputs], [d[rows] for d in directions]) for rows in (slice(3), slice(3, None))]

    def look(layer, part):
        inputs, directions = part

        def value(_):
            outputs.extend(case.outputs(layer, True, inputs))
            return sum(ops.sum(x * d) for x, d in zip(outputs, directions, strict=True))

        outputs = []
        slopes = backends.gradients(value, [v.value for v in layer.trainable_variables])
        return [*outputs, *sum_over_replicas(slopes)]

    number = len(directions)
    whole = look(one, (inputs, directions))
    first, second = backends.on_replicas(strategy, lambda part: look(two, part), parts)
    outputs = [np.concatenate([_array(a), _array(b)]) for a, b in zip(first[:number], second[:number], strict=True)]
    _agree(whole, [*outputs, *first[number:]], 1e-6, "two replicas differ from one device")
    kept, kept_by_two = ([v for v in layer.variables if not is_seed(v)] for layer in (one, two))
    _agree(kept, kept_by_two, 1e-6, "two replicas keep another state than one device")


def _with_dtype(config, dtype):
    """A layer's config with another dtype, for the layers inside, too."""
    if dtype is None or not isinstance(config, dict):
        return config
    inside = {name: _with_dtype(value, dtype) for name, value in config.items()}
    return inside | (dict(dtype=dtype) if "dtype" in config and "name" in config else {})


def _model(case, layer):
    inputs = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in case.inputs]
    return keras.Model(case.packed(inputs), tree.flatten(layer(case.packed(inputs)))[0])


def _array(x):
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float64") if "float" in str(x.dtype) else x))


def _same(one, other):
    return all(np.array_equal(_array(a), _array(b)) for a, b in zip(one, other, strict=True))


def _agree(one, other, tolerance, message):
    for a, b in zip(one, other, strict=True):
        away = float(np.abs(_array(a).astype("float64") - _array(b).astype("float64")).max(initial=0))
        assert away <= tolerance, f"{message}: by {away:.1e}"
