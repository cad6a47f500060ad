"""What every optimizer must do, whatever its rule: one function for each property."""

import functools
import json
import pickle
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kopt.optimizers.base import Optimizer
from kopt.optimizers.wrapper import Wrapper
from kopt.testing import backends

SHAPES = {"vector": (3,), "matrix": (4, 3), "convolution": (2, 2, 3, 2)}
STEPS = 12


def check_optimizer(optimizer):
    """Checks that an optimizer keeps kopt's contract; works for yours too, if it derives from `kopt.Optimizer`.

    Its rule is compared with nothing: whether it is the paper's only a reference trajectory can tell. What is checked:
    the config, scikit-learn's parameters and pickling; that each hyperparameter changes the path, may be a schedule,
    and may be set after tracing; that a learning rate of zero moves nothing, through `fit`; that a saved and loaded
    model continues as if nothing had happened; that eager, graph and XLA agree; float64, bfloat16 and mixed precision;
    sparse, missing and infinite gradients; accumulation; `no_decay`; that two replicas give what one device gives, also
    with clipping, decay, averaging and accumulation (where TensorFlow has two logical devices).

    Args:
        optimizer: an instance; it is only copied. Give it a learning rate at which twelve steps matter.

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
    assert json.loads(json.dumps(config)) == json.loads(json.dumps(_copy(optimizer).get_config())), config
    stored = keras.saving.serialize_keras_object(optimizer)
    for copy in (keras.saving.deserialize_keras_object(stored), pickle.loads(pickle.dumps(optimizer))):
        assert type(copy) is type(optimizer), f"{copy!r} came back for {optimizer!r}"
        assert copy.get_config() == config, f"{copy!r} came back for {optimizer!r}"


def check_parameters(optimizer):
    """Parameters are set by name, checked, and kept apart from those of a clone."""
    copy, rate = _copy(optimizer), _place(optimizer, "learning_rate")
    assert repr(copy) == repr(optimizer)
    assert copy.set_params(**{rate: 0.125}) is copy, "set_params must return the optimizer"
    assert copy.get_params()[rate] == 0.125
    assert optimizer.get_params()[rate] != 0.125, "a clone shares its parameters"
    _expect_error(ValueError, lambda: copy.set_params(no_such_hyperparameter=1.0))
    for name in _numbers(optimizer):
        _expect_error(TypeError, lambda name=name: copy.set_params(**{name: "a word"}))
        if not _interval(optimizer, name).startswith("(-inf"):
            _expect_error(ValueError, lambda name=name: copy.set_params(**{name: -1.0}))


def check_hyperparameters_matter(optimizer):
    """Each number in the signature changes the path."""
    for name, value in _other_values(optimizer).items():
        changed = _path(optimizer, **{name: value})
        assert _distance(_path(optimizer), changed) > 1e-7, f"{name}={value} gives the path of {optimizer!r}"


def check_compiled(optimizer):
    """Eager, graph and XLA agree; a step is traced once; what is set afterwards acts as if given at the start."""
    xla, graph = (_Run(_copy(optimizer), compiled=True, xla=xla) for xla in (True, False))
    for run in (xla, graph):
        assert _distance(run(), _path(optimizer)) < 2e-5, "compiled and eager paths differ"
    for name, value in _other_values(optimizer).items():
        graph.reset()
        before = graph.optimizer.get_params()[name]
        try:
            graph.optimizer.set_params(**{name: value})
        except ValueError:
            fresh = _Run(_copy(optimizer, **{name: value}))
            assert _is_initial(name) or len(fresh.state) != len(graph.state), f"{name} must be settable"
            continue
        assert not _is_initial(name), f"{name} was set, but the slots are filled already"
        path = _path(optimizer, **{name: value})
        assert _distance(graph(), path) < 2e-5, f"{name}={value}, set after tracing, does not act"
        graph.optimizer.set_params(**{name: before})
    assert (xla.traces, graph.traces) == (1, 1), "a step was traced more than once"


def check_schedules(optimizer):
    """Each number may be a schedule: a constant one changes nothing, and it is asked for step 0, 1, 2 and so on."""
    constant = {
        name: keras.optimizers.schedules.PiecewiseConstantDecay([10**6], [value, value])
        for name, value in _numbers(optimizer).items()
    }
    scheduled = _copy(optimizer, **constant)
    assert scheduled.get_config() == _copy(scheduled).get_config(), "schedules do not survive a copy"
    assert _distance(_path(optimizer), _run(scheduled)) < 2e-5, "constant schedules depart from the constants"
    stop = keras.optimizers.schedules.PiecewiseConstantDecay([2], [_rate(optimizer), 0.0])
    stopped, early = _Run(_copy(optimizer, learning_rate=stop)), _Run(_copy(optimizer))
    stopped()
    early(steps=3)
    assert _distance(stopped.trained, early.trained) < 2e-5, "a schedule does not count steps from 0"


def check_elementwise(optimizer):
    """If the rule says that it is elementwise, a weight's path does not depend on the weights that lie beside it."""
    if not optimizer._is_elementwise or _sums_over_weights(optimizer):
        return
    for number, (name, shape) in enumerate(SHAPES.items()):
        alone = _run(_copy(optimizer), shapes={name: shape})
        beside = _path(optimizer)[number : number + 1]
        assert _distance(beside, alone) < 1e-5, "elementwise is True, but other weights matter"


def check_gradients(optimizer):
    """Sparse gradients do what dense ones do; a weight without a gradient stays; zeros give finite weights."""
    rows = np.array([0, 2, 2], "int32")
    values = np.random.default_rng(3).standard_normal((3, 3)).astype("float32")
    dense = np.zeros((4, 3), "float32")
    np.add.at(dense, rows, values)
    ends = []
    for gradient in (ops.convert_to_tensor(dense), backends.sparse_rows(values, rows, (4, 3))):
        run = _Run(_copy(optimizer))
        for _ in range(3):
            with warnings.catch_warnings(category=UserWarning, action="ignore"):  # Keras names the weight left out
                run.optimizer.apply([None, gradient, ops.zeros(SHAPES["convolution"])], run.variables)
        ends.append(run.weights())
        assert np.array_equal(ends[-1][0], run.start[0]), "a weight without a gradient moved"
        assert np.isfinite(ends[-1][2]).all(), "a gradient of zeros gave weights that are not finite"
    assert _distance(*ends) < 1e-6, "a sparse gradient is not what its dense form is"


def check_dtypes(optimizer):
    """Weights keep their type; float64 is not rounded on the way; bfloat16 follows float32, with slots in float32."""
    run = _Run(_copy(optimizer), dtype="bfloat16")
    path, exact = run(), _path(optimizer)
    assert {v.dtype for v in run.variables} == {"bfloat16"}
    slots = [(pack.slots[n].dtype, v) for pack in run.optimizer._kept.packs for n, v in pack.variables.items()]
    assert all(v.dtype == (own or "float32") for own, v in slots), "slots of a bfloat16 weight must be float32"
    rounding = STEPS * 2**-8 * max(float(np.abs(w).max()) for w in exact)  # a unit in the last place for each step
    assert _distance(path, exact) < rounding, "bfloat16 weights do not follow the float32 path"
    if keras.backend.backend() != "jax":  # which has no float64 unless told so
        run = _Run(_copy(optimizer), dtype="float64")
        path = run()
        assert {v.dtype for v in run.variables} == {"float64"}
        assert all(v.dtype == "float64" for v in run.optimizer.variables if "float" in v.dtype), "state is rounded"
        assert _distance(path, exact) < 1e-4, "the float64 path is another than the float32 path"


def check_no_decay(optimizer):
    """Decay spares the weights that `no_decay` matches, and still does so after the config's round trip."""
    decayed, plain = _path(optimizer, weight_decay=0.5), _path(optimizer, weight_decay=0.0)
    spared = _run(_copy(_copy(optimizer, weight_decay=0.5, no_decay=[".*"])))
    vector, matrix, _ = _run(_copy(_copy(optimizer, weight_decay=0.5, no_decay=["^matr"])))
    assert _distance(plain[:1], [vector]) > 1e-6, "weight_decay does nothing"
    assert _distance(decayed[1:2], [matrix]) > 1e-6, "a weight that no_decay matches decays"
    assert _distance(plain, spared) < 1e-5, "weights decay, although no_decay matches each"
    if not _sums_over_weights(optimizer):
        assert _distance([matrix], plain[1:2]) < 1e-5, "a weight that no_decay matches decays"
        assert _distance([vector], decayed[:1]) < 1e-5, "a weight that no_decay does not match does not decay"


def check_fit(optimizer):
    """Through `fit`, eager, graph, XLA and mixed: a learning rate of zero moves nothing, and the rest agree."""
    model = _model(_copy(optimizer, learning_rate=0.0))
    start, rate = model.get_weights(), _rate(optimizer)
    model.optimizer.build(model.trainable_variables)
    state = [v.numpy() for v in model.optimizer.variables]
    assert _distance(start, _fit(model).get_weights()) == 0, "a learning rate of zero moved the weights"
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)
    model.optimizer.learning_rate = rate
    graph = _fit(model).get_weights()
    xla = _fit(_model(_copy(optimizer), jit_compile=True)).get_weights()
    eager = _fit(_model(_copy(optimizer), run_eagerly=True)).get_weights()
    mixed = _fit(_model(_copy(optimizer), policy="mixed_float16", run_eagerly=True)).get_weights()
    assert _distance(start, graph) > 1e-6, "fit moved nothing"
    assert _distance(graph, xla) < 2e-4, "fit differs under XLA"
    assert _distance(graph, eager) < 2e-4, "fit differs when run eagerly"
    assert all(np.isfinite(w).all() for w in mixed), "mixed precision gave weights that are not finite"


def check_continues(optimizer):
    """Saved, loaded and trained on is the same as trained on: state, hyperparameters and masks."""
    model = _fit(_model(_copy(optimizer, weight_decay=0.01, no_decay="bias"), run_eagerly=True))
    with tempfile.TemporaryDirectory() as folder:
        model.save(file := Path(folder) / "model.keras")
        loaded = keras.saving.load_model(file)
    assert repr(loaded.optimizer) == repr(model.optimizer)
    assert _distance(_fit(model).get_weights(), _fit(loaded).get_weights()) < 1e-6, "a loaded model departs"


def check_options(optimizer):
    """Accumulated gradients step once with their mean; steps that are not finite are left out and counted."""
    run, twice = _Run(_copy(optimizer)), _Run(_copy(optimizer, gradient_accumulation_steps=2))
    for gradients in run.gradients[:3]:
        run.step(gradients)
        twice.step([1.5 * g for g in gradients])
        twice.step([0.5 * g for g in gradients])
    assert _distance(run.weights(), twice.weights()) < 2e-5, "accumulated gradients are not their mean"
    guarded = _Run(_copy(optimizer, skip_nonfinite=True))
    for gradients in guarded.gradients[:3]:
        guarded.step([gradients[0], gradients[1] * np.inf, gradients[2]])
        guarded.step(gradients)
    assert _distance(run.weights(), guarded.weights()) < 2e-5, "a step that is not finite leaves traces"
    assert guarded.optimizer.skipped_steps == 3


def check_replicas(optimizer):
    """Two replicas give what one device gives, also clipped, decayed, averaged and with accumulated gradients."""
    options = dict(global_clipnorm=0.05, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2)
    options |= dict(weight_decay=0.1, no_decay="vector")
    one = _Run(_copy(optimizer, **options), dtype="float64")
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        two = _Run(_copy(optimizer, **options), dtype="float64")
    two.step = backends.replicated_step(strategy, two.optimizer, two.variables)
    assert _distance(one(), two()) < 1e-6, "two replicas differ from one device"


# ---- what the checks share -------------------------------------------------------------------------------------------


class _Run:
    """Weights of several shapes, an optimizer, and gradients of mixed signs for it."""

    def __init__(self, optimizer, *, dtype="float32", shapes=SHAPES, compiled=False, xla=False):
        rngs = [np.random.default_rng(len(shape)) for shape in shapes.values()]  # a weight's own, whatever is beside it
        self.optimizer, self.traces = optimizer, 0
        draws = [rng.standard_normal((STEPS + 1, *s)) for rng, s in zip(rngs, shapes.values(), strict=True)]
        self.start = [draw[0].astype("float32") for draw in draws]
        self.variables = [keras.Variable(w, dtype=dtype, name=n) for n, w in zip(shapes, self.start, strict=True)]
        self.gradients = [[ops.convert_to_tensor(draw[i], dtype) for draw in draws] for i in range(1, STEPS + 1)]
        optimizer.build(self.variables)
        self.state = [v.numpy() for v in optimizer.variables]
        self.step = optimizer.apply
        if compiled:
            self.step = backends.compiled_step(optimizer, self.variables, self._traced, xla)

    def _traced(self):
        self.traces += 1

    def __call__(self, steps=STEPS):
        for gradients in self.gradients[:steps]:
            self.step(gradients)
        self.trained = self.weights()
        if not self.optimizer.averages:
            return self.trained
        self.optimizer.swap("evaluation")
        return [w + 2 * x for w, x in zip(self.trained, self.weights(), strict=True)]  # shows a change of either

    def weights(self):
        return [np.asarray(v.numpy(), "float64") for v in self.variables]

    def reset(self):
        variables = (*self.variables, *self.optimizer.variables)
        for variable, value in zip(variables, (*self.start, *self.state), strict=True):
            variable.assign(value)


def _run(optimizer, **how):
    return _Run(optimizer, **how)()


def _path(optimizer, **changes):
    """The eager path of an optimizer with these changes, remembered: several checks compare with it."""
    changed = _copy(optimizer, **changes)
    return _path_of(type(changed), json.dumps(changed.get_config()))


@functools.lru_cache(maxsize=64)
def _path_of(kind, config):
    return _run(kind.from_config(json.loads(config)))


def _copy(optimizer, **changes):
    placed = {_place(optimizer, name): value for name, value in changes.items()}
    return type(optimizer).from_config(optimizer.get_config()).set_params(**placed)


def _place(optimizer, name):
    """The parameter's name, as `set_params` has it: inside a wrapper, where it is not the wrapper's own."""
    known = optimizer.get_params()
    while name not in known:
        name = f"inner__{name}"
        assert name.count("inner__") < 9, f"{optimizer!r} has no parameter {name!r}"
    return name


def _owner(optimizer, name):
    """The optimizer, inside or not, that a parameter's name leads to, and its name there."""
    while (parts := name.partition("__"))[1]:
        optimizer, name = getattr(optimizer, parts[0]), parts[2]
    return optimizer, name


def _rate(optimizer):
    return optimizer.get_params()[_place(optimizer, "learning_rate")]


def _numbers(optimizer):
    """The hyperparameters that are numbers now, those of optimizers inside included."""
    found = {}
    for name, value in optimizer.get_params().items():
        owner, own = _owner(optimizer, name)
        if name not in optimizer.idle and (own == "learning_rate" or own in owner._float_inputs()):
            found[name] = value
    return found


def _interval(optimizer, name):
    owner, own = _owner(optimizer, name)
    return owner._declared("ranges").get(own, "(-inf, inf)")


def _other_values(optimizer):
    """For each number another one in its range, far enough away to matter."""
    values = _numbers(optimizer) | {name: value for name, value in optimizer.get_params().items() if _is_initial(name)}
    bounded = {name: _interval(optimizer, name).split(",")[1].strip(" )]") == "1" for name in values}
    return {
        name: (value / 2 or 0.5) if bounded[name] else (value - 0.25 if value < 0 else 2 * value + 0.1)
        for name, value in values.items()
    }


def _sums_over_weights(optimizer):
    """Whether what one weight does may depend on all."""
    return any(type(node).measure not in (Optimizer.measure, Wrapper.measure) for _, node in optimizer._nodes())


def _is_initial(name):
    return name.rpartition("__")[2].startswith("initial_")


def _distance(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def _expect_error(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} for a wrong argument")


def _model(optimizer, policy="float32", **how):
    """A small model with an embedding (sparse gradients), kernels and biases."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            layers.Embedding(5, 3, dtype=policy, name="embedding"),
            layers.Flatten(),
            layers.Dense(4, "tanh", dtype=policy, name="hidden"),
            layers.Dense(1, dtype=policy, name="head"),
        ]
    )
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse", **{"jit_compile": False} | how)
    return model


def _fit(model):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, (16, 2)).astype("int32"), rng.standard_normal((16, 1)).astype("float32")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model
