"""Search for hyperparameters under scikit-learn's conventions."""

from kopt.search.displays import (
    ImportanceDisplay,
    ParallelCoordinatesDisplay,
    SearchProgressDisplay,
    SurrogateDisplay,
)
from kopt.search.search_cv import TunerSearchCV

__all__ = [
    "ImportanceDisplay",
    "ParallelCoordinatesDisplay",
    "SearchProgressDisplay",
    "SurrogateDisplay",
    "TunerSearchCV",
]
