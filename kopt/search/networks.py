"""What a search knows of the networks within an estimator, and where they train."""

import numpy as np
from joblib import effective_n_jobs

AUTO = 16
"""Networks that train together on a GPU, unless the user says otherwise."""


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


def number_of_jobs(n_jobs, estimator):
    """How many fits there are at a time: for networks, where `n_jobs` counts from all, all means the GPUs."""
    if n_jobs is not None and n_jobs < 0 and networks_in(estimator):
        from kopt.distribute import gpus

        if there := gpus.count():
            return max(there + 1 + n_jobs, 1)
    return effective_n_jobs(n_jobs)


def members(population, estimator, proposes):
    """How many candidates train together at most; by default one where scores decide what to propose next."""
    if population != "auto":
        return population
    if proposes or not networks_in(estimator):
        return 1
    from kopt.distribute import gpus

    return AUTO if gpus.count() else 1


def give_gpu(networks):
    """Lets networks that name no device train on the GPU that is this process's own, if the machine has any."""
    for network in networks:
        if network.device is None and network.strategy is None:
            from kopt.distribute import gpus

            network.device = gpus.own()
