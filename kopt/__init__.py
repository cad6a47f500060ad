"""Optimizers, regularization layers, scikit-learn estimators and tuning for Keras networks.

Public names are written once, in the stub file beside this one, and load on first use: `import kopt` alone
imports neither TensorFlow nor Keras nor scikit-learn.
"""

import lazy_loader
import wrapt

from kopt._checks import needs_tensorflow

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name):
    """Loads a public name; where Keras misses TensorFlow, says which extras bring it."""
    with needs_tensorflow(f"kopt.{name}"):
        return _load(name)


@wrapt.when_imported("keras")
def _make_known(keras):
    """Lets `keras.saving` find kopt's classes in a saved model, before any of them was used."""
    import kopt.constraints
    import kopt.layers
    import kopt.optimizers
    import kopt.penalties
    import kopt.schedules  # noqa: F401


@wrapt.when_imported("kopt.optimizers")
def _make_model_known(optimizers):
    """The same for `kopt.Model`, which needs all of the optimizers."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import kopt.objectives
        import kopt.training.model
    elif keras.backend.backend() == "jax":
        import kopt.training.over_mesh  # noqa: F401


@wrapt.when_imported("kopt.training.model")
def _make_divided_known(model):
    """The same for `kopt.PipelineModel` and `kopt.ShardedModel`, which need that one."""
    import kopt.training.over_mesh
    import kopt.training.pipelined  # noqa: F401
