"""How an estimator shows itself in a notebook, once it is fitted: its network drawn, and Keras's summary."""

import html
import itertools

from sklearn.base import BaseEstimator

WIDTH, HEIGHT, GAP, LANE = 260, 40, 26, 14
"""Pixels: of a layer's box, between two boxes, and between the lines that pass boxes by."""

MOST = 60
"""Layers drawn at most; a deeper network is told by its summary."""


class Display(BaseEstimator):
    """An estimator with a network to look at."""

    def summary(self, **options):
        """Prints the layers of the network, their shapes and weights.

        Args:
            **options: as in `keras.Model.summary`.
        """
        self.model_.summary(**options)  # pyright: ignore[reportAttributeAccessIssue]

    def _repr_html_inner(self):
        return self._html_repr()

    def _html_repr(self):
        from sklearn.utils import estimator_html_repr

        shown = estimator_html_repr(self)
        return shown + drawn(self.model_) if self.__sklearn_is_fitted__() else shown  # pyright: ignore

    def _repr_mimebundle_(self, **kwargs):
        shown = super()._repr_mimebundle_(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return shown | ({"text/html": self._html_repr()} if "text/html" in shown else {})


def drawn(model):
    """Returns a Keras model as a picture in HTML: a box for each layer, and a line wherever a tensor goes.

    The picture stands alone (SVG, no scripts) and takes its colors from the page.
    """
    layers = list(model.layers)
    if len(layers) > MOST:
        return f"<p>{html.escape(model.name)}: {len(layers)} layers, {model.count_params():,} weights</p>"
    places = {id(layer): number for number, layer in enumerate(layers)}
    lines = [(places[id(a)], places[id(b)]) for a, b in _edges(layers) if id(a) in places and id(b) in places]
    passing = [(a, b) for a, b in lines if b - a > 1]
    width = WIDTH + LANE * (len(passing) + 2)
    pitch = HEIGHT + GAP
    parts = [_box(layer, number * pitch) for number, layer in enumerate(layers)]
    for a, b in lines:
        if b - a == 1:
            parts.append(_line(f"M{WIDTH / 2} {a * pitch + HEIGHT + 2}V{b * pitch - 2}"))
    for lane, (a, b) in enumerate(passing, 1):
        x = WIDTH + LANE * lane
        parts.append(_line(f"M{WIDTH} {a * pitch + HEIGHT * 0.7}H{x}V{b * pitch + HEIGHT * 0.3}H{WIDTH + 2}"))
    height = len(layers) * pitch
    marker = (
        '<defs><marker id="kopt-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return (
        f"<details open><summary>Network of {model.count_params():,} weights</summary>"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="-2 -2 {width} {height}" '
        f'font-family="sans-serif" font-size="12" role="img">{marker}{"".join(parts)}</svg></details>'
    )


def _edges(layers):
    """Pairs of layers of which the second is given what the first makes."""
    graph = [(before, layer) for layer in layers for before in _before(layer)]
    return graph or list(itertools.pairwise(layers))  # a sequence, or a model of code whose graph nobody knows


def _before(layer):
    nodes = layer._inbound_nodes[-1:]
    return [tensor._keras_history.operation for node in nodes for tensor in node.arguments.keras_tensors]


def _box(layer, y):
    name, kind = html.escape(layer.name), html.escape(type(layer).__name__)
    shape = getattr(layer, "output", None)
    shape = " × ".join("rows" if size is None else str(size) for size in getattr(shape, "shape", ()))
    weights = f"{layer.count_params():,} weights" if layer.weights else ""
    told = html.escape(", ".join(part for part in (shape, weights) if part))
    return (
        f'<g><title>{name}</title><rect x="0" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" fill="none" '
        f'stroke="currentColor"/><text x="10" y="{y + 17}" fill="currentColor" font-weight="bold">{kind}</text>'
        f'<text x="10" y="{y + 33}" fill="currentColor">{told}</text></g>'
    )


def _line(path):
    return f'<path d="{path}" fill="none" stroke="currentColor" marker-end="url(#kopt-arrow)"/>'
