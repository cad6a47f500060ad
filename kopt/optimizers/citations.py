"""Whom to cite: the papers behind an optimizer, as BibTeX."""

import re
from importlib import resources

from kopt.optimizers.base import Optimizer


def cite(optimizer):
    """Prints the BibTeX entries of an optimizer's papers, and of those of the optimizers inside it.

    Args:
        optimizer: a kopt optimizer, or a class of them.

    Raises:
        TypeError: it is neither.

    Example:
        >>> kopt.cite(kopt.Cautious(kopt.AdamW()))  # doctest: +SKIP
    """
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        keys = optimizer.cites
    elif isinstance(optimizer, Optimizer):
        keys = [key for _, part in optimizer._nodes() for key in part.cites]
    else:
        raise TypeError(f"cite: optimizer must be a kopt optimizer or a class of them, got {optimizer!r}.")
    entries = bibliography()
    print("\n\n".join(entries[key] for key in dict.fromkeys(keys)))


def bibliography():
    """Returns the entries of `references.bib` by key."""
    text = resources.files("kopt.optimizers").joinpath("references.bib").read_text("utf-8")
    entries = [entry.strip() for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE) if entry.startswith("@")]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}
