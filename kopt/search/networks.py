"""What a search knows of the networks within an estimator."""

import numpy as np


def networks_in(estimator):
    """kopt's estimators within an estimator, itself included, by the names of its parameters."""
    parts = {"": estimator, **estimator.get_params()}
    return {name: part for name, part in parts.items() if is_network(part)}


def is_network(part):
    """Whether something is an estimator of kopt's."""
    return hasattr(part, "_go_on_at")


def best_epochs(estimator):
    """The best epoch, from 1, of every kopt estimator within that stopped early, by its parameter's name."""
    return {
        name: int(np.argmax(network.validation_scores_)) + 1
        for name, network in networks_in(estimator).items()
        if network.early_stopping and getattr(network, "validation_scores_", None)
    }


def refit_epochs(fits):
    """The median of the best epochs over folds, for each estimator that stopped early in all of them."""
    names = set.intersection(*(set(fit["best_epochs"]) for fit in fits)) if fits else set()
    return {name: round(float(np.median([fit["best_epochs"][name] for fit in fits]))) for name in sorted(names)}
