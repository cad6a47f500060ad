"""Keras networks as scikit-learn estimators. Importing or constructing one imports neither TensorFlow nor Keras."""

from kopt.estimators.classifier import KerasClassifier
from kopt.estimators.files import load
from kopt.estimators.regressor import KerasRegressor
from kopt.estimators.transformer import KerasTransformer

__all__ = ["KerasClassifier", "KerasRegressor", "KerasTransformer", "load"]
