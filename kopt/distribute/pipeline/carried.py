"""A tensor with what Keras lets it carry along: what crosses a cut must not lose it."""

from typing import Any, NamedTuple

from kopt._keras import give_mask, mask_of


class Carried(NamedTuple):
    """A tensor, as its parts.

    Attributes:
        value: its values.
        mask: which of its positions count, or None.
        logits: of which a softmax or sigmoid made it, or None: Keras's losses go back to them.
    """

    value: Any
    mask: Any = None
    logits: Any = None

    @classmethod
    def of(cls, tensor):
        """A tensor's parts."""
        return cls(tensor, mask_of(tensor), getattr(tensor, "_keras_logits", None))

    def each(self, function):
        """The same with `function(part)` in the place of each part that there is."""
        return Carried(*(None if part is None else function(part) for part in self))

    def tensor(self):
        """The tensor, carrying the rest."""
        if self.mask is not None:
            give_mask(self.value, self.mask)
        if self.logits is not None:
            self.value._keras_logits = self.logits
        return self.value

    def slopes(self):
        """Its parts that a gradient can have, by name."""
        parts = {"value": self.value, "logits": self.logits}
        return {name: part for name, part in parts.items() if part is not None and part.dtype.is_floating}
