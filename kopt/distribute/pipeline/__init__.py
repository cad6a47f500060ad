"""Stages of a model on devices of their own, and micro-batches on their way through them."""
