"""What every optimizer must do, whatever its rule: one function for each property."""

import json
import pickle
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kopt.optimizers.base import Optimizer
from kopt.testing import backends, runs


def check_optimizer(optimizer):
    """Checks that an optimizer keeps kopt's contract; works for yours too, if it derives from `kopt.Optimizer`.

    Its rule is compared with nothing: whether it is the paper's only a reference trajectory can tell. What is checked:
    the config, scikit-learn's parameters and pickling; that each hyperparameter changes the path, may be a schedule,
    and may be set after tracing; that a learning rate of zero moves nothing, through `fit`; that a saved and loaded
    model continues as if nothing had happened; that eager, graph and XLA agree; float64, bfloat16 and mixed precision;
    sparse, missing and infinite gradients; accumulation; `no_decay`; that two replicas give what one device gives, also
    with clipping, decay, averaging and accumulation (where TensorFlow has two logical devices).

    Args:
        optimizer: an instance; it is only copied. Give it a learning rate at which eight steps matter.

    Returns:
        The names of the checks that ran.

    Raises:
        AssertionError: a property does not hold; the message says which, and by how much.
        TypeError: `optimizer` is no instance of `kopt.Optimizer`, or has a schedule for a hyperparameter.

    Example:
        >>> kopt.testing.check_optimizer(kopt.Lion(learning_rate=0.01))  # doctest: +SKIP
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"check_optimizer: optimizer must be an instance of kopt.Optimizer, got {optimizer!r}.")
    for name, value in optimizer.get_params().items():
        if callable(value):  # the checks put schedules in the place of each number themselves
            raise TypeError(f"check_optimizer: {name} must be a number, got {value!r}.")
    checks = optimizer_checks()
    for check in checks:
        check(optimizer)
    return [check.__name__ for check in checks]


def optimizer_checks():
    """Returns the checks that run here, to parametrize a test with: each takes an optimizer instance."""
    replicas = [check_replicas] if backends.two_devices() else []
    return [
        check_config,
        check_parameters,
        check_hyperparameters_matter,
        check_compiled,
        check_schedules,
        check_elementwise,
        check_gradients,
        check_dtypes,
        check_no_decay,
        check_fit,
        check_continues,
        check_options,
        *replicas,
    ]


# ---- the properties --------------------------------------------------------------------------------------------------


def check_config(optimizer):
    """The config is JSON, rebuilds the optimizer, and so do clone and pickle."""
    config = optimizer.get_config()
    assert json.loads(json.dumps(config)) == json.loads(json.dumps(runs.copy(optimizer).get_config())), config
    stored = keras.saving.serialize_keras_object(optimizer)
    for copy in (keras.saving.deserialize_keras_object(stored), pickle.loads(pickle.dumps(optimizer))):
        assert type(copy) is type(optimizer), f"{copy!r} came back for {optimizer!r}"
        assert copy.get_config() == config, f"{copy!r} came back for {optimizer!r}"


def check_parameters(optimizer):
    """Parameters are set by name, checked, and kept apart from those of a clone."""
    copy, rate = runs.copy(optimizer), runs.place(optimizer, "learning_rate")
    assert repr(copy) == repr(optimizer)
    assert copy.set_params(**{rate: 0.125}) is copy, "set_params must return the optimizer"
    assert copy.get_params()[rate] == 0.125
    assert optimizer.get_params()[rate] != 0.125, "a clone shares its parameters"
    runs.expect_error(ValueError, lambda: copy.set_params(no_such_hyperparameter=1.0))
    for name in runs.numbers(optimizer):
        runs.expect_error(TypeError, lambda name=name: copy.set_params(**{name: "a word"}))
        if not runs.interval(optimizer, name).startswith("(-inf"):
            runs.expect_error(ValueError, lambda name=name: copy.set_params(**{name: -1.0}))


def check_hyperparameters_matter(optimizer):
    """Each number in the signature changes the path."""
    for name, value in runs.other_values(optimizer).items():
        changed = runs.path(optimizer, **{name: value})
        assert runs.distance(runs.path(optimizer), changed) > 1e-7, f"{name}={value} gives the path of {optimizer!r}"


def check_compiled(optimizer):
    """Eager, graph and XLA agree; a step is traced once; what is set afterwards acts as if given at the start."""
    ways = [runs.Run(runs.copy(optimizer), compiled=True, xla=xla) for xla in backends.graphs()]
    for run in ways:
        assert runs.distance(run(), runs.path(optimizer)) < 2e-5, "compiled and eager paths differ"
    foreign = backends.not_for_tpus(ways[0].step, ways[0].gradients[0])
    assert not foreign, f"a step has {', '.join(foreign)}, which a TPU has not"
    graph = ways[-1]
    for name, value in runs.other_values(optimizer).items():
        graph.reset()
        before = graph.optimizer.get_params()[name]
        try:
            graph.optimizer.set_params(**{name: value})
        except ValueError:
            fresh = runs.Run(runs.copy(optimizer, **{name: value}))
            assert runs.is_initial(name) or len(fresh.state) != len(graph.state), f"{name} must be settable"
            continue
        assert not runs.is_initial(name), f"{name} was set, but the slots are filled already"
        path = runs.path(optimizer, **{name: value})
        assert runs.distance(graph(), path) < 2e-5, f"{name}={value}, set after tracing, does not act"
        graph.optimizer.set_params(**{name: before})
    assert all(run.traces == 1 for run in ways), "a step was traced more than once"


def check_schedules(optimizer):
    """Each number may be a schedule: a constant one changes nothing, and it is asked for step 0, 1, 2 and so on."""
    constant = {
        name: keras.optimizers.schedules.PiecewiseConstantDecay([10**6], [value, value])
        for name, value in runs.numbers(optimizer).items()
    }
    scheduled = runs.copy(optimizer, **constant)
    assert scheduled.get_config() == runs.copy(scheduled).get_config(), "schedules do not survive a copy"
    assert runs.distance(runs.path(optimizer), runs.run(scheduled)) < 2e-5, (
        "constant schedules depart from the constants"
    )
    stop = keras.optimizers.schedules.PiecewiseConstantDecay([2], [runs.rate(optimizer), 0.0])
    stopped, early = runs.Run(runs.copy(optimizer, learning_rate=stop)), runs.Run(runs.copy(optimizer))
    stopped(steps=6)
    early(steps=3)
    assert runs.distance(stopped.trained, early.trained) < 2e-5, "a schedule does not count steps from 0"


def check_elementwise(optimizer):
    """If the rule says that it is elementwise, a weight's path does not depend on the weights that lie beside it."""
    if not optimizer._is_elementwise or runs.sums_over_weights(optimizer):
        return
    for number, (name, shape) in enumerate(runs.SHAPES.items()):
        alone = runs.run(runs.copy(optimizer), shapes={name: shape})
        beside = runs.path(optimizer)[number : number + 1]
        assert runs.distance(beside, alone) < 1e-5, "elementwise is True, but other weights matter"


def check_gradients(optimizer):
    """Sparse gradients do what dense ones do; a weight without a gradient stays; zeros give finite weights."""
    rows = np.array([0, 2, 2], "int32")
    values = np.random.default_rng(3).standard_normal((3, 3)).astype("float32")
    dense = np.zeros((4, 3), "float32")
    np.add.at(dense, rows, values)
    ends = []
    for gradient in (ops.convert_to_tensor(dense), backends.sparse_rows(values, rows, (4, 3))):
        run = runs.Run(runs.copy(optimizer))
        for _ in range(3):
            with warnings.catch_warnings(category=UserWarning, action="ignore"):  # Keras names the weight left out
                run.step([None, gradient, ops.zeros(runs.SHAPES["convolution"])])
        ends.append(run.weights())
        assert np.array_equal(ends[-1][0], run.start[0]), "a weight without a gradient moved"
        assert np.isfinite(ends[-1][2]).all(), "a gradient of zeros gave weights that are not finite"
    assert runs.distance(*ends) < 1e-6, "a sparse gradient is not what its dense form is"


def check_dtypes(optimizer):
    """Weights keep their type; float64 is not rounded on the way; bfloat16 follows float32, with slots in float32."""
    run = runs.Run(runs.copy(optimizer), dtype="bfloat16")
    path, exact = run(), runs.path(optimizer)
    assert {v.dtype for v in run.variables} == {"bfloat16"}
    slots = [(pack.slots[n].dtype, v) for pack in run.optimizer._kept.packs for n, v in pack.variables.items()]
    assert all(v.dtype == (own or "float32") for own, v in slots), "slots of a bfloat16 weight must be float32"
    rounding = runs.STEPS * 2**-8 * max(float(np.abs(w).max()) for w in exact)  # a unit in the last place for each step
    assert runs.distance(path, exact) < rounding, "bfloat16 weights do not follow the float32 path"
    if keras.backend.backend() != "jax":  # which has no float64 unless told so
        run = runs.Run(runs.copy(optimizer), dtype="float64")
        path = run()
        assert {v.dtype for v in run.variables} == {"float64"}
        assert all(v.dtype == "float64" for v in run.optimizer.variables if "float" in v.dtype), "state is rounded"
        assert runs.distance(path, exact) < 1e-4, "the float64 path is another than the float32 path"


def check_no_decay(optimizer):
    """Decay spares the weights that `no_decay` matches, and still does so after the config's round trip."""
    decayed, plain = runs.path(optimizer, weight_decay=0.5), runs.path(optimizer, weight_decay=0.0)
    spared = runs.run(runs.copy(runs.copy(optimizer, weight_decay=0.5, no_decay=[".*"])))
    vector, matrix, _ = runs.run(runs.copy(runs.copy(optimizer, weight_decay=0.5, no_decay=["^matr"])))
    assert runs.distance(plain[:1], [vector]) > 1e-6, "weight_decay does nothing"
    assert runs.distance(decayed[1:2], [matrix]) > 1e-6, "a weight that no_decay matches decays"
    assert runs.distance(plain, spared) < 1e-5, "weights decay, although no_decay matches each"
    if not runs.sums_over_weights(optimizer):
        assert runs.distance([matrix], plain[1:2]) < 1e-5, "a weight that no_decay matches decays"
        assert runs.distance([vector], decayed[:1]) < 1e-5, "a weight that no_decay does not match does not decay"


def check_fit(optimizer):
    """Through `fit`, eager, graph and mixed: a learning rate of zero moves nothing, and the rest agree.

    Under XLA, too, where it looks at the batch; a step from gradients alone has been compiled by `check_compiled`.
    """
    if not runs.fits(optimizer):
        return
    model = runs.small_model(runs.copy(optimizer, learning_rate=0.0))
    start, rate = model.get_weights(), runs.rate(optimizer)
    model.optimizer.build(model.trainable_variables)
    state = [v.numpy() for v in model.optimizer.variables]
    assert runs.distance(start, runs.fitted(model).get_weights()) == 0, "a learning rate of zero moved the weights"
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)
    model.optimizer.learning_rate = rate
    graph = runs.fitted(model).get_weights()
    eager = runs.fitted(runs.small_model(runs.copy(optimizer), run_eagerly=True)).get_weights()
    mixed = runs.fitted(runs.small_model(runs.copy(optimizer), policy="mixed_float16", run_eagerly=True)).get_weights()
    assert runs.distance(start, graph) > 1e-6, "fit moved nothing"
    if runs.looks(optimizer):
        xla = runs.fitted(runs.small_model(runs.copy(optimizer), jit_compile=True)).get_weights()
        assert runs.distance(graph, xla) < 2e-4, "fit differs under XLA"
    assert runs.distance(graph, eager) < 2e-4, "fit differs when run eagerly"
    assert all(np.isfinite(w).all() for w in mixed), "mixed precision gave weights that are not finite"


def check_continues(optimizer):
    """Saved, loaded and trained on is the same as trained on: state, hyperparameters and masks."""
    if not runs.fits(optimizer):
        return
    model = runs.fitted(runs.small_model(runs.copy(optimizer, weight_decay=0.01, no_decay="bias"), run_eagerly=True))
    with tempfile.TemporaryDirectory() as folder:
        model.save(file := Path(folder) / "model.keras")
        loaded = keras.saving.load_model(file)
    assert repr(loaded.optimizer) == repr(model.optimizer)
    assert runs.distance(runs.fitted(model).get_weights(), runs.fitted(loaded).get_weights()) < 1e-6, (
        "a loaded model departs"
    )


def check_options(optimizer):
    """Accumulated gradients step once with their mean; steps that are not finite are left out and counted."""
    run, accumulating = runs.Run(runs.copy(optimizer)), runs.copy(optimizer, gradient_accumulation_steps=2)
    twice = runs.Run(accumulating) if runs.accumulates(optimizer) else None
    uneven = 0.0 if runs.looks(optimizer) else 0.5  # one that looks steps along no mean of gradients
    for gradients in run.gradients[:3]:
        run.step(gradients)
        if twice:
            twice.step([(1 + uneven) * g for g in gradients])
            twice.step([(1 - uneven) * g for g in gradients])
    if twice:
        assert runs.distance(run.weights(), twice.weights()) < 2e-5, "accumulated gradients are not their mean"
    else:
        runs.expect_error(ValueError, lambda: runs.Run(accumulating))
    guarded = runs.Run(runs.copy(optimizer, skip_nonfinite=True))
    for gradients in guarded.gradients[:3]:
        guarded.step([gradients[0], gradients[1] * np.inf, gradients[2]])
        guarded.step(gradients)
    assert runs.distance(run.weights(), guarded.weights()) < 2e-5, "a step that is not finite leaves traces"
    assert guarded.optimizer.skipped_steps == 3


def check_replicas(optimizer):
    """Two replicas give what one device gives, also clipped, decayed, averaged and with accumulated gradients."""
    options = dict(global_clipnorm=0.05, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2)
    options |= dict(weight_decay=0.1, no_decay="vector")
    if not runs.accumulates(optimizer):
        del options["gradient_accumulation_steps"]
    one = runs.Run(runs.copy(optimizer, **options), dtype="float64")
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        two = runs.Run(runs.copy(optimizer, **options), dtype="float64")
    two.step = backends.replicated_step(strategy, two.step)
    assert runs.distance(one(), two()) < 1e-6, "two replicas differ from one device"
