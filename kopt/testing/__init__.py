"""Checks that anybody can run on an optimizer of their own: the ones that kopt runs on its own."""

from kopt.testing.optimizers import check_optimizer, optimizer_checks

__all__ = ["check_optimizer", "optimizer_checks"]
