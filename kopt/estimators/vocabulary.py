"""Names that other libraries give to parameters, and what they are called here: for errors, and for hints in them."""

import difflib

ELSEWHERE = {
    # SciKeras and Keras's wrappers
    "build_fn": "model",
    "fit_kwargs": "epochs, batch_size, verbose and the others by their own names",
    "metrics": "scoring, with scikit-learn's scorers",
    "model_kwargs": "model__*, one parameter for each argument of the function",
    "run_eagerly": "keras.config.run_functions_eagerly",
    "sk_params": "model__* and optimizer__*",
    "validation_batch_size": "nothing: held-out rows are evaluated in blocks",
    "validation_split": "early_stopping=True or scoring, with validation_fraction",
    # scikit-learn's MLPClassifier
    "activation": "model__activation",
    "alpha": "optimizer__weight_decay",
    "beta_1": "optimizer__beta_1",
    "beta_2": "optimizer__beta_2",
    "dropout": "model__dropout",
    "epsilon": "optimizer__epsilon",
    "hidden_layer_sizes": "model__hidden_layer_sizes",
    "learning_rate": "optimizer__learning_rate",
    "learning_rate_init": "optimizer__learning_rate",
    "max_iter": "epochs",
    "momentum": "optimizer__momentum",
    "nesterovs_momentum": "optimizer__nesterov",
    "shuffle": "nothing: rows are shuffled, in an order that random_state fixes",
    "solver": "optimizer",
    "weight_decay": "optimizer__weight_decay",
    # skorch
    "criterion": "loss",
    "lr": "optimizer__learning_rate",
    "max_epochs": "epochs",
    "module": "model",
    "train_split": "early_stopping=True or scoring, with validation_fraction",
}
"""What to write instead of a whole name."""

PREFIXES = {
    "compile__": "optimizer and loss",
    "fit__": "the estimator's own parameters",
    "iterator_train__": "batch_size",
    "loss__": "a keras.losses.Loss, as in loss=keras.losses.Huber(delta=2.0)",
    "metrics__": "scoring, with scikit-learn's scorers",
    "module__": "model__*",
    "predict__": "nothing: rows are predicted in blocks",
}
"""What to write instead of names that begin with these."""

ARGUMENTS = {
    "compile_kwargs": "the network is not compiled by its function: give optimizer and loss to the estimator",
    "meta": "facts about the data come by name: n_features_in_, n_outputs_",
}
"""What to do about arguments that SciKeras passes to the function that makes a network."""


def advice(name, own, routes):
    """A sentence on what to write instead of a name that is no parameter, with a space before it; else "".

    Args:
        name: what was written.
        own: the estimator's own parameters.
        routes: prefixes of those of its parts.
    """
    prefix, delimiter, rest = name.partition("__")
    if delimiter and f"{prefix}__" in PREFIXES and f"{prefix}__" not in routes:
        return f" Use {rest if prefix == 'fit' and rest in own else PREFIXES[f'{prefix}__']}."
    if name in ELSEWHERE:
        return f" Use {ELSEWHERE[name]}."
    if delimiter:
        near = difflib.get_close_matches(f"{prefix}__", routes, n=1)
        return f" Did you mean {near[0] + rest!r}?" if near else ""
    return hint(name, own)


def hint(name, known):
    """A question whether the nearest of the known names is meant, with a space before it; else ""."""
    lower = {str(each).lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f" Did you mean {lower[near[0]]!r}?" if near else ""
