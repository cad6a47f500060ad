"""Search for hyperparameters under scikit-learn's conventions."""

from kopt.search.constraints import MaxLatency, MaxParameters
from kopt.search.displays import (
    ImportanceDisplay,
    ParallelCoordinatesDisplay,
    SearchProgressDisplay,
    SurrogateDisplay,
)
from kopt.search.search_cv import TunerSearchCV

__all__ = [
    "ImportanceDisplay",
    "MaxLatency",
    "MaxParameters",
    "ParallelCoordinatesDisplay",
    "SearchProgressDisplay",
    "SurrogateDisplay",
    "TunerSearchCV",
]
