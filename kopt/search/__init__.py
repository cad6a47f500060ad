"""Search for hyperparameters under scikit-learn's conventions."""

from kopt.search.search_cv import TunerSearchCV

__all__ = ["TunerSearchCV"]
