"""Checks that anybody can run on an optimizer, engine or layer of their own: the ones that kopt runs on its own."""

from kopt.testing.engines import check_engine
from kopt.testing.layers import check_layer
from kopt.testing.optimizers import check_optimizer, optimizer_checks

__all__ = ["check_engine", "check_layer", "check_optimizer", "optimizer_checks"]
