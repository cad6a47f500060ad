"""The time of a Bayesian proposal: kopt's and KerasTuner's own, after the same scores, in CPU seconds.

python benchmarks/search.py --trials 20 100 --parameters 5 10
"""

import argparse
import statistics
import time
import warnings

import keras_tuner
from rich.console import Console
from rich.table import Table
from scipy.stats import uniform
from threadpoolctl import threadpool_limits

from kopt.search.oracles import BayesianOracle, KerasTunerEngine
from kopt.search.space import Space


def kopt_engine(space, trials):
    return KerasTunerEngine(BayesianOracle(space, trials, 0), space)


def keras_tuner_engine(space, trials):
    """KerasTuner's oracle, except that it writes no files, which take no time to speak of."""
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        keras_tuner.Objective("score", "max"), trials, hyperparameters=space.hyperparameters(), seed=1
    )
    oracle.verbose, oracle.save, oracle._save_trial = 0, lambda: None, lambda trial: None
    return KerasTunerEngine(oracle, space)


def primed(make, parameters, trials, proposals):
    """An engine that has seen `trials` random candidates and has `proposals` more to make."""
    space = Space({f"x{i}": uniform() for i in range(parameters)}, "bayesian")
    engine = make(space, trials + proposals)
    engine.oracle.num_initial_points = trials
    for suggestion in engine.ask(trials):
        engine.tell(suggestion.id, score(suggestion.params))
    return engine


def score(params):
    return -sum((value - 0.4) ** 2 for value in params.values())


def seconds(engine):
    began = time.process_time()
    (suggestion,) = engine.ask(1)
    took = time.process_time() - began
    engine.tell(suggestion.id, score(suggestion.params))
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--parameters", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--proposals", type=int, default=5)
    asked = parser.parse_args()
    table = Table(
        "parameters", "trials so far", "kopt", "KerasTuner", "ratio", title="CPU s a proposal, one BLAS thread"
    )
    for parameters in asked.parameters:
        for trials in asked.trials:
            sides = [primed(make, parameters, trials, asked.proposals) for make in (kopt_engine, keras_tuner_engine)]
            turns = [[seconds(side) for side in sides] for _ in range(asked.proposals)]
            ours, theirs = map(statistics.median, zip(*turns, strict=True))
            ratio = statistics.median(a / b for a, b in turns)
            table.add_row(str(parameters), str(trials), f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        main()
