"""Interrupt a fit, and go on: the same weights, bit by bit, as without the interruption.

python examples/resume.py                  # one process is killed half way, another one goes on
python examples/resume.py --epochs 200 --keep run.ckpt     # interrupt it with Ctrl-C, and call it again
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

import kopt

X, Y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")


def network():
    """A network with random masks, moving averages and a schedule: all of it has a state."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((64,))
    h = layers.BatchNormalization()(layers.Dense(64, "relu")(inputs))
    model = kopt.Model(inputs, layers.Dense(10, "softmax")(layers.Dropout(0.3)(h)))
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 2000)
    model.compile(kopt.AdamW(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Kill(keras.callbacks.Callback):
    """Kills this process in the middle of an epoch, as a power cut would: nothing can be tidied up."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Looks where the fit is."""
        if self.model.progress.epoch == self.epoch and batch == 30:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(path, epochs, *callbacks, verbose=0):
    model = network()
    callbacks = [*callbacks, kopt.StopAtNonFinite(), kopt.Checkpoint(path, every=25)]
    history = model.fit(X, Y, epochs=epochs, validation_split=0.2, verbose=verbose, callbacks=callbacks)
    return model, history


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--keep", type=pathlib.Path, help="a file to go on from, and to save to")
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)  # what the first process is called with
    asked = parser.parse_args()
    if asked.kill:
        fit(asked.keep, asked.epochs, Kill(asked.epochs // 2))
    if asked.keep:
        _, history = fit(asked.keep, asked.epochs, verbose=1)
        print(f"{len(history.epoch)} epochs, validation accuracy {history.history['val_accuracy'][-1]:.3f}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "run.ckpt")
        arguments = ["--kill", "--keep", str(path), "--epochs", str(asked.epochs)]
        died = subprocess.run([sys.executable, __file__, *arguments], check=False)
        print(f"a process trained until signal {-died.returncode} killed it")
        resumed, history = fit(path, asked.epochs)
        straight, expected = fit(pathlib.Path(folder, "other.ckpt"), asked.epochs)
    pairs = zip(resumed.get_weights(), straight.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert history.history == expected.history
    print("another went on, and has the weights and the history of a fit that was never interrupted")


if __name__ == "__main__":
    main()
