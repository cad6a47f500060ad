"""Train with several processes, which go on from the last step when one of them dies.

python -m kopt launch --workers 3 examples/several_workers.py        # kill -9 one of the processes that it names
python examples/several_workers.py                                   # launches itself with two
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def train(path, epochs):
    """What every worker does: all make the same calls, with the same rows."""
    import keras
    import tensorflow as tf
    from sklearn.datasets import load_digits

    import kopt

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else uses TensorFlow
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    with strategy.scope():
        inputs = keras.Input((64,))
        h = keras.layers.Dropout(0.2)(keras.layers.Dense(64, "relu")(inputs))
        model = kopt.Model(inputs, keras.layers.Dense(10, "softmax")(h))
        model.compile(kopt.AdamW(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, 64, epochs, verbose=2, validation_split=0.2, callbacks=[kopt.Checkpoint(path, every=50)])
    if strategy.cluster_resolver.task_id == 0:  # the chief: a worker may predict by itself, and one is to save
        accuracy = (model.predict(x[-360:], verbose=0).argmax(1) == y[-360:]).mean()
        model.save(path.with_suffix(".keras"))
        print(f"accuracy {accuracy:.3f} on the rows held out, by {strategy.num_replicas_in_sync} workers")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=pathlib.Path("several-workers.ckpt"))
    asked = parser.parse_args()
    if "TF_CONFIG" in os.environ:
        return train(asked.checkpoint, asked.epochs)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kopt", "launch", "--workers", "2", __file__, "--epochs", str(asked.epochs)]
        subprocess.run([*command, "--checkpoint", f"{folder}/run.ckpt"], check=True)


if __name__ == "__main__":
    main()
