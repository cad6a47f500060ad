"""The network an estimator uses when it is given none."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, InvalidParameterError, validate_parameter_constraints

_MLP = {
    "model__hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
    "model__activation": [str, callable, dict, None],
    "model__dropout": [Interval(Real, 0, 1, closed="both")],
    "model__drop_path": [Interval(Real, 0, 1, closed="left")],
}


def check_mlp(owner, given):
    """Checks arguments of `mlp`, named as `model__*`, without Keras.

    Raises:
        sklearn.utils._param_validation.InvalidParameterError: a value is of the wrong type or out of range.
    """
    validate_parameter_constraints(_MLP, given, owner)
    sizes = given.get("model__hidden_layer_sizes", ())
    for size in [] if isinstance(sizes, Integral) else sizes:
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise InvalidParameterError(f"{owner}: model__hidden_layer_sizes must hold integers from 1, got {sizes!r}.")


def mlp(n_features_in_, n_outputs_, *, hidden_layer_sizes=(100,), activation="relu", dropout=0.0, drop_path=0.0):
    """Returns a multilayer perceptron, with a plain (linear) last layer.

    Its hidden layers are named "hidden_1", "hidden_2", ...
    A hidden layer as wide as the one before it is residual: h + DropPath(activation(Dense(h))).

    Args:
        n_features_in_: columns of the rows.
        n_outputs_: units of the last layer.
        hidden_layer_sizes: units of the hidden layers; a number for a single one.
        activation: of the hidden layers: whatever `keras.activations.get` takes.
        dropout: probability in [0, 1] with which a hidden unit is dropped.
        drop_path: probability in [0, 1) with which a row skips a residual layer.
    """
    import keras

    from kopt.layers import DropPath

    h = inputs = keras.Input((n_features_in_,), dtype=keras.config.dtype_policy().compute_dtype)
    sizes = [hidden_layer_sizes] if isinstance(hidden_layer_sizes, Integral) else hidden_layer_sizes
    for number, width in enumerate(sizes):
        branch = keras.layers.Dense(width, activation, name=f"hidden_{number + 1}")(h)
        if dropout:
            branch = keras.layers.Dropout(dropout)(branch)
        residual = number and width == h.shape[1]
        h = keras.layers.add([h, DropPath(drop_path)(branch)]) if residual else branch
    return keras.Model(inputs, keras.layers.Dense(n_outputs_, name="output")(h))
