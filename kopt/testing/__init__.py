"""Checks that anybody can run on an optimizer or an engine of their own: the ones that kopt runs on its own."""

from kopt.testing.engines import check_engine
from kopt.testing.optimizers import check_optimizer, optimizer_checks

__all__ = ["check_engine", "check_optimizer", "optimizer_checks"]
