"""A stage's pass forward as a pure function of tensors."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from kopt.distribute.activity import activity_as_means
from kopt.distribute.pipeline.carried import Carried


class Outcome(NamedTuple):
    """What a pass forward returns.

    Attributes:
        gives: a `Carried` for each tensor that the stage gives.
        loss: its part in the loss of the batch, or None.
        state: the new value of each variable of its state; None where there is none.
        outputs: a `Carried` for each output of the model, from the last stage.
    """

    gives: Any
    loss: Any
    state: Any
    outputs: Any


class _Entry(keras.Layer):
    """What Keras takes for the layer from whose call all others are called."""

    def __init__(self, run, **kwargs):
        super().__init__(**kwargs)
        self.__dict__["run"] = run

    def call(self, start, training=None):
        self.run()
        return start


class StageProgram:
    """A stage's pass forward as a pure function of tensors, traced once for each device.

    Args:
        model: the functional model.
        stage: a `kopt.distribute.pipeline.graph.Stage` of it.
        weights: the variables of the stage that gradients are asked for.
        state: the other ones.
        loss: for the last stage; takes the outputs, tensors in a list, and a feed's `extra`, and returns the loss.
    """

    def __init__(self, model, stage, weights, state, loss=None):
        self.model, self.stage, self.weights, self.state, self.loss = model, stage, weights, state, loss
        # Inlined, passes would lose their order, and a repeated one would be merged with the first.
        self.run = tf.function(self._run, autograph=False, experimental_attributes={"_noinline": True})

    def _run(self, weights, state, takes, share, extra):
        variables, values = [*self.weights, *self.state], [*weights, *state]
        outputs, loss = [], None
        layers = [node.operation for node in self.stage.nodes if isinstance(node.operation, keras.Layer)]
        mapping = zip(variables, values, strict=True)
        with activity_as_means(layers, share), keras.StatelessScope(mapping, collect_losses=True) as scope:
            env = {id(t): x.tensor() for t, x in zip(self.stage.takes, takes, strict=True)}
            entry = _Entry(lambda: self._through(env), dtype=self.model.dtype_policy, name=self.model.name)
            entry(tf.zeros(()), training=True)
            added = [tf.cast(tf.reduce_sum(x), keras.config.floatx()) for x in scope.losses]
            if added:
                loss = tf.cast(share, added[0].dtype) * tf.add_n(added)
            if self.loss is not None:
                outputs = [env[id(tensor)] for tensor in self.model.outputs]
                found = self.loss(outputs, extra)
                loss = found if loss is None else found + tf.cast(loss, found.dtype)
            new = [scope.get_current_value(variable) for variable in self.state]
        changed = [None if after is before else after for after, before in zip(new, state, strict=True)]
        gives = [Carried.of(env[id(tensor)]) for tensor in self.stage.gives]
        return Outcome(gives, loss, changed, [Carried.of(x)._replace(logits=None) for x in outputs])

    def _through(self, env):
        """Calls the stage's operations, which find and leave their tensors in `env`."""
        for node in self.stage.nodes:
            arguments, keywords = node.arguments.fill_in(env)
            if getattr(node.operation, "_call_has_training_arg", False):
                keywords["training"] = True
            outputs = tree.flatten(node.operation(*arguments, **keywords))
            env |= {id(symbol): x for symbol, x in zip(node.output_tensors, outputs, strict=True)}
