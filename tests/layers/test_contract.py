"""Every layer of the dropout family keeps the contract of `kopt.testing.check_layer`."""

import keras
import numpy as np
import pytest

from kopt import layers
from kopt.layers.moments import wide
from kopt.schedules import Linear
from kopt.testing import check_layer
from kopt.testing.layers import Case, check_added_loss, check_slopes

RNG = np.random.default_rng(0)
TABLE, SEQUENCE, IMAGE, VOLUME = (
    RNG.standard_normal(shape).astype("float32") for shape in [(6, 3), (5, 4, 3), (4, 4, 3, 2), (4, 2, 3, 2, 2)]
)
TOKENS = RNG.integers(1, 9, (5, 4)).astype("int32")
RISING = Linear(0.3, 10, 0.5)
CELL = dict(recurrent_initializer="glorot_uniform")  # Keras's orthogonal matrices there are none of in bfloat16

CASES = {
    "drop_path": (layers.DropPath(RISING), SEQUENCE),
    "drop_path_batch": (layers.DropPath(0.5, mode="batch"), TABLE),
    "feature_dropout": (layers.FeatureDropout(0.5), SEQUENCE),
    "feature_dropout_batch": (layers.FeatureDropout(RISING, mode="batch"), TABLE),
    "token_dropout": (layers.TokenDropout(RISING), SEQUENCE),
    "token_dropout_integers": (layers.TokenDropout(0.5, token=9), TOKENS),
    "patch_dropout": (layers.PatchDropout(0.5), SEQUENCE),
    "drop_block_1d": (layers.DropBlock1D(0.5, 2), SEQUENCE),
    "drop_block_2d": (layers.DropBlock2D(RISING, 2), IMAGE),
    "drop_block_3d": (layers.DropBlock3D(0.5, 2, shared=True), VOLUME),
    "drop_connect": (layers.DropConnect(keras.layers.Dense(2, "tanh"), RISING), SEQUENCE),
    "drop_connect_convolution": (layers.DropConnect(keras.layers.Conv2D(2, 2), 0.5, bias=True), IMAGE),
    "concrete_dropout": (layers.ConcreteDropout(keras.layers.Dense(2, "tanh"), 0.5, entropy=RISING), SEQUENCE),
    "variational_dropout": (layers.VariationalDropout(keras.layers.Dense(2, "tanh"), RISING), TABLE),
    "variational_dropout_convolution": (layers.VariationalDropout(keras.layers.Conv2D(2, 2), 0.1), IMAGE),
    "shake_drop": (layers.ShakeDrop(RISING), SEQUENCE),
    "zoneout": (layers.Zoneout(keras.layers.LSTMCell(2, **CELL), 0.1, RISING), SEQUENCE),
    "zoneout_sequences": (layers.Zoneout(keras.layers.GRUCell(2, **CELL), 0.5, return_sequences=True), SEQUENCE),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "zoneout" in n else n for n in CASES])
def test_layer_keeps_the_contract(name):
    layer, inputs = CASES[name]
    smooth = name != "shake_drop"  # whose gradient is another number's on purpose
    adds = "always" if name.startswith(("concrete", "variational")) else "never"
    ran = check_layer(layer, inputs, smooth=smooth, added_loss=adds)
    assert "check_config" in ran
    assert "check_seeds" in ran


def test_what_keeps_no_contract_is_found():
    class Forgetful(layers.base.Layer):
        def call(self, inputs, training=False):
            return inputs + keras.random.normal(keras.ops.shape(inputs))

    with pytest.raises(AssertionError, match="inference is a matter of chance"):
        check_layer(Forgetful(), TABLE)
    with pytest.raises(TypeError, match=r"^check_layer: layer must be an instance of keras\.layers\.Layer, got 3\.$"):
        check_layer(3, TABLE)


class Adding(layers.base.Layer):
    """Adds a loss that is wrong in one way or another."""

    def __init__(self, how="right", **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, inputs, training=False):
        loss = keras.ops.mean(keras.ops.square(wide(keras.ops.convert_to_tensor(inputs))))
        wrong = {
            "few bits": lambda: keras.ops.cast(loss, self.compute_dtype),
            "vector": lambda: keras.ops.mean(inputs, axis=-1),
            "infinite": lambda: loss / 0,
            "no slope": lambda: loss + keras.ops.mean(keras.ops.stop_gradient(inputs)) * keras.ops.mean(inputs),
        }
        self.add_loss(wrong.get(self.how, lambda: loss)())
        return inputs


@pytest.mark.parametrize(
    ("how", "when", "message"),
    [
        ("few bits", None, "mixed_bfloat16 adds a loss of bfloat16"),
        ("vector", None, r"adds a loss of shape \[\(6,\)\]"),
        ("infinite", None, "float32 adds a loss that is not finite"),
        ("right", "training", "adds to the loss: always, not training"),
        ("right", "never", "adds to the loss: always, not never"),
    ],
)
def test_wrong_losses_are_found(how, when, message):
    with pytest.raises(AssertionError, match=message):
        check_added_loss(Case(Adding(how), TABLE), when)
    if how == "right":
        check_added_loss(Case(Adding(how), TABLE), "always")


def test_a_loss_of_another_gradient_is_found():
    with pytest.raises(AssertionError, match="the gradient of inputs, training=False, is off by"):
        check_slopes(Case(Adding("no slope"), TABLE))
    with pytest.raises(ValueError, match=r"^check_layer: added_loss must be one of None, 'always', .*, got 'ever'\.$"):
        check_layer(Adding(), TABLE, added_loss="ever")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="replicas are TensorFlow's")
def test_statistics_of_each_replica_alone_are_found():
    with pytest.raises(AssertionError, match="two replicas differ from one device"):
        check_layer(keras.layers.BatchNormalization(), TABLE)
