"""What models have to have in common to be trained as one program, and the first thing in which they differ."""

import keras
import tensorflow as tf

from kopt._backend import under_strategy
from kopt.optimizers import Optimizer, Switch
from kopt.training import cache
from kopt.training.model import Model
from kopt.training.whole import minimizers

OWNER = "fit_population"


def check_alike(models, x):
    """Builds models and their optimizers where they are not, and raises if one program cannot train all of them.

    Args:
        models: a list.
        x: a few rows, for models that are not built.

    Raises:
        TypeError: `models` is no list of Keras models.
        ValueError: a model cannot be trained so, or differs from the first in more than numbers and seeds.
    """
    if not isinstance(models, list | tuple) or not models or not all(isinstance(m, keras.Model) for m in models):
        raise TypeError(f"{OWNER}: models must be a list of keras.Model, got {models!r}.")
    if under_strategy():
        raise ValueError(f"{OWNER}: the models must be on one device, got {tf.distribute.get_strategy()!r} around it.")
    owners = {}
    for number, model in enumerate(models):
        _check_model(model, f"models[{number}]")
        if not model.built:
            model(x)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        for variable in (*model.variables, *model.optimizer.variables):
            if owners.setdefault(id(variable), number) != number:
                raise ValueError(
                    f"{OWNER}: each model must have weights and an optimizer of its own, and models[{number}] shares "
                    f"{variable.path} with models[{owners[id(variable)]}]. Make it by keras.models.clone_model."
                )
    first = structure(models[0])
    for number, model in enumerate(models):
        if found := difference(first, structure(model)):
            raise ValueError(
                f"{OWNER}: models may differ in weights, seeds and the optimizer's numbers alone, and "
                f"{_told(*found, number)}. Train them apart."
            )


def _check_model(model, name):
    """Raises if a model's step is not one that can be taken for several models at once."""
    who = f"{OWNER}: {name}"
    if not model.compiled or model.optimizer is None:
        raise ValueError(f"{who} must be compiled with an optimizer and a loss. Call compile first.")
    if type(model).train_step not in (keras.Model.train_step, Model.train_step):
        raise ValueError(f"{who} must take Keras's own steps, got {type(model).__name__}.train_step. Train it by fit.")
    if model.run_eagerly:
        raise ValueError(f"{who} must be compiled with run_eagerly=False, got True.")
    check_steps(model, model.optimizer, who)


def check_steps(model, optimizer, who):
    """Raises ValueError if the steps of an optimizer on a model cannot be taken for several models at once."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            f"{who} must have an optimizer without a loss scale of its own, got {optimizer.name}, which Keras "
            "adds for mixed_float16. Try mixed_bfloat16, or compile with auto_scale_loss=False."
        )
    if isinstance(optimizer, Switch):
        raise ValueError(f"{who} must have one optimizer throughout, got {optimizer!r}. Train it by fit.")
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and not layer.unroll:
            raise ValueError(
                f"{who} must have no loop over time, of which TensorFlow cannot differentiate several at once, got "
                f"{layer.name}. Set its unroll=True."
            )
    for minimizer in minimizers(optimizer):
        raise ValueError(
            f"{who} must have an optimizer that steps batch by batch, got {type(minimizer).__name__}, whose search "
            "takes another number of looks in each model. Train it by fit, or by kopt.minimize."
        )


def structure(model):
    """All of a compiled model that goes into a program, but for what lies in variables, by name."""
    optimizer, config = model.optimizer, model.optimizer.get_config()
    layers, traits, weights = cache.structure_of_model(model)
    compiled = {name: x for name, x in (model.get_compile_config() or {}).items() if name != "optimizer"}
    treatments = ()
    if isinstance(optimizer, Optimizer):
        treatments = tuple(optimizer.treatments(model.trainable_variables))
    return (
        ("the model's class", type(model)),
        ("layers", layers),
        ("attributes of layers", traits),
        ("weights", weights),
        ("the optimizer's class", type(optimizer)),
        ("optimizer", cache.structure_of_optimizer(type(optimizer), config, zeros=False)[1]),
        (
            "what the optimizer keeps (is a number zero in one of them?)",
            tuple((tuple(v.shape), str(v.dtype)) for v in optimizer.variables),
        ),
        ("what no_decay and groups match", treatments),
        ("compile", cache.frozen(compiled)),
        ("loss", keras.tree.map_structure(cache.structure_of_loss, model.loss)),
    )


def difference(a, b, path=()):
    """Where two frozen structures differ first, and what is there in either; None if nowhere."""
    if a == b:
        return None
    leaf = any(isinstance(x, tuple) and x[:1] and isinstance(x[0], type) for x in (a, b))
    if leaf or not isinstance(a, tuple) or not isinstance(b, tuple) or len(a) != len(b):
        return ".".join(path), a, b
    x, y = next((x, y) for x, y in zip(a, b, strict=True) if x != y)
    named = isinstance(x, tuple) and isinstance(y, tuple) and len(x) == 2 and isinstance(x[0], str) and x[0] == y[0]
    return difference(x[1], y[1], (*path, x[0])) if named else difference(x, y, path)


def _told(where, there, here, number):
    """A difference in words."""
    values = [x[1] for x in (here, there) if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], type)]
    if len(values) == 2 and all(isinstance(x, bool | int | float | str | None) for x in values):
        return f"{where} is {values[0]!r} in models[{number}] and {values[1]!r} in models[0]"
    return f"{where} is another in models[{number}] than in models[0]"
