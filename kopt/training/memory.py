"""What to do when memory runs out."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def advised(advice):
    """Adds to an error that says that memory has run out what helps."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        error.add_note(f"kopt: memory has run out. {advice}")
        raise
