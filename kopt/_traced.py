"""What a plain `keras.Model` lets an oracle tell, from the gradients in the graph of its step."""

from typing import Any

from kopt._backend import dense, local, on_tensorflow, replicas, sum_over_replicas


class Traced:
    """What a plain `keras.Model` lets an oracle tell: gradients and, by differentiating them in their graph, products.

    `kopt.training.oracle.Oracle` answers whatever is asked; all else is refused here.

    Args:
        grads: the gradients, one for each variable.
        variables: the weights.
        owner: who asks, for errors.
    """

    def __init__(self, grads, variables, owner):
        self._grads, self._variables, self._owner = [dense(g) for g in grads], variables, owner

    def __getattr__(self, name):
        raise ValueError(
            f"{self._owner} asks more of each batch than its gradient, and keras.Model shows it that alone. "
            "Try kopt.Model(model.inputs, model.outputs)."
        )

    def __call__(self):
        return self.loss()  # which is not shown

    @property
    def weights(self):
        """A tensor for each weight."""
        return [dense(v) for v in self._variables]

    def gradients(self):
        """The gradient for each weight."""
        return self._grads

    def gradients_and_hvp(self):
        """The gradients, and `hvp`."""
        return self._grads, self.hvp

    @property
    def hvp(self):
        """A function that multiplies vectors, a tensor for each weight, by the Hessian of the loss."""
        if not on_tensorflow():
            return self.curvature  # which there is none of
        import tensorflow as tf

        if tf.executing_eagerly():
            raise ValueError(
                f"{self._owner} differentiates gradients, which are numbers in a keras.Model that is run eagerly. Try "
                "run_eagerly=False, or kopt.Model(model.inputs, model.outputs)."
            )
        if any(op.type == "StopGradient" and "moments/" in op.name for g in _graphs() for op in g.get_operations()):
            raise ValueError(
                f"{self._owner} differentiates gradients, and in a keras.Model those of layers that normalize have "
                "wrong derivatives: tf.nn.moments stops one. Try kopt.Model(model.inputs, model.outputs), which does "
                "not."
            )
        return self._product

    def _product(self, vectors):
        import tensorflow as tf

        slope = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(self._grads, vectors, strict=True)])
        handles = [_as_read(local(variable).handle) for variable in self._variables]
        slopes: Any = tf.gradients(slope, [x for x in handles if x is not None])
        found = iter(slopes)
        products = [None if x is None else next(found) for x in handles]
        return [tf.zeros_like(v) if x is None else dense(x) for x, v in zip(products, vectors, strict=True)]

    @property
    def replicas(self):
        """How many replicas have an oracle each."""
        return replicas()

    def sum(self, tensors):
        """Each tensor of a list summed over all replicas."""
        return sum_over_replicas(tensors)


def _graphs():
    """The graph that is being built, and those around it, the outermost first."""
    import tensorflow as tf

    graphs: list[Any] = [tf.compat.v1.get_default_graph()]
    while (outer := getattr(graphs[0], "outer_graph", None)) is not None:
        graphs.insert(0, outer)
    return graphs


def _as_read(handle):
    """What stands for a variable's handle in the outermost graph that reads it, where a gradient has to arrive."""
    known = {id(handle)}
    for graph in _graphs():
        for outside, inside in getattr(graph, "captures", ()):
            if id(outside) in known:
                known.add(id(inside))
                if any(op.type in ("ReadVariableOp", "ResourceGather") for op in inside.consumers()):
                    return inside
    return None
